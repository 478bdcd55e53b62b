"""Runs `license-agent-client` as `python -m license_agent_client`."""

from .posclient.shell import entry

entry()
