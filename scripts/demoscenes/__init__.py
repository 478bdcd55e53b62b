"""What the demo shows, by theme. Every verdict comes from the agent, over its real socket; none is worked out here."""
