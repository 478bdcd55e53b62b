"""Whatever stands in an audit log, its check ends with a result."""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["audittrail"]):
        import audittrail.verify  # noqa: F401


from audittrail.chain import ZERO_HASH
from audittrail.verify import verify_lines


def check(data: bytes) -> None:
    """Checks the bytes as a log, and as the content of records whose hashes are right."""
    verify_lines(data.splitlines(keepends=True))
    verify_lines([line + b"\n" for line in data.split(b"\n")])
    lines, prev = [], ZERO_HASH
    for number, part in enumerate(data.split(b"\n"), start=1):
        whole = b'{"seq":%d,' % number + part + b',"prev":"' + prev
        prev = hashlib.sha256(whole + b'"').hexdigest().encode()
        lines.append(whole + b'","hash":"' + prev + b'"}\n')
    result = verify_lines(lines)
    if result.problem is None and result.records != len(lines):
        raise AssertionError("records are not counted")


def main() -> None:
    """Runs under libFuzzer; its options come from the command line."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
