"""Downloads, verifies and stages updates. Has no secret, no root, no TPM and no network: it reads the repository by the link.

Imports ipc, confine, settings, updatetrust and common only.
"""

from common.version import VERSION as VERSION
