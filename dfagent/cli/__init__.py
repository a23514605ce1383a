"""The command line: arguments and presentation only."""
