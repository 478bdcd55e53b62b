"""Commands for updates: the repository of packages and its keys, and which agent installs what."""
