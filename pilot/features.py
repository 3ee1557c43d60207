"""Machine and job features (HSF-TN-2016-02): what a site says of the machine and the slot, a key a file or a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pilot.errors import PilotError

#: Variable to the keys that are read (PILOT3 7.8).
KEYS: Mapping[str, tuple[str, ...]] = {
    "MACHINEFEATURES": ("hs06", "shutdowntime", "total_cpu", "grace_secs"),
    "JOBFEATURES": (
        *("allocated_cpu", "hs06_job", "shutdowntime_job", "grace_secs_job", "jobstart_secs", "job_id"),
        *("wall_limit_secs", "cpu_limit_secs", "max_rss_bytes", "max_swap_bytes", "scratch_limit_bytes"),
    ),
}

#: Most bytes of one value.
_ENOUGH = 200


def read_features(environ: Mapping[str, str], fetch: Callable[[str], bytes] | None = None) -> dict[str, str]:
    """Values by key; those that are not there are left out. Blocks.

    Args:
        environ: `MACHINEFEATURES` and `JOBFEATURES` in it.
        fetch: brings what is at a URL, raises a `PilotError` or an OSError; None to read directories only. Where the
            first key cannot be reached the others are not tried.
    """
    found: dict[str, str] = {}
    for variable, keys in KEYS.items():
        place = environ.get(variable, "").strip()
        if "://" in place:
            found |= _fetched(place.rstrip("/"), keys, fetch) if fetch else {}
        elif place:
            found |= {key: value for key in keys if (value := _read(Path(place, key)))}
    return found


def benchmark_share(environ: Mapping[str, str], cores: int) -> dict[str, str]:
    """`hs06` for jobMetrics: the machine's, as far as the job's cores go (PILOT3 2.7); empty if unknown."""
    features = read_features(environ)
    try:
        share = float(features["hs06"]) * cores / float(features["total_cpu"])
    except (KeyError, ValueError, ZeroDivisionError):
        return {}
    return {"hs06": f"{share:.2f}"}


def _read(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(_ENOUGH).strip()
    except OSError:
        return ""


def _fetched(place: str, keys: tuple[str, ...], fetch: Callable[[str], bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in keys:
        try:
            found[key] = fetch(f"{place}/{key}")[:_ENOUGH].decode("utf-8", "replace").strip()
        except OSError:  # time is up or nobody listens
            break
        except PilotError:  # there is no such key
            continue
    return found
