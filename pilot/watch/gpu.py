"""Look at what a payload uses of the GPUs, for its time line; it has no limit."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pilot.gpus import Gpu, GpuUse, read_gpus, read_use

logger = logging.getLogger(__name__)

#: Seconds between two looks, the first ones closer: each takes `nvidia-smi` some 50 ms of CPU, so that it is 0.1 % of a
#: core on long runs.
_FIRST, _LONGEST = 1.0, 60.0

#: Looks in vain, one after another, after which there are no more.
_TRIES = 3


class GpuLook:
    """Asks `nvidia-smi` in a thread; never again where there is none, or once it has failed three times in a row.

    The driver counts processes of the whole node by their pids there: of a pilot that has a pid namespace of its own,
    such as in a pod, none is found, and 0 is told.

    Args:
        members: pids of the payload.
        environ: `nvidia-smi` is looked for on its `PATH`.
    """

    slow = True

    def __init__(self, members: Callable[[], list[int]], environ: Mapping[str, str]) -> None:
        self._program = shutil.which("nvidia-smi", path=environ.get("PATH"))
        self._members = members
        self._environ = environ
        self._cards: Mapping[Gpu, int] | None = None
        self._period = _FIRST
        self._failures = self._count = 0
        self._sums = dict.fromkeys(_FIELDS, 0)
        self._peaks = dict.fromkeys(_FIELDS, 0)
        self.last = GpuUse()

    @property
    def works(self) -> bool:
        """Whether there is a program to ask."""
        return self._program is not None

    def look(self) -> float:
        """Every minute."""
        if self._program is None:
            return math.inf
        if self._cards is None:
            self._cards = read_gpus(self._environ)
        try:
            self._add(read_use(self._program, self._members()))
        except ValueError as error:
            return self._failed(error)
        self._failures = 0
        self._period = min(self._period * 2, _LONGEST)
        return self._period

    def now(self) -> dict[str, int]:
        """The last numbers, by prmon's names."""
        return _by_prmons_names(asdict(self.last))

    def most(self) -> dict[str, int]:
        """The highest numbers, by prmon's names."""
        return _by_prmons_names(self._peaks)

    def mean(self) -> dict[str, int]:
        """The means, by prmon's names."""
        return _by_prmons_names({name: total // max(1, self._count) for name, total in self._sums.items()})

    def hardware(self) -> dict[str, Any]:
        """The cards, as prmon has them."""
        cards = [card for card, count in (self._cards or {}).items() for _ in range(count)]
        named = {
            f"gpu_{number}": {"name": card.model, "total_mem": card.memory << 10} for number, card in enumerate(cards)
        }
        return {"gpu": {"nGPU": len(cards), **named}}

    def _add(self, use: GpuUse) -> None:
        self.last = use
        self._count += 1
        for name, value in asdict(use).items():
            self._sums[name] += value
            self._peaks[name] = max(self._peaks[name], value)

    def _failed(self, error: ValueError) -> float:
        self.last = GpuUse()
        self._failures += 1
        if self._failures >= _TRIES:
            logger.warning("%s: not asked again", error)
            return math.inf
        return _LONGEST


#: Ours to prmon's (nvidiamon of prmon 3).
_FIELDS = {"gpus": "ngpus", "sm": "gpusmpct", "memory": "gpumempct", "framebuffer": "gpufbmem"}


def _by_prmons_names(values: Mapping[str, int]) -> dict[str, int]:
    return {_FIELDS[name]: value for name, value in values.items()}
