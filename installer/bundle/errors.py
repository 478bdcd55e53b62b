"""What is raised for a bundle that may not be unpacked."""


class BundleRefused(Exception):
    """The bundle breaks a rule of docs/bundle-format.md. The text says which member, what is wrong, and what is allowed."""
