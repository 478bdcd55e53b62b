"""Defines `license-agent-client`, which asks the POS socket from a shell.

Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer from the agent, 4 the agent refused the request.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict

from ..answers import ConsentAnswer, Reason, Verdict
from ..bounds import COUNT_ID_BYTES, DEFAULT_DEADLINE_S, MAX_AMOUNT
from ..clientwire import may_be_sent
from ..errors import ErrorCode, LicenseAgentError, LocalProtocolError
from ..peer import UntrustedDaemon
from .client import LicenseClient
from .policy import AgentRefused, AgentUnavailable, TokenFileError
from .shellwatch import Found, as_json, as_text, ask, printable, watch
from .tokenfile import TOKEN_READ_BYTES, TokenFile, token_in
from .tokenhint import license_token_hint
from .tokeninspect import inspect
from .version import __version__

_VALUED = frozenset({"--socket", "--deadline", "--agent-uid"})
_ANYWHERE = _VALUED | {"--version"}
MAX_LENGTH_S = 366 * 86_400
MAX_BUSY_MINUTES = 240
"""The agent counts no more of "busy"."""
EXIT_VALID, EXIT_INVALID, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_REFUSED = range(5)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise ValueError
    return value


def _length(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MAX_LENGTH_S:
        raise ValueError
    return value


def _amount(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_AMOUNT:
        raise ValueError
    return value


def _minutes(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_BUSY_MINUTES:
        raise ValueError
    return value


def _count_id(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != COUNT_ID_BYTES:
        raise ValueError
    return value


_amount.__name__ = f"integer from 1 to {MAX_AMOUNT}"
_count_id.__name__ = "id"
_minutes.__name__ = f"integer from 1 to {MAX_BUSY_MINUTES}"
_seconds.__name__ = _length.__name__ = "number of seconds"  # what argparse calls it in its error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="license-agent-client",
        description="Asks the license agent of this machine what is licensed.",
        epilog="Exit status: 0 valid, 1 not valid, 2 wrong usage, 3 no answer, 4 refused.",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-client {__version__}")
    parser.add_argument("--socket", metavar="PATH", help="the agent's POS socket (or LICENSE_AGENT_SOCKET)")
    parser.add_argument("--deadline", type=_seconds, default=DEFAULT_DEADLINE_S, metavar="SECONDS", help="how long to try")
    parser.add_argument("--agent-uid", type=int, metavar="UID", help="the agent's UID if its user is not license-agent")
    commands = parser.add_subparsers(dest="command", required=True)
    validate = commands.add_parser("validate", help="print the verdict on a license token as JSON")
    validate.add_argument("token", help="the token; '-' reads it from standard input, @FILE from a file")
    refresh = commands.add_parser("refresh", help="print the newest token of the same license, if there is one")
    refresh.add_argument("token", help="as for validate")
    required = commands.add_parser("require", help="print whether a license of this machine allows a feature, as JSON")
    required.add_argument("feature", metavar="FEATURE", help="the feature")
    required.add_argument("--product", metavar="PRODUCT", help="the license must be for this product")
    listed = commands.add_parser("licenses", help="print the licenses that this machine holds as JSON")
    listed.add_argument("--metadata", action="store_true", help="also what the issuer attached to each valid license")
    counted = commands.add_parser(
        "count", help="count usage for a license of this machine, and print what became of it as JSON"
    )
    counted.add_argument("meter", metavar="METER", help="the meter; a license must have the feature meter:METER")
    counted.add_argument("--amount", type=_amount, default=1, metavar="NUMBER", help="how much; default %(default)s")
    counted.add_argument(
        "--id", type=_count_id, metavar="HEX", dest="count_id", help="32 hex digits: the same id again is not counted again"
    )
    consent = commands.add_parser(
        "consent", help="print as JSON whether an update waits for the shop, and say whether it may begin"
    )
    consent.add_argument(
        "answer",
        nargs="?",
        choices=[answer.value for answer in ConsentAnswer],
        metavar="ANSWER",
        help="ready, busy or after_shift; without it, only look",
    )
    consent.add_argument(
        "--minutes", type=_minutes, default=60, metavar="NUMBER", help="how long busy shall count; default %(default)s"
    )
    inspected = commands.add_parser("inspect", help="print what a token says of itself, and the agent's verdict if it answers")
    inspected.add_argument("token", help="as for validate")
    watched = commands.add_parser("watch", help="print each change of the verdict on a token file")
    watched.add_argument("file", metavar="FILE", help="the file; it is read again each time, and never written")
    watched.add_argument("--every", type=_seconds, default=5.0, metavar="SECONDS", help="how often to ask; default %(default)g")
    watched.add_argument(
        "--for", type=_length, metavar="SECONDS", dest="length", help="end after this time; without it, at Ctrl-C"
    )
    watched.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object a line")
    commands.add_parser("info", help="print the agent's id, version and state as JSON")
    commands.add_parser("ping", help="check that the agent answers")
    return parser


def _options_first(arguments: list[str]) -> list[str]:
    """The program's own options before its command, wherever they are; what follows `--` stays."""
    moved: list[str] = []
    kept: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            kept += [word, *waiting]
            break
        if word.partition("=")[0] not in _ANYWHERE:
            kept.append(word)
            continue
        moved.append(word)
        if word in _VALUED and waiting:
            moved.append(waiting.pop(0))
    return [*moved, *kept]


