"""Protection of secrets by hardware, on disk and in memory. This package imports `common` only.

A `Backend` (TPM 2.0, or software) guards one 32-byte key-encryption key (KEK) and an anchor that cannot be wound back; a
`SealedStore` keeps secret versions under that key in a file whose newest copy the anchor names; a `Vault` holds them in
memory, encrypted, and opens one for the moment of its use.
"""
