"""Answers administrators on the admin socket: the service, and handlers by domain."""
