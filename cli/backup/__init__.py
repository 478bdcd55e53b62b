"""Backs the agent up, by hand and by a timer, proves backups and restores them."""
