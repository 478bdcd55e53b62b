"""Handles administrators' requests, by domain: each file has the operations of one."""
