"""A pluggable pilot for worker nodes. Start reading at `pilot.jobrun`: one job from acquired to reported."""

from pilot.version import __version__

__all__ = ["__version__"]
