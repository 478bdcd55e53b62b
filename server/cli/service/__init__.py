"""Commands that run the server on this machine: serve, its clock, backups, moves, and what is kept for how long."""
