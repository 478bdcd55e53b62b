"""Makes a device an agent, by its server or by hand, and recovers one whose disk or TPM failed."""
