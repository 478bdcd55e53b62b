"""The network side of the agent: fetches over mutual TLS 1.3 for the core, which has no network. Imports ipc only."""
