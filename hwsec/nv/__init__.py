"""Our NV indices: which there are, and how often they may be written. Needs no TPM."""
