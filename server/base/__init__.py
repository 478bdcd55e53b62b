"""What every other room may use: errors, refusals, private files, limits, JSON log. Imports no other room."""
