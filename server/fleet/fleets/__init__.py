"""Fleets: which devices belong to one, and the policy that they share."""
