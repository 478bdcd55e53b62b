"""Client of the license agent for POS applications.

    from license_agent_client import LicenseClient

    with LicenseClient() as client:
        if client.require("fuel").valid:
            ...

The agent holds the licenses of its machine. A till that keeps a license token of its own has it judged by
`client.validate(token)`. An invalid license is a verdict with a `reason`, not an exception. `AgentUnavailable` means that no
verdict could be had within the deadline. Every exception of this library is a `LicenseAgentError`.
"""

from .answers import (
    AgentInfo,
    ConsentAnswer,
    FeatureVerdict,
    HeldLicense,
    LicenseReason,
    Reason,
    UsageCount,
    Verdict,
    WaitingUpdate,
)
from .errors import ErrorCode, LicenseAgentError, LocalProtocolError, ProtocolError, RemoteProtocolError
from .peer import UntrustedDaemon
from .posclient.aioclient import AsyncLicenseClient
from .posclient.calls import RefreshCallback
from .posclient.client import LicenseClient
from .posclient.policy import AgentRefused, AgentTooOld, AgentUnavailable, TokenFileError
from .posclient.tokenfile import TokenFile
from .posclient.version import __version__

__all__ = [
    "AgentInfo",
    "AgentRefused",
    "AgentTooOld",
    "AgentUnavailable",
    "AsyncLicenseClient",
    "ConsentAnswer",
    "ErrorCode",
    "FeatureVerdict",
    "HeldLicense",
    "LicenseAgentError",
    "LicenseClient",
    "LicenseReason",
    "LocalProtocolError",
    "ProtocolError",
    "Reason",
    "RefreshCallback",
    "RemoteProtocolError",
    "TokenFile",
    "TokenFileError",
    "UntrustedDaemon",
    "UsageCount",
    "Verdict",
    "WaitingUpdate",
    "__version__",
]
