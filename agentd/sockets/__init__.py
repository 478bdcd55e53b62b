"""Listens, accepts, frames and limits the connections of both sockets."""
