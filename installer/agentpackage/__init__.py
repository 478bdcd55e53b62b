"""The agent's own package: what dpkg is asked, which packages are kept, and the way back if nobody commits a new one."""
