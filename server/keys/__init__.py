"""The server's keys: keyring, certificates, root key, master key, data key, JOSE."""
