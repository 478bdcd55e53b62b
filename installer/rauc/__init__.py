"""Whole systems by RAUC: its service on D-Bus, its bundles, and the jobs for them."""
