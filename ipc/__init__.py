"""The local socket protocol: frames, messages, errors, peer identity and clients.

This package imports nothing of ours. The modules that the POS client wheel carries (packaging/client/pyproject.toml lists
them) import only the standard library, msgpack and each other.
`docs/protocol.md` is the text that goes with it.
"""
