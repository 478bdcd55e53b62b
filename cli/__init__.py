"""The administrator's command, `license-agent-cli`. Imports `ipc`, `audittrail` and `common` only."""
