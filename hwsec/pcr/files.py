"""Reads the directory of signed policies. A file that is not a policy is ignored, not obeyed."""

from dataclasses import dataclass
from pathlib import Path

from .policy import MAX_POLICY_BYTES, SignedPolicy, parse_policy

SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What was found.

    Attributes:
        policies: the signed policies.
        passed_over: a sentence for each file that is not a policy, with the reason.
    """

    policies: tuple[SignedPolicy, ...] = ()
    passed_over: tuple[str, ...] = ()


def read_policies(directory: Path | None) -> PolicyFiles:
    """All policies in the directory, by name of their files. A directory that is not there holds none."""
    policies, passed_over = [], []
    try:
        paths = [] if directory is None else sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return PolicyFiles()
    except OSError as error:
        return PolicyFiles((), (f"{directory} cannot be read: {error.strerror}",))
    for path in paths:
        try:
            with path.open("rb") as file:
                policies.append(parse_policy(file.read(MAX_POLICY_BYTES + 1)))
        except OSError as error:
            passed_over.append(f"{path} cannot be read: {error.strerror}")
        except ValueError as error:
            passed_over.append(f"{path}: {error}")
    return PolicyFiles(tuple(policies), tuple(passed_over))
