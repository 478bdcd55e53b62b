"""The tables of the registry: `core` has the base class, agents, secrets, licenses and keys; `tables` loads them all."""
