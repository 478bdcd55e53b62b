"""The configuration: the sections of `config.toml`, and which of it is in force."""
