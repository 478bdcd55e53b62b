"""Holds the version of this release, which every program prints. The client library has a version of its own."""

VERSION = "0.1.0"
