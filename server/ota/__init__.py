"""Keeps the repository of updates (TUF) and tells agents what to install."""
