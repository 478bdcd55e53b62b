"""Commands for devices, fleets and rollouts."""
