"""Commands for the keys of the update repository, and for what they sign by hand: root and targets.

What signs needs no server: those commands take no --dir, and run wherever the key is.
"""

from pathlib import Path

import click

from common.text import shown
from server.base.errors import Conflict, Invalid
from server.ota import documents, keyfiles, onlinekeys
from server.ota.documents import Holders
from server.ota.repository import Repository
from server.ota.submission import Submission
from server.ota.words import CANDIDATE, ONLINE, PACKAGE_ROLES, RELEASES, ROOT, TARGETS
from updatetrust.version import MalformedVersion, Version

from ..base.options import changing, confirm, directory_option, now, opened, passphrase_in, yes_option
from .otaoptions import (
    FOLDER,
    described,
    key_passphrase_option,
    public_option,
    publics,
    say_standing,
    sign_option,
    signers,
    submission_option,
)

# Keys


@click.command("new-key")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@key_passphrase_option
def new_key(file: Path, passphrase_file: Path | None) -> None:
    """Make a key that signs updates: the private half in FILE, the public half in FILE.pub. Needs no server."""
    public = keyfiles.make(file, passphrase_in(passphrase_file, f"passphrase of {file} (empty: none)", twice=True))
    click.echo(f"key {public.keyid}: bring {keyfiles.public_path(file)} to the server, and keep {file} away from it", err=True)


# Root and targets


