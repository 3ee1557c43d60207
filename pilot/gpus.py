"""The GPUs of this node, as `nvidia-smi` tells them."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
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


def read_gpus(environ: Mapping[str, str]) -> dict[Gpu, int]:
    """Models, and how many there are of each; empty without `nvidia-smi` on `PATH`. Blocks; raises nothing."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return {}
    try:
        done = subprocess.run(
            [program, "-q", "-x"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=True,
        )
        return parse_gpus(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # a driver that does not fit its program, ...
        logger.warning("nvidia-smi does not tell the GPUs: %s", error)
        return {}


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


def _known(text: str) -> str:
    return "" if text.strip() in ("N/A", "[N/A]", "Unknown") else text.strip()


def _megabytes(text: str) -> int:
    found = re.match(r"\s*(\d+) Mi?B", text)
    return int(found[1]) if found else 0
