"""What the server's acts raise for who administers it; what is for agents is `refused.RequestRefused`."""


class RegistryError(Exception):
    """What an administrator asked for cannot be done; the text says why and what to do."""
