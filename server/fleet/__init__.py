"""Devices, fleets and rollouts: which devices there are, which belong together, and how an update reaches them."""
