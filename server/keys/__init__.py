"""The server's keys: keyring, life cycle, certificates, root key, master key, data key, JOSE."""
