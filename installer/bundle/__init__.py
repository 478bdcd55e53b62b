"""The form of a package for slots: reads it, judges every member of it, and unpacks what was judged.

Imports nothing of ours but `common`.
"""
