"""`license-agent-cli`: the administrator's command. Imports `ipc` and `audittrail` only."""
