"""Runs `license-agent-client` as `python -m license_agent_client`."""

from .shell import entry

entry()
