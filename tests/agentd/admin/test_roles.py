"""Every operation of the admin socket has its rule."""

from typing import get_args

from agentd.admin.roles import RULES
from ipc.messages import AdminRequest


def test_every_operation_has_a_rule() -> None:
    assert set(RULES) == set(get_args(AdminRequest))
