"""The command line of `license-server`: one file for each group of commands."""
