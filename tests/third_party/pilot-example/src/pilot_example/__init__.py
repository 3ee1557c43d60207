"""Plug-ins outside the pilot's own tree: found by the entry points in `pyproject.toml`, installed with pip."""
