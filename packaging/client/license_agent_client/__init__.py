"""Client of the license agent for POS applications.

    from license_agent_client import LicenseClient

    with LicenseClient() as client:
        verdict = client.validate(token)
        if verdict.valid and "fuel" in verdict.features:
            ...

An invalid license is a verdict with a `reason`, not an exception. `AgentUnavailable` means that no verdict could be had
within the deadline. Every exception of this library is a `LicenseAgentError`.
"""

from .clientwire import AgentInfo, Reason, Verdict
from .errors import ErrorCode, LicenseAgentError, LocalProtocolError, ProtocolError, RemoteProtocolError
from .peer import UntrustedDaemon
from .posclient.aioclient import AsyncLicenseClient
from .posclient.calls import RefreshCallback
from .posclient.client import LicenseClient
from .posclient.policy import AgentRefused, AgentUnavailable, TokenFileError
from .posclient.tokenfile import TokenFile
from .posclient.version import __version__

__all__ = [
    "AgentInfo",
    "AgentRefused",
    "AgentUnavailable",
    "AsyncLicenseClient",
    "ErrorCode",
    "LicenseAgentError",
    "LicenseClient",
    "LocalProtocolError",
    "ProtocolError",
    "Reason",
    "RefreshCallback",
    "RemoteProtocolError",
    "TokenFile",
    "TokenFileError",
    "UntrustedDaemon",
    "Verdict",
    "__version__",
]
