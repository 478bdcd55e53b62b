"""Lets a vendor test a POS application against every verdict: a fake of the agent, a driver of a real stand, a pytest plugin.

Nothing on a machine with licenses imports this package. A fake decides nothing by cryptography: its tokens are texts that it
made up, its agent id (`fake:pos-001`) is one that no agent can have, every reply of it says `fake`, and a client logs a warning
for each verdict that comes from one. A real agent refuses its tokens as `malformed`.
"""

from .base import AgentInTest, NotAvailable
from .fake import FakeLicenseAgent
from .standagent import StandLicenseAgent

__all__ = ["AgentInTest", "FakeLicenseAgent", "NotAvailable", "StandLicenseAgent"]
