"""What somebody on the bus, or a disturbed bit, makes of one response of the TPM."""

from collections import Counter
from collections.abc import Callable

from tests.hwsec.relay import Exchange, Relay

HEAD = 10  # tag, size, response code (Part 1, 18.8)

Fault = Callable[[Exchange, list[Exchange]], bytes | None]
"""Makes the response that the agent gets; None if it can do nothing with this one. The second argument is what came before."""


def refusal(code: int) -> bytes:
    """A response that says no, as the TPM itself would: without session and HMAC."""
    return b"\x80\x01" + HEAD.to_bytes(4, "big") + code.to_bytes(4, "big")


def flipped(exchange: Exchange, at: int, bit: int = 1) -> bytes:
    response = bytearray(exchange.response)
    response[at] ^= bit
    return bytes(response)


def _truncated(exchange: Exchange, _before: list[Exchange]) -> bytes | None:
    size = max(len(exchange.response) // 2, HEAD)
    return exchange.response[:2] + size.to_bytes(4, "big") + exchange.response[6:size]


def _replayed(exchange: Exchange, before: list[Exchange]) -> bytes | None:
    old = [each.response for each in before if each.code == exchange.code and each.response != exchange.response]
    return old[-1] if old else None


def _nonce(exchange: Exchange, _before: list[Exchange]) -> bytes | None:
    # Nonce (2 + 32), attributes (1) and HMAC (2 + 32) of the first session come last where there is one session.
    return flipped(exchange, -60) if exchange.response[:2] == b"\x80\x02" and len(exchange.response) > 80 else None


FAULTS: dict[str, Fault] = {
    "a bit of the code": lambda exchange, _before: flipped(exchange, 9),
    "another bit of the code": lambda exchange, _before: flipped(exchange, 8),
    "a bit of the body": lambda exchange, _before: flipped(exchange, 12) if len(exchange.response) > 12 else None,
    "the HMAC": lambda exchange, _before: flipped(exchange, -1) if len(exchange.response) > HEAD else None,
    "the nonce": _nonce,
    "an earlier answer": _replayed,
    "cut short": _truncated,
    "TPM_RC_FAILURE": lambda _exchange, _before: refusal(0x101),
    "TPM_RC_AUTH_FAIL": lambda _exchange, _before: refusal(0x98E),
    "TPM_RC_BAD_AUTH": lambda _exchange, _before: refusal(0x9A2),
    "TPM_RC_LOCKOUT": lambda _exchange, _before: refusal(0x921),
    "TPM_RC_HANDLE": lambda _exchange, _before: refusal(0x18B),
    "TPM_RC_NV_UNINITIALIZED": lambda _exchange, _before: refusal(0x14A),
    "TPM_RC_INTEGRITY": lambda _exchange, _before: refusal(0x1DF),
    "TPM_RC_POLICY_FAIL": lambda _exchange, _before: refusal(0x99D),
    "TPM_RC_REFERENCE_S0": lambda _exchange, _before: refusal(0x918),
    "TPM_RC_OBJECT_MEMORY": lambda _exchange, _before: refusal(0x902),
    "TPM_RC_CURVE": lambda _exchange, _before: refusal(0x2E6),
}


class Once:
    """Lets a fault happen to one response: the last of its command in a sequence, as it was counted before.

    Attributes:
        happened: whether it has.
    """

    def __init__(self, relay: Relay, fault: Fault, code: int, occurrence: int) -> None:
        self._relay = relay
        self._fault = fault
        self._code = code
        self._occurrence = occurrence
        self.happened = False
        del relay.log[:]
        relay.answer = self

    def __call__(self, exchange: Exchange) -> bytes:
        if self.happened or exchange.code != self._code:
            return exchange.response
        self._occurrence -= 1
        if self._occurrence:
            return exchange.response
        self.happened = True
        return self._fault(exchange, self._relay.log[:-1]) or exchange.response


def commands_of(relay: Relay, use: Callable[[], object]) -> Counter[int]:
    """Which commands a use sends, and how often."""
    leave_alone(relay)
    del relay.log[:]
    use()
    return Counter(exchange.code for exchange in relay.log)


def leave_alone(relay: Relay) -> None:
    """From now on every response passes as it is."""
    relay.answer = lambda exchange: exchange.response
