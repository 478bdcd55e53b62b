"""The license server: agents, secrets and licenses. Imports `contracts` only.

So far it works on a directory and is run by hand; the API that agents call over mutual TLS is not built yet.
"""
