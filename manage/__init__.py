"""The optional REST interface for administrators: on loopback, behind mutual TLS, without any authority of its own."""
