"""The version, in one place: pyproject, `--version`, the User-Agent and the pilot id read it here."""

__version__ = "4.0.0.dev0"
