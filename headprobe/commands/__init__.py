"""One file per subcommand: read the options, call one stage, print."""
