"""Commands that make a new server, and those for its keys and its master key."""
