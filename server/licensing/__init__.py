"""Licenses and secret versions: issued, rotated, revoked."""
