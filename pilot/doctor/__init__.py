"""A look at the node before a pilot uses it: `pilot doctor`.

A check is a function that takes the `Patient` and returns a `Finding`, or None if it has nothing to look at. To add
one, write it in the module of its subject and put it into the table in `examine.py`.
"""