def _token(argument: str) -> str:
    if argument == "-":
        return token_in(sys.stdin.buffer.read(TOKEN_READ_BYTES))
    if argument.startswith("@"):
        return TokenFile(argument[1:]).read(complete=False)
    if not argument:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "the token is empty")
    if not argument.isascii():
        text = f"this is not a license token: {license_token_hint(argument)}"
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, text)
    return argument


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        status = _run_safely(sys.argv[1:] if arguments is None else arguments)
        _flush()
    except _OutputError as error:
        _leave_output()
        return _fail(f"standard output cannot be written: {error.why}", EXIT_USAGE)
    return status


class _OutputError(RuntimeError):
    """Standard output cannot be written: an answer that nobody can read does not count.

    Attributes:
        why: what the system says.
        unread: the reader has gone.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.why = error.strerror
        self.unread = isinstance(error, BrokenPipeError)


def _leave_output() -> None:
    """Keeps the interpreter from writing to standard output once more at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_safely(arguments: list[str]) -> int:
    """Runs the command; an error becomes a line on standard error and an exit status."""
    try:
        options = _parser().parse_args(_options_first(arguments))
    except SystemExit as ended:  # the help was printed, or the usage was wrong
        _flush()
        raise ended from None
    except OSError as error:
        raise _OutputError(error) from None
    try:
        with LicenseClient(options.socket, deadline=options.deadline, agent_uid=options.agent_uid) as client:
            return _run(client, options)
    except LocalProtocolError as error:
        return _fail(str(error), EXIT_USAGE)
    except (AgentUnavailable, UntrustedDaemon) as error:
        return _fail(str(error), EXIT_UNAVAILABLE)
    except AgentRefused as error:
        return _fail(str(error), EXIT_REFUSED)
    except TokenFileError as error:
        return _fail(f"{error.filename}: {error.strerror}", EXIT_USAGE)
    except OSError as error:
        return _fail(f"standard input: {error.strerror}", EXIT_USAGE)


