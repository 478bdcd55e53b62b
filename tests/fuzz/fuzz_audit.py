"""Whatever stands in an audit log, its check ends with a result."""

import contextlib
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["audittrail"]):
        import audittrail.whole  # noqa: F401


from audittrail import anchor
from audittrail.archive import ArchiveDamaged, lines, read_header
from audittrail.certificate import certified_value
from audittrail.chain import ZERO_HASH
from audittrail.verify import verify_lines


def check(data: bytes) -> None:
    """Checks the bytes as a log, as the content of records whose hashes are right, and as what lies beside a log."""
    verify_lines(data.splitlines(keepends=True))
    verify_lines([line + b"\n" for line in data.split(b"\n")])
    for kind, read in ((ArchiveDamaged, read_header), (ValueError, certified_value), (ValueError, anchor.decode)):
        with contextlib.suppress(kind):
            read(data)
    with contextlib.suppress(ArchiveDamaged):
        list(lines(data))
    made, prev = [], ZERO_HASH
    for number, part in enumerate(data.split(b"\n"), start=1):
        whole = b'{"seq":%d,"class":"' % number + part + b',"prev":"' + prev
        prev = hashlib.sha256(whole + b'"').hexdigest().encode()
        made.append(whole + b'","hash":"' + prev + b'"}\n')
    result = verify_lines(made)
    if result.problem is None and result.records != len(made):
        raise AssertionError("records are not counted")


def main() -> None:
    """Runs under libFuzzer; its options come from the command line."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
