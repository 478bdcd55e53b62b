"""Decides whether a package may be installed: the update repository's metadata, the directive and the floors must agree.

The updater and the installer use the same rules, so that both judge alike. Pure, but for `trustfile.read_trust`,
`metadatafiles` and `client`, which read and write files and call a fetcher that the caller brings.
"""
