"""How versions of a product are put on the machine, one file for each way, behind one contract.

Imports the bundle's format and `common`; knows neither orders nor trust.
"""
