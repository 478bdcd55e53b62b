"""Answers POS applications on the POS socket."""
