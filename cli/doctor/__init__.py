"""Finds what is wrong with the agent and its machine. Changes nothing, and needs no agent that runs."""

from .command import doctor

COMMANDS = (doctor,)
