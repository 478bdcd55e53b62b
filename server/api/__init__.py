"""The agents' endpoints over HTTP, the operations endpoint and the metrics."""
