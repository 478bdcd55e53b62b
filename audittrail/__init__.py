"""The audit log's format: a chain of JSON lines, and its verification. Imports nothing of ours.

It is separate from the daemon so that an auditor's tools can check a copied log without any part of the agent running.
"""
