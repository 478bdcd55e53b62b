"""Devices: their rows, tags, attributes and versions, and the selection language that names some of them."""
