"""The size of a job directory is what `du` says; a limit that is passed is told with both numbers."""

import os
import shutil
import subprocess
import threading
from contextlib import nullcontext

import pytest

from pilot.errors import Code, PilotError
from pilot.job import Job, Limits
from pilot.queuedata import Queue
from pilot.watch.disk import FreeSpace, WorkdirSize, tree_size, workdir_limit


def du(top):
    """What `du` counts without the directories themselves."""
    words = subprocess.run(["du", "-B1", "-s", top], capture_output=True, text=True, check=True).stdout.split()
    folders = sum(os.lstat(folder).st_blocks * 512 for folder, _, _ in os.walk(top))
    return int(words[0]) - folders


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "job"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "data").write_bytes(os.urandom(300_000))
    (top / "a" / "b" / "small").write_bytes(b"x")
    (top / "a" / "b" / "empty").touch()
    with open(top / "sparse", "wb") as file:
        file.truncate(50_000_000)
    os.link(top / "a" / "data", top / "second name")
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "input").write_bytes(bytes(2_000_000))
    (top / "input").symlink_to(tmp_path / "storage" / "input")
    (top / "all inputs").symlink_to(tmp_path / "storage")
    (top / "itself").symlink_to(top)
    (top / "nowhere").symlink_to("/no/such/file")
    os.mkfifo(top / "pipe")
    (top / os.fsdecode(b"caf\xe9")).write_bytes(b"y" * 5000)
    os.sync()  # some file systems allocate blocks when they write them
    return top


def test_a_tree_has_the_size_that_du_says(tree):
    assert tree_size(tree) == du(tree)
    assert 300_000 <= tree_size(tree) < 400_000


def test_an_empty_or_missing_directory_has_no_size(tmp_path):
    assert tree_size(tmp_path) == tree_size(tmp_path / "none") == 0


def test_files_that_come_and_go_hide_no_others(tmp_path):
    """A payload writes and deletes temporary files all the time, in the directory that holds its results too."""
    for number in range(100):
        (tmp_path / f"result{number}").write_bytes(bytes(4096))
    os.sync()
    kept, ended = tree_size(tmp_path), threading.Event()

    def churn():
        while not ended.is_set():
            for number in range(20):
                (tmp_path / f"tmp{number}").touch()
            for number in range(20):
                (tmp_path / f"tmp{number}").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {tree_size(tmp_path) for _ in range(300)}
    finally:
        ended.set()
        thread.join()
    assert sizes == {kept}


def test_a_file_that_vanishes_during_the_look_hides_no_others(tmp_path, monkeypatch):
    for name in "abcdef":
        (tmp_path / name).write_bytes(bytes(4096))
    os.sync()
    each = tree_size(tmp_path) // 6
    scandir = os.scandir

    def vanishing(folder):
        with scandir(folder) as found:
            entries = list(found)
        (tmp_path / "c").unlink(missing_ok=True)
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert tree_size(tmp_path) == 5 * each


def test_a_job_directory_below_its_limit_is_looked_at_again_within_a_minute(tree):
    look = WorkdirSize(tree, 10_000_000)
    assert 0 < look.look() <= 60
    assert look.peak == tree_size(tree)


def test_a_job_directory_over_its_limit_is_1104_with_both_numbers(tree):
    size = tree_size(tree)
    WorkdirSize(tree, size).look()
    with pytest.raises(PilotError) as caught:
        WorkdirSize(tree, size - 1).look()
    assert caught.value.code is Code.USERDIRTOOLARGE
    assert f"{size} bytes" in caught.value.detail and f"the limit is {size - 1} bytes" in caught.value.detail


def test_without_a_limit_the_size_is_only_measured(tree):
    look = WorkdirSize(tree, 0)
    assert look.look() == 60
    peak = look.peak
    shutil.rmtree(tree / "a")
    look.look()
    assert look.peak == peak > tree_size(tree)


@pytest.mark.parametrize(
    ("queue", "cores", "disk_mb", "limit"),
    [
        ({"maxwdir": 1000, "maxwdir_grace": 1.0}, 1, 0, 1000 << 20),
        ({"maxwdir": 1000}, 1, 0, int(1.2 * (1000 << 20))),
        ({"maxwdir": 8000, "corecount": 8, "maxwdir_grace": 1.0}, 1, 0, 1000 << 20),
        ({"maxwdir": 8000, "corecount": 8, "maxwdir_grace": 1.0}, 8, 0, 8000 << 20),
        ({"maxwdir": 0}, 1, 0, 0),
        ({"maxwdir": 1000}, 1, 10, 10_000_000),
        ({"maxwdir": 0}, 1, 10, 10_000_000),
    ],
)
def test_the_limit_is_the_jobs_own_or_its_share_of_the_queues(queue, cores, disk_mb, limit):
    job = Job(job_id=1, cores=cores)
    assert workdir_limit(Queue(name="Q", **queue), job, Limits(disk_mb=disk_mb)) == limit


def test_enough_space_is_looked_at_again_within_a_minute(tmp_path):
    assert 0 < FreeSpace(tmp_path, 1).look() <= 60


def test_too_little_space_is_1098_with_both_numbers(tmp_path):
    limit = shutil.disk_usage(tmp_path).total + (1 << 20)
    with pytest.raises(PilotError) as caught:
        FreeSpace(tmp_path, limit).look()
    assert caught.value.code is Code.NOLOCALSPACE
    assert f"{limit >> 20} MiB needed" in caught.value.detail and str(tmp_path) in caught.value.detail


def test_a_directory_that_is_gone_is_not_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="gone"):
        FreeSpace(tmp_path / "gone", 1).look()
