"""The server's no to an agent: a code and words. It becomes a signed refusal."""

from contracts.exchange import RefusalCode


class RequestRefused(Exception):
    """What was asked is not done.

    Attributes:
        code: why.
        text: in words; the agent's administrator reads it.
        retry_after_s: when it may be tried again; None if that is of no use, or not known.
    """

    def __init__(self, code: RefusalCode, text: str, retry_after_s: int | None = None) -> None:
        super().__init__(f"{code.value}: {text}")
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s
