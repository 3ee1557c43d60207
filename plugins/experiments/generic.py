"""The experiment for everybody: the behaviour of the engine as it is, and the base to start a new one from."""

from __future__ import annotations

from pilot.experiment import Experiment


class Generic(Experiment):
    """No difference from the engine's own behaviour."""

    name = "generic"
