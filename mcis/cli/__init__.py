"""The commands: one module each, with main for the command line that all share."""