def _floors(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        product, _, version = value.partition("=")
        try:
            found[product] = str(Version.parse(version))
        except MalformedVersion:
            raise click.BadParameter(f"{value!r} is not of the form PRODUCT=VERSION, such as pos=1.0.0") from None
    return found


floor_option = click.option(
    "--floor", "floors", multiple=True, callback=_floors, metavar="PRODUCT=VERSION",
    help="The lowest version of a product that may be installed; may be repeated. A product without one is never installed.",
)  # fmt: skip


@click.command("init")
@directory_option
@public_option("--root-key", "root_keys", "Public key of a holder of the root; repeat it.", required=True)
@click.option("--threshold", type=click.IntRange(1), default=2, show_default=True, help="How many holders must sign the root.")
@public_option("--targets-key", "targets_keys", "Public key that signs targets, offline.", required=True)
@public_option("--release-key", "release_keys", "Public key that releases packages: CI's.", required=True)
@public_option("--candidate-key", "candidate_keys", "Public key for candidates.  [default: the release keys]")
@floor_option
@submission_option
def init(
    directory: Path,
    root_keys: tuple[Path, ...],
    threshold: int,
    targets_keys: tuple[Path, ...],
    release_keys: tuple[Path, ...],
    candidate_keys: tuple[Path, ...],
    floors: dict[str, str],
    out: Path,
) -> None:
    """Begin a repository of updates: make the online keys, and write the first documents, unsigned.

    Each holder of a key signs them with 'ota sign'; 'ota publish' publishes them.
    """
    holders = {
        ROOT: Holders(publics(root_keys), threshold),
        TARGETS: Holders(publics(targets_keys), 1),
        RELEASES: Holders(publics(release_keys), 1),
        CANDIDATE: Holders(publics(candidate_keys or release_keys), 1),
    }
    for role, who in holders.items():
        who.require(role)
    moment = now()
    submission = Submission(out)
    with changing(directory) as server:
        server.keys.check_clock()
        if Repository(server.place.updates).exists:
            raise Conflict(f"{server.place.updates} has a repository of updates already")
        submission.begin(None)
        with server.database.write() as session:
            for role in ONLINE:
                holders[role] = Holders((onlinekeys.newest(session, server.cipher, role, moment),), 1)
        root = documents.new_root({role: holders[role] for role in (ROOT, TARGETS, *ONLINE)}, moment)
        submission.put(ROOT, root)
        submission.put(TARGETS, documents.new_targets({role: holders[role] for role in PACKAGE_ROLES}, floors, moment))
        for role in PACKAGE_ROLES:
            submission.put(role, documents.new_packages(role, moment))
    say_standing(submission.standing())
    click.echo(f"carry {out} to the holders of the keys: each runs 'license-server ota sign {out} --key FILE'", err=True)


@click.command("change-root")
@directory_option
@public_option("--add-root-key", "added", "Public key of a new holder of the root.")
@click.option(
    "--remove-root-key", "removed", multiple=True, metavar="ID", help="Id of the key of a holder who leaves, or its beginning."
)
@click.option("--threshold", type=click.IntRange(1), help="How many holders must sign the root.  [default: as now]")
@public_option("--targets-key", "targets_keys", "Public key that signs targets from then on.")
@click.option("--new-online-keys", is_flag=True, help="Make new keys for snapshot and timestamp.")
@submission_option
def change_root(
    directory: Path,
    added: tuple[Path, ...],
    removed: tuple[str, ...],
    threshold: int | None,
    targets_keys: tuple[Path, ...],
    new_online_keys: bool,
    out: Path,
) -> None:
    """Write the next root, unsigned: with other keys, or the same ones for another year.

    The holders of the present root sign it, and those of the next one. With --targets-key the next targets is in it too, to be
    signed with the former key and the new one.
    """
    moment = now()
    submission = Submission(out)
    with changing(directory) as server:
        server.keys.check_clock()
        present = Repository(server.place.updates).present()
        root = documents.successor(present.root, ROOT, moment)
        if added or removed or threshold is not None:
            who = documents.holders_in(root.signed, ROOT)
            keys = [key for key in who.keys if not any(key.keyid.startswith(each) for each in removed if len(each) >= 8)]
            if len(who.keys) - len(keys) != len(set(removed)):
                raise Invalid("--remove-root-key must name one key of the root by at least 8 characters; 'ota keys' lists them")
            documents.set_holders(root.signed, ROOT, Holders((*keys, *publics(added)), threshold or who.threshold))
        submission.begin(present)
        if targets_keys:
            documents.set_holders(root.signed, TARGETS, Holders(publics(targets_keys), 1))
            submission.put(TARGETS, documents.successor(present.targets, TARGETS, moment))
        if new_online_keys:
            with server.database.write() as session:
                for role in ONLINE:
                    key = onlinekeys.make(session, server.cipher, role, moment)
                    documents.set_holders(root.signed, role, Holders((key,), 1))
        submission.put(ROOT, root)
    say_standing(submission.standing())


@click.command("change-targets")
@directory_option
@floor_option
@public_option("--release-key", "release_keys", "Public key that releases packages from then on.")
@public_option("--candidate-key", "candidate_keys", "Public key for candidates from then on.")
@submission_option
def change_targets(
    directory: Path, floors: dict[str, str], release_keys: tuple[Path, ...], candidate_keys: tuple[Path, ...], out: Path
) -> None:
    """Write the next targets, unsigned: with higher floors or other keys, or the same for another year.

    With a new key for releases or candidate, their metadata is in it too, to be signed with that key.
    """
    moment = now()
    submission = Submission(out)
    with opened(directory) as server:
        present = Repository(server.place.updates).present()
    targets = documents.successor(present.targets, TARGETS, moment)
    before = documents.floors_in(targets.signed)
    for product, version in floors.items():
        if product in before and Version.parse(version) < Version.parse(before[product]):
            raise Invalid(f"the floor of {product} is {before[product]} and never goes down: machines keep the highest one")
    documents.set_floors(targets.signed, before | floors)
    coming = {RELEASES: release_keys, CANDIDATE: candidate_keys}
    holders = {role: documents.holders_in(targets.signed, role) for role in PACKAGE_ROLES}
    submission.begin(present)
    for role, files in coming.items():
        if files:
            holders[role] = Holders(publics(files), 1)
            submission.put(role, documents.successor(present.roles[role], role, moment))
    documents.delegate(targets.signed, holders)
    submission.put(TARGETS, targets)
    say_standing(submission.standing())


# Sign


@click.command("sign")
@click.argument("submission", type=FOLDER)
@sign_option
@key_passphrase_option
@yes_option
def sign_submission(submission: Path, keys: tuple[Path, ...], passphrase_file: Path | None, yes: bool) -> None:
    """Sign the documents in a SUBMISSION that want this key, after showing what they say. Needs no server."""
    found = Submission(submission)
    for line in described(found):
        click.echo(shown(line), err=True)
    confirm("Sign this?", yes=yes)
    for signer in signers(keys, passphrase_file):
        say_standing(found.sign(signer))


@click.command("check")
@click.argument("submission", type=FOLDER)
def check_submission(submission: Path) -> None:
    """Show what a SUBMISSION says, and which signatures are missing. Needs no server."""
    found = Submission(submission)
    for line in described(found):
        click.echo(shown(line))
    say_standing(found.standing())


COMMANDS: tuple[click.Command, ...] = (new_key, init, change_root, change_targets, sign_submission, check_submission)
