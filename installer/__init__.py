"""The root side of the agent: carries out the core's typed orders, and has no network.

Imports ipc, confine, settings and common only.
"""

from common.version import VERSION as VERSION
