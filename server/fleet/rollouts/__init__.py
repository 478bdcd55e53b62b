"""Rollouts: updates of many devices, in groups."""
