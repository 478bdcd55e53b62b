"""Owns the secret versions: life cycle, ring, sealed store, installer of new ones, PCR policies."""
