"""Restrictions that a process puts on itself. Nothing here knows any program; standard library and raw system calls only."""
