"""What settings and queue allow the staging engine."""

from __future__ import annotations

from pathlib import Path

from pilot.queuedata import Queue
from pilot.queuedata.fields import FALSE
from pilot.settings import Settings
from pilot.staging.cache import InputCache
from pilot.staging.call import StagingLimits
from pilot.staging.pace import PaceLimits
from pilot.staging.room import Room


def staging_limits(settings: Settings, queue: Queue, checksum_types: tuple[str, ...] = ()) -> StagingLimits:
    """How much the engine may do; files get `checksum_types`, the setting's one if none is named."""
    return StagingLimits(
        parallel=settings.parallel_transfers,
        per_storage=settings.storage_transfers,
        pace=PaceLimits(
            idle=settings.transfer_idle, speed=settings.transfer_min_speed, window=settings.transfer_speed_window
        ),
        open_timeout=0.0 if _is_no(queue.catchall_value("remoteio_test")) else settings.remote_open_timeout,
        attempts_out=max(settings.stageout_attempts, 2),
        input_size=input_limit(settings, queue),
        checksum_types=checksum_types or (settings.checksum_type,),
        tell_every=settings.progress_interval,
    )


def _is_no(word: str | None) -> bool:
    return (word or "").lower() in FALSE


def input_limit(settings: Settings, queue: Queue) -> int | None:
    """Bytes that all inputs of a job may have together, None if the queue does not care (PILOT3 4.4)."""
    if queue.maxinputsize == -1:
        return None
    return queue.maxwdir * 1024**2 or settings.maximum_input_file_sizes


def input_cache(settings: Settings, room: Room) -> InputCache | None:
    """The cache of inputs, None if it is not wanted."""
    if not settings.input_cache or not settings.input_cache_size:
        return None
    directory, link = Path(settings.input_cache).absolute(), settings.input_cache_mode == "link"
    return InputCache(directory, settings.input_cache_size, room, link=link)
