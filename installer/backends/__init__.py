"""How versions of a product are put on the machine, one file for each way, behind one contract.

Knows neither orders nor trust.
"""
