"""Lists every act. The operator API, the command line and the console have no others.

A new act goes into the file of its subject, and is in this list by that; its name, path and scope never change afterwards.
"""

from . import agents, licenses, secrets
from .act import Act

ACTS: tuple[Act, ...] = (*agents.ACTS, *licenses.ACTS, *secrets.ACTS)
BY_NAME: dict[str, Act] = {act.name: act for act in ACTS}
