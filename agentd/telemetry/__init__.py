"""Shows what the agent does: metrics, state file, views, alerts."""
