"""The daemon's core. `main` wires the parts; everything else is given what it needs, time included."""

VERSION = "0.1.0"
