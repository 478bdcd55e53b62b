"""Answers the signed requests of agents."""
