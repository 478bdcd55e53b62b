"""Writes the audit log, coalesces repeated events, archives closed segments and seals the chain's heads."""
