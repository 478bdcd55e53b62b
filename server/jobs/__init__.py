"""Timed work of the server: a table of what is due, done by one process at a time."""
