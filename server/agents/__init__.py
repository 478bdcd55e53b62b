"""The agents: registry, enrollment tokens, client certificates."""
