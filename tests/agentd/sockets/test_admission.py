"""What a peer is told who is not on the allow-list."""

import os
import pwd

import pytest

from agentd.sockets.admission import forbidden_text
from ipc.peer import Peer

ME, NOBODY_UID = os.geteuid(), 4_000_000_000


@pytest.mark.parametrize(
    ("socket", "peer", "expected"),
    [
        (
            "pos",
            Peer(ME, 7, 1),
            f"user {pwd.getpwuid(ME).pw_name} (uid {ME}) may not use this socket: add the user to [pos] allowed_uids, or its "
            "primary group (gid 7) to [pos] allowed_gids, in config.toml, then run 'systemctl reload license-agent'",
        ),
        (
            "admin",
            Peer(NOBODY_UID, 7, 1),
            f"uid {NOBODY_UID} may not use this socket: add the user to [management] allowed_uids in config.toml, then run "
            "'systemctl reload license-agent'",
        ),
        (
            "pos",
            Peer(65534, 65534, 1),
            "uid 65534 gid 65534 may not use this socket: the kernel shows 65534 for users and groups of another user "
            "namespace, and that number is never admitted",
        ),
    ],
)
def test_it_names_the_user_and_the_key_to_change(socket: str, peer: Peer, expected: str) -> None:
    assert forbidden_text(socket, peer) == expected
