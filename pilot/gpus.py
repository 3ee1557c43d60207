"""The GPUs of this node, and what processes use of them, as `nvidia-smi` tells."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: Seconds for `nvidia-smi`: a driver that wakes up many cards takes some.
_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One model of GPU. `memory` in MB of one of them; texts are empty where the driver does not say."""

    model: str
    memory: int
    architecture: str = ""
    driver: str = ""
    cuda: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """What processes use of GPUs at a moment.

    Attributes:
        gpus: how many they are on.
        sm: % of the time that multiprocessors were busy, the sum over processes and GPUs.
        memory: % of the time that memory was read or written, the same sum.
        framebuffer: memory, kB.
    """

    gpus: int = 0
    sm: int = 0
    memory: int = 0
    framebuffer: int = 0


def read_gpus(environ: Mapping[str, str]) -> dict[Gpu, int]:
    """Models, and how many there are of each; empty without `nvidia-smi` on `PATH`. Blocks; raises nothing."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return {}
    try:
        return parse_gpus(_output([program, "-q", "-x"]))
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # a driver that does not fit its program, ...
        logger.warning("nvidia-smi does not tell the GPUs: %s", error)
        return {}


def read_use(program: str, pids: Collection[int]) -> GpuUse:
    """What processes use now. Blocks for a second, over which the driver averages.

    Raises:
        ValueError: the program does not tell.
    """
    try:
        return parse_use(_output([program, "pmon", "-s", "um", "-c", "1"]).decode(errors="replace"), pids)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{program} does not tell what processes use: {error}") from error


def parse_use(table: str, pids: Collection[int]) -> GpuUse:
    """The same from what `nvidia-smi pmon` prints: columns differ from driver to driver, and are named in a comment.

    Raises:
        ValueError: there are no such columns.
    """
    names: list[str] = []
    gpus: set[str] = set()
    sums = dict.fromkeys(("sm", "mem", "fb"), 0)
    for line in table.splitlines():
        if line.startswith("#"):
            names = names or line.lstrip("# ").split()
            continue
        row = dict(zip(names, line.split(), strict=False))
        if row.get("pid", "").isdecimal() and int(row["pid"]) in pids:
            gpus.add(row["gpu"])
            sums = {name: total + _number(row.get(name, "")) for name, total in sums.items()}
    if not {"gpu", "pid", *sums} <= set(names):
        raise ValueError(f"nvidia-smi pmon has columns {names}")
    return GpuUse(gpus=len(gpus), sm=sums["sm"], memory=sums["mem"], framebuffer=sums["fb"] << 10)


def parse_gpus(xml: bytes) -> dict[Gpu, int]:
    """The same from what `nvidia-smi -q -x` prints (nvidia_smi_log, DTD versions 10 to 12).

    Raises:
        ValueError: it is no such text.
    """
    from xml.etree.ElementTree import ParseError, fromstring

    try:
        top = fromstring(xml)  # noqa: S314 - from a program of the node, as trusted as the node
    except ParseError as error:
        raise ValueError(f"no XML: {error}") from error
    driver, cuda = top.findtext("driver_version", ""), top.findtext("cuda_version", "")
    return dict(
        Counter(
            Gpu(
                model=_known(card.findtext("product_name", "")),
                memory=_megabytes(card.findtext("fb_memory_usage/total", "")),
                architecture=_known(card.findtext("product_architecture", "")),
                driver=_known(driver),
                cuda=_known(cuda),
            )
            for card in top.iter("gpu")
        )
    )


def _output(command: Sequence[str]) -> bytes:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT,
        check=True,
    ).stdout


def _number(text: str) -> int:
    """`-` where the driver does not say."""
    return int(text) if text.isdecimal() else 0


def _known(text: str) -> str:
    return "" if text.strip() in ("N/A", "[N/A]", "Unknown") else text.strip()


def _megabytes(text: str) -> int:
    found = re.match(r"\s*(\d+) Mi?B", text)
    return int(found[1]) if found else 0
