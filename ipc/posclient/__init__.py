"""The client library for POS applications, and the command `license-agent-client`."""
