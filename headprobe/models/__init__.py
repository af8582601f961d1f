"""Find, load and train language models."""
