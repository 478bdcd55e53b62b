"""What fleets set on their agents: configurations and their history, documents for agents, drift, and what opens when."""
