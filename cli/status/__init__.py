"""Shows how the agent is: `status`, `healthcheck`, and what they say."""
