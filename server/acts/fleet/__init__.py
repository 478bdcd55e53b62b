"""Acts on devices, fleets and rollouts."""
