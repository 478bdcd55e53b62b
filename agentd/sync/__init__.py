"""Contacts the license server: the contact cycle, the server's signed updates, degraded mode."""
