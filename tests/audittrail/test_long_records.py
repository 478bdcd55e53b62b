"""A record that would be too long for its own verification is shortened, and says by how much."""

import json

from audittrail.chain import MAX_LINE_BYTES, Chain
from audittrail.verify import verify_lines


def test_a_record_that_is_too_long_is_shortened_and_the_chain_holds() -> None:
    chain = Chain()
    lines = [
        chain.append(1.0, 1.0, "a.b", "ok", {"actor": {"uid": 7}, "text": "x" * size})
        for size in (10, MAX_LINE_BYTES, 100_000, 10)
    ]
    result = verify_lines(lines)
    assert result.ok and result.last_seq == 4
    assert all(len(line) <= MAX_LINE_BYTES for line in lines)
    short = json.loads(lines[2])
    assert short["actor"] == {"uid": 7} and short["left_out_bytes"] > 100_000 and "text" not in short
