"""The page of error codes for the docs, written from the tables. Print it with `python -m pilot.errordoc`."""

from __future__ import annotations

from pilot.causes import CAUSES
from pilot.errors import Code

_HEAD = """\
# Error codes

What a job's report carries as `pilotErrorCode`, with its fixed text. Behind the text stands what happened in this case,
with names and numbers: read that first. `pilot explain CODE` prints the same on a node.

*Whose* tells where to look first: the job and its **user**, the **site** with its node, batch system and queue, a
**storage** or catalogue, the PanDA **server**, or a bug of the **pilot**.

A code that an analysis job may recover from is reported negated. The pilot itself ends with the exit status of the
right column when the code ended it; `pilot explain --exit 79` finds the codes behind one.

| code | name and text | whose | cause and cure | exit |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(code) for code in Code)


def _row(code: Code) -> str:
    fault, cause, cure = CAUSES[code]
    return f"| {int(code)} | `{code.name}`<br>{code.text} | {fault.value} | {cause} {cure} | {code.exit_code} |\n"


if __name__ == "__main__":
    print(page(), end="")
