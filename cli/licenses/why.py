"""Defines the command that says why a license is valid or not."""

import os
import sys

import click

from cli import inputs
from cli.agent import EXIT_NEGATIVE, Agent, pass_agent
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused

from . import explanation

MAX_LICENSE_ID_CHARS = 128


def is_token(text: str) -> bool:
    """Whether an argument is a token itself, and not a license id: a token has five parts, or is a beginning of one."""
    return text.count(".") == 4 or text.startswith("eyJ") or len(text) > MAX_LICENSE_ID_CHARS


@click.command()
@click.argument("license_", metavar="LICENSE")
@pass_agent
def why(agent: Agent, license_: str) -> None:
    """Say why LICENSE is valid or not, check by check, and what to do.

    LICENSE is a token ('-' reads it from standard input, @FILE from a file), or the id of a license of this machine.
    """
    by_token = license_ == "-" or license_.startswith("@") or is_token(license_)
    token = inputs.license_token(license_) if by_token else None
    if not by_token and not license_:
        raise click.UsageError("the license id is empty")
    try:
        reply = agent.ask("license_explain", by="token" if by_token else "license", subject=token or license_)
    except AgentRefused as error:
        if error.code is ErrorCode.NOT_FOUND and os.path.lexists(license_):
            raise AgentRefused(error.code, f"{error.text}; it is the name of a file: did you mean '@FILE'?") from None
        if error.code is ErrorCode.UNKNOWN_OP:
            text = "the running agent is an older release, which does not explain; run 'systemctl restart license-agent'"
            raise AgentRefused(error.code, text) from None
        raise
    asked = license_ if not by_token or license_.startswith("@") else "@TOKEN-FILE"
    found = explanation.explained(reply, asked)
    agent.show(found, explanation.explanation_text(found))
    if token is not None and found["check"] == 1:
        inputs.hint_at(token)
    if not found["valid"]:
        sys.exit(EXIT_NEGATIVE)
