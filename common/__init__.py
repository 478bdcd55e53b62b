"""Machinery that several programs share. It imports nothing of ours; every other folder but `ipc` may import it."""
