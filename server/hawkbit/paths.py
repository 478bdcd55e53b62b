"""Reads the paths of the API. Pure.

    /TENANT/controller/v1/ID
    /TENANT/controller/v1/ID/configData
    /TENANT/controller/v1/ID/deploymentBase/ACTION, …/feedback
    /TENANT/controller/v1/ID/cancelAction/ACTION, …/feedback
    /TENANT/controller/v1/ID/installedBase/ACTION
    /TENANT/controller/v1/ID/confirmationBase, …/activateAutoConfirm, …/deactivateAutoConfirm, …/ACTION, …/ACTION/feedback
    /TENANT/controller/v1/ID/softwaremodules/MODULE/artifacts, …/NAME, …/NAME.MD5SUM

A path is compared as it came, not decoded: an id and a file's name have no character that would have to be encoded, so
`%2e%2e%2f` is no path here (threat-model T66).
"""

import re
from dataclasses import dataclass

DEVICE_ID = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
"""A device's id: what a path can name without encoding."""
_NUMBER = r"(?P<number>[1-9][0-9]{0,9})"
_HEAD = re.compile(rf"/(?P<tenant>[A-Za-z0-9_-]{{1,32}})/controller/v1/(?P<device>{DEVICE_ID})(?P<rest>/.*)?\Z")
_NAME = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._+~-]{0,255})"
_PATHS = {
    "poll": (r"", ("GET",)),
    "config": (r"/configData", ("PUT", "POST")),
    "deployment": (rf"/deploymentBase/{_NUMBER}", ("GET",)),
    "deployment-feedback": (rf"/deploymentBase/{_NUMBER}/feedback", ("POST",)),
    "cancel": (rf"/cancelAction/{_NUMBER}", ("GET",)),
    "cancel-feedback": (rf"/cancelAction/{_NUMBER}/feedback", ("POST",)),
    "installed": (rf"/installedBase/{_NUMBER}", ("GET",)),
    "confirmations": (r"/confirmationBase", ("GET",)),
    "auto-confirm": (r"/confirmationBase/activateAutoConfirm", ("POST",)),
    "no-auto-confirm": (r"/confirmationBase/deactivateAutoConfirm", ("POST",)),
    "confirmation": (rf"/confirmationBase/{_NUMBER}", ("GET",)),
    "confirmation-feedback": (rf"/confirmationBase/{_NUMBER}/feedback", ("POST",)),
    "artifacts": (rf"/softwaremodules/{_NUMBER}/artifacts", ("GET",)),
    "artifact": (rf"/softwaremodules/{_NUMBER}/artifacts/{_NAME}", ("GET", "HEAD")),
}
_ENDPOINTS = {name: (re.compile(rf"{path}\Z"), methods) for name, (path, methods) in _PATHS.items()}


@dataclass(frozen=True, slots=True)
class Route:
    """What a path names.

    Attributes:
        tenant: of the path.
        device_id: the device that the request is about.
        endpoint: of `ENDPOINTS`; empty if the path names none.
        methods: of HTTP that it has.
        number: of the action; 0 for an endpoint without one.
        name: of the file; empty for an endpoint without one.
    """

    tenant: str
    device_id: str
    endpoint: str = ""
    methods: tuple[str, ...] = ()
    number: int = 0
    name: str = ""


ENDPOINTS = tuple(_ENDPOINTS)
"""The names of the endpoints."""


def route_of(raw_path: bytes) -> Route | None:
    """What a path names; None if it is not even of a device.

    Args:
        raw_path: as it came over the wire, without the query.
    """
    try:
        head = _HEAD.match(raw_path.decode("ascii"))
    except UnicodeDecodeError:
        return None
    if head is None:
        return None
    for endpoint, (pattern, methods) in _ENDPOINTS.items():
        found = pattern.match(head["rest"] or "")
        if found is not None:
            parts = found.groupdict()
            number = int(parts["number"]) if "number" in parts else 0
            return Route(head["tenant"], head["device"], endpoint, methods, number, parts.get("name", ""))
    return Route(head["tenant"], head["device"])
