"""Reads `[certificates]` of the configuration: how long before its end the client certificate is renewed. Pure."""

from dataclasses import dataclass

from contracts.contact.configuration import BOUNDS
from settings.sections import Key, Keys
from settings.values import integer


@dataclass(frozen=True, slots=True)
class CertificatesConfig:
    """`[certificates]`: when the client certificate is renewed. The agent renews it in any case; no value switches that off.

    Attributes:
        renew_days_before: so many days before its end at the latest; None for a quarter of its time.
        stagger_days: over so many days before that agents are spread; None for 15 % of its time.
    """

    renew_days_before: int | None = None
    stagger_days: int | None = None


CERTIFICATES_KEYS: Keys = {
    "renew_days_before": Key(integer(*BOUNDS["certificates.renew_days_before"])),
    "stagger_days": Key(integer(*BOUNDS["certificates.stagger_days"])),
}