def _run(client: LicenseClient, options: argparse.Namespace) -> int:
    if options.command == "validate":
        token = _token(options.token)
        # What a file or a pipe holds is no wrong usage of this command.
        outside = options.token == "-" or options.token.startswith("@")
        if outside and not may_be_sent(token):
            verdict = Verdict(valid=False, reason=Reason.MALFORMED)
        else:
            verdict = client.validate(token)
        _print(json.dumps(_fields(verdict), indent=2))
        if verdict.reason is Reason.MALFORMED:
            _flush()
            _hint(token)
        return EXIT_VALID if verdict.valid else EXIT_INVALID
    if options.command == "refresh":
        newer = client.refresh(_token(options.token))
        if newer is None:
            return _fail("the agent holds no newer token of this license", EXIT_INVALID)
        _print(newer)
    elif options.command == "require":
        feature = client.require(options.feature, options.product)
        _print(json.dumps(asdict(feature), indent=2))
        return EXIT_VALID if feature.valid else EXIT_INVALID
    elif options.command == "licenses":
        _print(json.dumps([asdict(held) for held in client.licenses(metadata=options.metadata)], indent=2))
    elif options.command == "count":
        count = client.count_usage(options.meter, options.amount, count_id=options.count_id)
        _print(json.dumps({**asdict(count), "count_id": count.count_id.hex()}, indent=2))
        return EXIT_VALID if count.counted else EXIT_INVALID
    elif options.command == "consent":
        until = int(time.time()) + options.minutes * 60 if options.answer == ConsentAnswer.BUSY else 0
        _print(json.dumps(asdict(client.ota_consent(options.answer, until=until)), indent=2))
    elif options.command == "inspect":
        return _inspect(client, _token(options.token))
    elif options.command == "watch":
        return _watch(client, options)
    elif options.command == "info":
        _print(json.dumps(asdict(client.info()), indent=2))
    else:
        client.ping()
        _print("the agent answers")
    return EXIT_VALID


def _inspect(client: LicenseClient, token: str) -> int:
    found = inspect(token)
    agent = verdict = error = None
    try:
        agent = asdict(client.info())
        verdict = _fields(client.validate(token)) if may_be_sent(token) else None
    except LicenseAgentError as failure:
        error = str(failure)
    _print(json.dumps({"token": found, "agent": agent, "verdict": verdict, "agent_error": error}, indent=2))
    return EXIT_VALID if found["problem"] is None else EXIT_INVALID


def _watch(client: LicenseClient, options: argparse.Namespace) -> int:
    file = TokenFile(options.file)
    last: list[Found] = []

    def report(found: Found) -> None:
        last[:] = [found]
        _print((as_json if options.as_json else as_text)(found, time.time()))
        # A reader of the pipe gets each line at once.
        _flush()

    try:
        found = watch(
            lambda: ask(client, file),
            report,
            every=options.every,
            length=options.length,
            clock=time.monotonic,
            sleep=time.sleep,
        )
    except KeyboardInterrupt:
        if not last:
            return EXIT_UNAVAILABLE
        found = last[0]
    except _OutputError as error:
        if not error.unread:
            raise
        _leave_output()
        return EXIT_UNAVAILABLE
    if isinstance(found, Verdict):
        return EXIT_VALID if found.valid else EXIT_INVALID
    if isinstance(found, TokenFileError):
        return EXIT_USAGE
    return EXIT_REFUSED if isinstance(found, AgentRefused) else EXIT_UNAVAILABLE


def _fields(verdict: Verdict) -> dict[str, object]:
    # These commands replace no token, so there is no refresh that could fail.
    return {name: value for name, value in asdict(verdict).items() if name != "refresh_error"}


def _hint(token: str) -> None:
    """Says what is wrong with a text that is no token; the text is not repeated, since it may hold one."""
    hint = license_token_hint(token)
    if hint is None and os.path.lexists(token):
        hint = "it is the name of a file: did you mean '@FILE'?"
    if hint is not None:
        sys.stderr.write(f"license-agent-client: this is not a license token: {hint}\n")


def _print(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
    except OSError as error:
        raise _OutputError(error) from None


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _OutputError(error) from None


def _fail(text: str, status: int) -> int:
    sys.stderr.write(f"license-agent-client: {printable(text)}\n")
    return status


def entry() -> None:
    """The console script."""
    sys.exit(main())
