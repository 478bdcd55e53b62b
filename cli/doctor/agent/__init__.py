"""Checks of the agent and of what belongs to it: its files, backups, updates, the REST interface."""
