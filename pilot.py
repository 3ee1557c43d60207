#!/usr/bin/env python3
"""Start a pilot as wrappers do: `python3 pilot.py -q QUEUE ...` is `pilot run -q QUEUE ...`."""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this is who tells the user
        sys.exit(f"pilot.py: Python >= 3.11 is needed, this is {sys.version.split()[0]}")
    try:
        import psutil  # noqa: F401
        import urllib3  # noqa: F401
    except ModuleNotFoundError as missing:
        sys.exit(f"pilot.py: {missing.name} is missing; run `make install` here, or install the package with pip")
    from pilot.cli.main import main

    sys.exit(main(["run", *sys.argv[1:]]))
