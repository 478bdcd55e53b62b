"""Checks of the host that the agent shares with others: who may sign in, its network, its rules for nftables."""
