"""Rotates the secret with the license server: the table of steps, and the runner that performs them."""
