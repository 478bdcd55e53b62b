"""Devices that speak hawkBit's DDI: what they identify themselves with, and what they are offered to install. No HTTP."""
