"""Updater, installer and what systemd does for them on a stand: the programs of a till, with other paths and users.

`license-stand` starts them, as `python -m standupdates NAME OPTIONS`; nothing imports this folder, and no package for a till
has it. What runs is the updater's own `run` and the installer's own `serve`: every check of theirs is made. Only what a till
has fixed is named here: where things are, and who owns them.
"""
