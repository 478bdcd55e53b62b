"""The network side of the agent. Imports ipc, confine, settings and common only."""
