"""The errors of the API in hawkBit's form, which clients of DDI know. Pure."""

import json
from dataclasses import dataclass

_REPOSITORY, _REST = "org.eclipse.hawkbit.repository.exception", "org.eclipse.hawkbit.rest.exception"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error.

    Attributes:
        status: of HTTP.
        code: of hawkBit, with its spelling: clients compare it.
        exception: the exception that hawkBit would name.
    """

    status: int
    code: str
    exception: str


KINDS = {
    "not-found": Kind(404, "hawkbit.server.error.repo.entitiyNotFound", f"{_REPOSITORY}.EntityNotFoundException"),
    "gone": Kind(410, "hawkbit.server.error.repo.entitiyNotFound", f"{_REPOSITORY}.EntityNotFoundException"),
    "malformed": Kind(400, "hawkbit.server.error.rest.body.notReadable", f"{_REST}.MessageNotReadableException"),
    "attributes": Kind(
        400, "hawkbit.server.error.repo.invalidTargetAttributes", f"{_REPOSITORY}.InvalidTargetAttributeException"
    ),
    "not-signed-in": Kind(401, "hawkbit.server.error.insufficientpermission", f"{_REPOSITORY}.InsufficientPermissionException"),
    "method": Kind(405, "hawkbit.server.error.operation.notSupported", f"{_REPOSITORY}.OperationNotSupportedException"),
    "too-slow": Kind(408, "hawkbit.server.error.rest.body.notReadable", f"{_REST}.MessageNotReadableException"),
    "too-large": Kind(413, "hawkbit.server.error.quota.fileSizeExceeded", f"{_REPOSITORY}.FileSizeQuotaExceededException"),
    "media-type": Kind(415, "hawkbit.server.error.rest.body.notReadable", f"{_REST}.MessageNotReadableException"),
    "range": Kind(416, "hawkbit.server.error.artifact.loadFailed", f"{_REPOSITORY}.ArtifactLoadFailedException"),
    "rate-limited": Kind(429, "hawkbit.server.error.quota.tooManyEntries", f"{_REPOSITORY}.QuotaExceededException"),
    "internal": Kind(500, "hawkbit.server.error.repo.genericError", f"{_REPOSITORY}.GenericServerException"),
    "unavailable": Kind(503, "hawkbit.server.error.repo.genericError", f"{_REPOSITORY}.GenericServerException"),
}
RETRY_S = 30


class Refused(Exception):
    """A request is refused.

    Attributes:
        kind: of `KINDS`.
        text: why, in words; never what the request contains.
        retry_after_s: seconds until it may succeed; None if that is unknown.
        headers: of the response, beside those of all refusals.
    """

    def __init__(self, kind: str, text: str, retry_after_s: int | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    @property
    def status(self) -> int:
        """Of HTTP."""
        return KINDS[self.kind].status

    def body(self) -> bytes:
        """In hawkBit's form."""
        kind = KINDS[self.kind]
        content = {"exceptionClass": kind.exception, "errorCode": kind.code, "message": self.text}
        return json.dumps(content, separators=(",", ":")).encode()
