"""Any text is a directive, a target, a trust file, a version or metadata of updates, or one typed error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["contracts", "updatetrust"]):
        import updatetrust.metadata
        import updatetrust.trustfile  # noqa: F401


from dataclasses import replace

from contracts.directive import Directive, verify_directive
from contracts.exchange import convert
from contracts.jose import BadSignature, MalformedToken, parse_json_object
from contracts.trust import Trust
from tests.support.tufrepository import UpdateRepository
from tests.vectors.make_directive import CONTENT, NOW
from updatetrust.metadata import KeptVersions, MetadataRefused, verify_offline
from updatetrust.target import MalformedTarget, read_target
from updatetrust.trustfile import BadTrustFile, parse_trust_file
from updatetrust.version import MalformedVersion, Version

NOBODY = Trust("issuer", {}, {})
REPOSITORY = UpdateRepository(NOW)
FILES, ROOT = REPOSITORY.files(), REPOSITORY.bootstrap
TYPED = (BadSignature, BadTrustFile, MalformedTarget, MalformedToken, MalformedVersion, MetadataRefused)


def check(data: bytes) -> None:
    """Reads the bytes as each of them; as metadata in the place of each file of a genuine set."""
    text = data.decode("utf-8", "replace")
    for attempt in (
        lambda: verify_directive(text, NOBODY),
        lambda: convert(parse_json_object(data, "directive"), Directive, "directive"),
        lambda: read_target(CONTENT["target"], 12, {"sha256": "0" * 64}, parse_json_object(data, "custom")),
        lambda: parse_trust_file(data),
        lambda: Version.parse(text),
        lambda: verify_offline(FILES, data, KeptVersions(), NOW),
        lambda: verify_offline(replace(FILES, roots={**FILES.roots, 2: data}), ROOT, KeptVersions(), NOW),
        lambda: verify_offline(replace(FILES, timestamp=data), ROOT, KeptVersions(), NOW),
        lambda: verify_offline(replace(FILES, targets=data), ROOT, KeptVersions(), NOW),
    ):
        try:
            attempt()
        except TYPED as error:
            str(error)


def main() -> None:
    """Runs under libFuzzer; its options come from the command line."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
