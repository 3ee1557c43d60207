"""Catalogues: where the replicas of files are."""
