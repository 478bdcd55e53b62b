"""Reads and verifies the audit log, on the machine and from a copy."""
