"""`license-stand`: a complete local system in one directory, for POS developers and for tests. Imports `ipc` only.

It starts the installed commands as processes of their own and stands in for systemd: it holds the sockets, restarts the
agent, and cleans up at the end.
"""
