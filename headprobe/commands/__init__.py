"""One file a subcommand: read the options, call one stage, print."""
