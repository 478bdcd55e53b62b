"""Imports the TPM library when it is first needed, so that a missing one is an error of its use."""

import contextlib
import os
from typing import Any

from ..errors import BackendUnavailable


def library() -> Any:
    """The module tpm2_pytss.

    Raises:
        BackendUnavailable: it, or Debian's libtss2 below it, is not there.
    """
    # The library logs every refusal to stderr by itself; ours are typed errors.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise BackendUnavailable(
            f"the TPM library cannot be loaded ({error}); install tpm2-pytss (the extra 'tpm') and Debian's libtss2, "
            "or set [tpm] enabled = false to work without a TPM"
        ) from None
    return tpm2_pytss


def preload_library() -> None:
    """Imports the TPM library now; a missing one is an error when it is used."""
    with contextlib.suppress(BackendUnavailable):
        library()
