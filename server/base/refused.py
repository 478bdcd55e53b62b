"""The refusal of an agent's or a device's request: a code and a text, which become a signed refusal."""

from contracts.exchange import RefusalCode


class RequestRefused(Exception):
    """A request is refused.

    Attributes:
        code: the reason.
        text: the reason in words, for the agent's administrator.
        retry_after_s: seconds until the request may succeed; None if that is unknown, or trying again is of no use.
    """

    def __init__(self, code: RefusalCode, text: str, retry_after_s: int | None = None) -> None:
        super().__init__(f"{code.value}: {text}")
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s
