"""Makes what a guest needs to update its whole system: signed papers and bundles, as an updater stages them.

    .venv/bin/python tests/e2e/raucpapers.py DIRECTORY

The vendor, the license server and RAUC's signer are those of the tests; the machine believes them by its `update-trust.json`.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import stagedupdates as vendor
from tests.support.raucs import PRODUCT, bundle, key
from updatetrust.trustfile import encode_trust_file


def make(directory: Path) -> None:
    """Writes the papers, and `names.json` with the SHA-256 of each package."""
    staged = directory / "staged"
    staged.mkdir(parents=True)
    (directory / "update-trust.json").write_bytes(encode_trust_file(vendor.trust()))
    (directory / "keyring.pem").write_bytes(key("vendor")[1])
    packages = {
        "good": bundle("2.0", "verity"),
        "plain": bundle("2.0", "plain"),
        "stranger": bundle("2.0", "verity", signer="stranger"),
        "oven": bundle("2.0", "verity", compatible="oven"),
    }
    names = {}
    for number, (name, data) in enumerate(sorted(packages.items(), key=lambda item: item[0] == "good"), 1):
        order = vendor.directive("2.0", data, number, product=PRODUCT, target=vendor.path_of("2.0", PRODUCT))
        sha256 = names[name] = vendor.stage(staged, "2.0", data, directive=order)
        for file, content in vendor.metadata({"2.0": data}, number, product=PRODUCT, kind="rauc").items():
            (staged / sha256 / "metadata" / file).write_bytes(content)
    (directory / "names.json").write_text(json.dumps(names))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
