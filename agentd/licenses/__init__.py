"""Judges license tokens: validator, verdicts, the machine's license inventory."""
