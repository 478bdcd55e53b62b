"""Declares what agent and server exchange: tokens, deliveries, requests, replies, trust. Imports nothing of ours.

Both sides share these types. The server issues tokens with joserfc; the agent opens them with the strict parsers here.
"""
