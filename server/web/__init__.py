"""HTTP and TLS: listeners, protocol, peers, middleware, responses."""
