"""Reads the programs' TOML files, strictly: every problem at once, each with what to do about it. Imports `common` only."""
