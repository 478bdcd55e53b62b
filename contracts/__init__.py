"""What agent and server say to each other: license tokens, secret deliveries, trust. Imports nothing of ours.

Agent and server share these types. The server mints with joserfc; the agent opens with the strict parsers here.
"""
