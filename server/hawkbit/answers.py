"""Builds what devices are answered. Pure."""

import json
from dataclasses import dataclass
from typing import Any

from server.base.ddisettings import DdiPlace
from server.fleet.ddi.action_states import State
from server.fleet.ddi.actions import Shown
from server.registry.models.ddi import DdiAction

JSON, HAL = "application/json", "application/hal+json"
MD5SUM = ".MD5SUM"
_STATUS = {State.PROVED: "FINISHED", State.INSTALLED: "FINISHED", State.FAILED: "ERROR", State.CANCELED: "CANCELED"}


@dataclass(frozen=True, slots=True)
class Links:
    """The addresses of a device's endpoints.

    Attributes:
        place: of the listener.
        device_id: the device.
    """

    place: DdiPlace
    device_id: str

    def to(self, *parts: object) -> dict[str, str]:
        """A link to an endpoint."""
        head = f"{self.place.url}/{self.place.tenant}/controller/v1/{self.device_id}"
        return {"href": "/".join((head, *(str(part) for part in parts)))}


def encoded(content: dict[str, Any] | list[Any]) -> bytes:
    """JSON."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def polled(links: Links, shown: Shown) -> dict[str, Any]:
    """What a device is told at a poll."""
    hours, rest = divmod(shown.poll_s, 3600)
    content: dict[str, Any] = {"config": {"polling": {"sleep": f"{hours:02}:{rest // 60:02}:{rest % 60:02}"}}}
    found: dict[str, Any] = {}
    if shown.link:
        # Clients keep answers by address: `c` makes it another one for another action. It has no other meaning.
        found[shown.link] = links.to(
            shown.link, shown.number if shown.link == "cancelAction" else f"{shown.number}?c={shown.number}"
        )
    if shown.installed is not None:
        found["installedBase"] = links.to("installedBase", shown.installed)
    if shown.configure:
        found["configData"] = links.to("configData")
    return content | {"_links": found}


def artifact(links: Links, action: DdiAction) -> dict[str, Any]:
    """The one file of an action."""
    name = action.path.partition("/")[2]
    file = links.to("softwaremodules", action.number, "artifacts", name)
    return {
        "filename": name,
        "hashes": {"sha1": action.sha1, "md5": action.md5, "sha256": action.sha256},
        "size": action.length,
        "_links": {"download": file, "md5sum": {"href": file["href"] + MD5SUM}},
    }


def deployment(links: Links, action: DdiAction, messages: list[str] | None, member: str = "deployment") -> dict[str, Any]:
    """An action that is to be carried out, or was, or is to be confirmed.

    Args:
        links: of the device.
        action: the action.
        messages: what the device has said of it, the newest first; None if it did not ask.
        member: of the answer that has it.
    """
    chunk = {"part": "os", "name": action.product, "version": action.version, "artifacts": [artifact(links, action)]}
    content: dict[str, Any] = {
        "id": str(action.number),
        member: {"download": "forced", "update": "forced", "chunks": [chunk]},
    }
    if messages is not None:
        content["actionHistory"] = {"status": _STATUS.get(State(action.state), "RUNNING"), "messages": messages}
    return content


def cancellation(action: DdiAction) -> dict[str, Any]:
    """An action that is to be stopped."""
    return {"id": str(action.number), "cancelAction": {"stopId": str(action.number)}}


def confirmations(links: Links, auto_confirm: str | None, waiting: DdiAction | None) -> dict[str, Any]:
    """Whether a device confirms each deployment at once, and which one waits for it."""
    base, found = "confirmationBase", {}
    found["deactivateAutoConfirm" if auto_confirm else "activateAutoConfirm"] = links.to(
        base, "deactivateAutoConfirm" if auto_confirm else "activateAutoConfirm"
    )
    if waiting is not None:
        found[base] = links.to(base, f"{waiting.number}?c={waiting.number}")
    return {"autoConfirm": {"active": auto_confirm is not None, **json.loads(auto_confirm or "{}")}, "_links": found}
