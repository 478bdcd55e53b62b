"""Places our NV indices. Nothing here performs IO: a signer on another machine needs the same numbers."""

NV_BASE = 0x018A6E00
"""Our NV indices follow this number, in the owner's range (Part 2, 13.2; Registry of Reserved TPM Handles)."""

NV_ANCHOR = 1
NV_COUNTER = 2
NV_AUDIT = 3
NV_POLICY_COUNTER = 4
