"""The command line of `license-server`: one file for each group of commands, in rooms by what they are about."""
