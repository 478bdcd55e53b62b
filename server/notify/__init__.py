"""Events of the server, and the webhooks that they are sent to."""
