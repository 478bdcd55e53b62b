"""Licenses that exist: issued, changed, moved, delivered to agents, leased as seats, and their usage."""
