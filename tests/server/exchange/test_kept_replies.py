"""Replies are kept for requests that come again: the same on both databases."""

import pytest
from sqlalchemy.exc import IntegrityError

from server.exchange.kept_replies import KEPT_S
from tests.server.devices import NOW
from tests.support.serverside import ServerSide


def test_replies_are_kept_for_two_days(server: ServerSide) -> None:
    ids = [f"{number:032x}" for number in range(3)]
    server.replies.keep("pos-1", ids[0], "digest", "reply", NOW)
    with pytest.raises(IntegrityError):  # who keeps a reply has looked, in the same transaction, that there is none
        server.replies.keep("pos-1", ids[0], "other", "other", NOW)
    assert server.replies.find("pos-1", ids[0]) == ("digest", "reply")
    assert server.replies.find("pos-2", ids[0]) is None
    for number in range(200):
        server.replies.keep("pos-1", f"{number + 9:032x}", "digest", "reply", NOW + KEPT_S + 1)
    assert server.replies.find("pos-1", ids[0]) is None
