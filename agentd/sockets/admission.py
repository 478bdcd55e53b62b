"""Says to a peer who is not on the allow-list who the kernel says it is, and what an administrator changes to admit it."""

import pwd
from functools import lru_cache

from ipc.peer import OVERFLOW_ID, Peer

_ADD = {
    "pos": "add the user to [pos] allowed_uids, or its primary group ({group}) to [pos] allowed_gids,",
    "admin": "add the user to [management] allowed_uids",
}
"""What admits a user to each socket."""


@lru_cache(maxsize=256)
def _name_of(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name  # KeyError is not kept: a user who is created later has a name


def forbidden_text(socket: str, peer: Peer) -> str:
    """The text of FORBIDDEN.

    Args:
        socket: `pos` or `admin`.
        peer: who was not admitted.
    """
    if OVERFLOW_ID in (peer.uid, peer.gid):
        return (
            f"uid {peer.uid} gid {peer.gid} may not use this socket: the kernel shows {OVERFLOW_ID} for users and groups of "
            "another user namespace, and that number is never admitted"
        )
    try:
        user = f"user {_name_of(peer.uid)} (uid {peer.uid})"
    except KeyError:
        user = f"uid {peer.uid}"
    add = _ADD.get(socket, _ADD["pos"]).format(group=f"gid {peer.gid}")
    return f"{user} may not use this socket: {add} in config.toml, then run 'systemctl reload license-agent'"
