"""Says why a license is valid or not, and what to do about it."""
