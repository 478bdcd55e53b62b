"""What the built wheels must do where only they are installed: no checkout, no TPM binding. For CI, not for pytest."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stand.programs import READY_S


def main() -> int:
    """A stand from the wheels: software works, and the TPM backend says what is missing."""
    bin_ = Path(sys.executable).parent
    directory = Path(tempfile.mkdtemp(prefix="smoke-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        refused = subprocess.run(
            [bin_ / "license-stand", "up", "--dir", directory / "tpm"],
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_S,
        )
        assert refused.returncode == 1 and "install tpm2-pytss" in refused.stderr, refused.stderr
        stand = subprocess.Popen([bin_ / "license-stand", "up", "--dir", directory / "s", "--backend", "software"])
        try:
            info = directory / "s" / "stand.json"
            ends = time.monotonic() + READY_S
            while not info.exists():
                assert stand.poll() is None and time.monotonic() < ends, "the stand did not come up"
                time.sleep(0.05)
            content = json.loads(info.read_text())
            env = {**os.environ, **content["env"]}
            for kind, status in (("valid", 0), ("expired", 1)):
                done = subprocess.run(
                    [bin_ / "license-agent-client", "--deadline", str(READY_S), "validate", content["tokens"][kind]],
                    env=env,
                    capture_output=True,
                    check=False,
                )
                assert done.returncode == status, (kind, done)
        finally:
            stand.send_signal(signal.SIGTERM)
            stand.wait(READY_S)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(directory)
    sys.stdout.write("the wheels work by themselves\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
