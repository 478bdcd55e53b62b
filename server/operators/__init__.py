"""The operator API: HTTP for the acts."""
