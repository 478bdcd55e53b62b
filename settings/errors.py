"""What is raised for a configuration that cannot be used."""

from collections.abc import Iterable


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        problems: a sentence each: the file, the section and key, what is wrong, and how to fix it.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))
