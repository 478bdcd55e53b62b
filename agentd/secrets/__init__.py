"""Owns the secret versions and the sealed record: life cycle, ring, store, installer, trusted time, PCR policies."""
