"""The maps of this node that experiments collect: its CPUs, memory and disk, and its GPUs (PILOT3 7.8)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilot.gpus import Gpu, read_gpus
from pilot.node import NodeFacts
from pilot.queuedata import Queue
from pilot.server import Server
from pilot.stop import in_thread

logger = logging.getLogger(__name__)

#: Their files in the pilot's directory and, as copies, in the log of each job (PILOT3 1.5, 5.7).
NODE_MAP, GPU_MAP = "workernode_map.json", "gpu_map.json"


def node_map(node: NodeFacts, queue: Queue, disk: int) -> dict[str, Any]:
    """The map of a node whose work directory is on a file system of `disk` bytes. What is not known is left out."""
    known = {
        "site": queue.site or queue.resource,
        "panda_queue": queue.name,
        "host_name": node.host,
        "cpu_model": node.cpu_model or node.architecture,
        "n_logical_cpus": node.logical_cpus,
        "n_sockets": node.sockets,
        "cores_per_socket": node.cores_per_socket,
        "threads_per_core": node.threads_per_core,
        "cpu_architecture": node.architecture,
        "cpu_architecture_level": node.architecture_level,
        "clock_speed": node.cpu_mhz,
        "total_memory": node.memory,
        "total_local_disk": disk >> 30,
    }
    return {name: value for name, value in known.items() if value}


def gpu_maps(gpus: Mapping[Gpu, int], node: NodeFacts, queue: Queue) -> list[dict[str, Any]]:
    """A map for each model of GPU."""
    maps = [
        {
            "site": queue.site or queue.resource,
            "host_name": node.host,
            "vendor": "NVIDIA",
            "model": gpu.model,
            "architecture": gpu.architecture,
            "vram": gpu.memory,
            "framework": "CUDA" if gpu.cuda else "",
            "framework_version": gpu.cuda,
            "driver_version": gpu.driver,
            "count": count,
        }
        for gpu, count in gpus.items()
    ]
    return [{name: value for name, value in one.items() if value} for one in maps]


async def tell_node(
    node: NodeFacts, queue: Queue, main_dir: Path, environ: Mapping[str, str], server: Server | None
) -> None:
    """Write the maps, and send them if there is a server that wants them. No job waits for it, none fails for it."""
    known = node_map(node, queue, shutil.disk_usage(main_dir).total)
    _write(main_dir / NODE_MAP, known)
    gpus = gpu_maps(await in_thread(read_gpus, environ), node, queue)
    if gpus:
        logger.info("GPUs: %s", ", ".join(f"{one['count']} x {one.get('model')}" for one in gpus))
        _write(main_dir / GPU_MAP, gpus[0] if len(gpus) == 1 else gpus)
    if server is not None:
        await server.update_worker_node(known)
        for one in gpus:
            await server.update_worker_gpu(one)


def copy_maps(main_dir: Path, workdir: Path) -> None:
    """Put the maps beside a job's files; what the job itself calls so stays."""
    for name in (NODE_MAP, GPU_MAP):
        try:
            data = (main_dir / name).read_bytes()
            with open(workdir / name, "xb") as file:
                file.write(data)
        except OSError:  # there is none, or it is there
            continue


def _write(path: Path, value: Any) -> None:
    """By rename, since several pilots may be started in one directory, and a job's log may be packed meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value) + "\n")
        temporary.replace(path)
    except OSError as error:
        logger.warning("%s is not written: %s", path, error.strerror)
        temporary.unlink(missing_ok=True)
