"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "pilot-toolkit"
author = "its authors"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "pilot-toolkit"
html_copy_source = False
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which are for readers of the source


def _write_error_codes(app: Any) -> None:
    from pilot.errordoc import page

    target = Path(app.srcdir) / "error-codes.md"
    text = page()
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def setup(app: Any) -> None:
    """The page of error codes is made from the code at each build."""
    app.connect("builder-inited", _write_error_codes)
