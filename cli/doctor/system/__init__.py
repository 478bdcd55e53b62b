"""Checks of what the operating system does for the agent: TPM, clock, memory, systemd's units, AppArmor."""
