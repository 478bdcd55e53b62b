"""Moves options on a command line to where their parser expects them, so that users may write them anywhere. Pure."""

from collections.abc import Collection, Sequence


def _split(
    arguments: Sequence[str], flags: Collection[str], valued: Collection[str], *, until_command: bool
) -> tuple[list[str], list[str]]:
    moved: list[str] = []
    kept: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, equals, _value = word.partition("=")
        if word == "--" or (until_command and not word.startswith("-")):
            kept += [word, *waiting]
            break
        if word in flags or (name in valued and equals):
            moved.append(word)
        elif word in valued and waiting:
            moved += [word, waiting.pop(0)]
        else:
            kept.append(word)
    return moved, kept


def to_front(arguments: Sequence[str], flags: Collection[str], valued: Collection[str] = ()) -> list[str]:
    """Moves a program's own options before its command: `status --json` becomes `--json status`. Nothing after `--` moves.

    Args:
        arguments: of the program.
        flags: options without a value.
        valued: options with one, as `--socket PATH` or `--socket=PATH`.
    """
    moved, kept = _split(arguments, flags, valued, until_command=False)
    return [*moved, *kept]


def to_back(arguments: Sequence[str], flags: Collection[str], valued: Collection[str] = ()) -> list[str]:
    """Moves a command's options that are before it to behind its words: `--json agents list` becomes `agents list --json`.

    Arguments as for `to_front`. Options that are not known stay where they are, for the parser to complain about.
    """
    moved, kept = _split(arguments, flags, valued, until_command=True)
    end = kept.index("--") if "--" in kept else len(kept)
    return [*kept[:end], *moved, *kept[end:]]
