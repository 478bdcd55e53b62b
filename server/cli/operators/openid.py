"""Commands for the OpenID provider that people sign in with. They work on the server's machine only.

Anyone who could change the provider from afar would decide who is administrator.
"""

import json
from pathlib import Path

import click

from common.files import os_problem
from server.accounts import provider as providers
from server.accounts.provider import Provider
from server.base.errors import RegistryError
from server.cli.base.options import directory_option, json_option, now, reading, writing


@click.group()
def oidc() -> None:
    """Let people sign in with an OpenID provider. Off until 'set'. Only on the server's machine."""


@oidc.command("set")
@directory_option
@click.option("--issuer", required=True, metavar="URL", help="The provider, exactly as in the claim 'iss' of its tokens.")
@click.option(
    "--audience", required=True, metavar="ID", help="What tokens for this server have in 'aud': a client id, or an API's name."
)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Verify the provider's TLS certificate against these CAs (PEM) and no others.  [default: those of the system]",
)
@click.option(
    "--network", "networks", multiple=True, metavar="NETWORK",
    help="Where the provider may be although it is not public, as 10.20.0.0/16; may be repeated.",
)  # fmt: skip
@click.option(
    "--max-age", type=click.IntRange(providers.MIN_AGE_S, providers.MAX_AGE_S), default=providers.DEFAULT_AGE_S,
    show_default=True, help="Seconds after which a token does not count any more, whenever it expires.",
)  # fmt: skip
def oidc_set(directory: Path, issuer: str, audience: str, ca: Path | None, networks: tuple[str, ...], max_age: int) -> None:
    """Read the keys of an OpenID provider, and let people sign in with it, at once and with no other."""
    try:
        pem = None if ca is None else ca.read_text("ascii")
    except (OSError, UnicodeDecodeError) as problem:
        why = os_problem(problem) if isinstance(problem, OSError) else "it is not PEM"
        raise RegistryError(f"{ca} cannot be read: {why}") from None
    provider = providers.checked(Provider(issuer, audience, max_age, networks, pem))
    count = _count_keys(provider)
    with writing(directory) as (_server, session):
        providers.use(session, provider, now())
    click.echo(
        f"{issuer} has {count} keys; next: license-server accounts subject NAME --issuer {issuer} --subject SUB", err=True
    )


@oidc.command("show")
@directory_option
@json_option
def oidc_show(directory: Path, as_json: bool) -> None:
    """Show the OpenID provider, and whether its keys can be read now."""
    with reading(directory) as (_server, session):
        provider = providers.present(session)
    problem = None
    if provider is not None:
        try:
            _count_keys(provider)
        except RegistryError as error:
            problem = str(error)
    if as_json:
        content = None if provider is None else {**_members(provider), "problem": problem}
        click.echo(json.dumps(content))
        return
    if provider is None:
        click.echo("nobody can sign in with an OpenID provider; 'license-server accounts oidc set' names one")
        return
    for name, value in (*_members(provider).items(), ("problem", problem)):
        text = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name:<10}{text if text not in (None, '') else '-'}")


@oidc.command("off")
@directory_option
def oidc_off(directory: Path) -> None:
    """End that people can sign in with the OpenID provider, at once. Their accounts keep their subjects."""
    with writing(directory) as (_server, session):
        if not providers.end(session, now()):
            raise RegistryError("nobody can sign in with an OpenID provider already")


def _members(provider: Provider) -> dict[str, object]:
    return {
        "issuer": provider.issuer,
        "audience": provider.audience,
        "max_age": provider.max_age_s,
        "networks": list(provider.networks),
        "ca": "of its own" if provider.ca is not None else "of the system",
    }


def _count_keys(provider: Provider) -> int:
    """How many keys of the provider count.

    Raises:
        RegistryError: they cannot be read.
    """
    # No other command asks a provider, and its HTTP client takes its time to import.
    from server.oidc.reader import ProviderUnavailable, Reader

    try:
        return len(Reader().keys(provider))
    except ProviderUnavailable as problem:
        raise RegistryError(f"the keys of {provider.issuer} cannot be read: {problem}") from None
