"""Reaches the license server through the link: requests, certificates, TLS key, retry and schedule."""
