"""Run a model over probes and measure what each attention head looks at."""
