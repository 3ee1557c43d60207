"""A supervised child: no signal is lost whenever it comes, and only a child that is stuck is ended for it."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

HEAD = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
import pilot.wrap.supervise as supervise
from pilot.wrap.supervise import StoppedError, Supervisor

def kill(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)

supervisor = Supervisor(lambda text: print(text, flush=True))
supervisor.listen()
python, here = [sys.executable, "-c"], Path.cwd()
"""


@pytest.fixture
def supervised(tmp_path):
    """Runs a program that has a supervisor; its exit status and what it said."""

    def run(text, **options):
        program = HEAD + textwrap.dedent(text)
        return subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
            env={**os.environ, "PYTHONPATH": os.getcwd()}, **options,
        )  # fmt: skip

    return run


def test_a_signal_that_comes_while_the_child_is_made_is_for_the_child(supervised):
    done = supervised("""
        class Slow(subprocess.Popen):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                kill()
        subprocess.Popen = Slow
        print(supervisor.run(["sleep", "20"], os.environ, here))
    """)
    assert done.stdout.split() == ["143"], done.stderr


def test_a_signal_after_the_child_does_not_change_its_status(supervised):
    done = supervised("""
        def beside(pid):
            threading.Timer(0.2, kill).start()
            return subprocess.Popen(["sleep", "0.5"])
        print(supervisor.run(["true"], os.environ, here, beside=beside))
    """)
    assert done.stdout.split() == ["0"], done.stderr


def test_a_second_signal_does_not_disturb_the_end(supervised):
    done = supervised("""
        try:
            kill()
        except StoppedError:
            kill()
            kill(signal.SIGINT)
            print("tidied up")
    """)
    assert done.stdout == "tidied up\n", done.stderr


def test_a_signal_at_the_very_end_does_not_change_the_status(supervised):
    """Python gives signals back to the kernel before it runs the last destructors."""
    done = supervised("""
        class Last:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        supervisor.rest()
        last = threading.current_thread().last = Last()
        del last
        raise SystemExit(3)
    """)
    assert done.returncode == 3


def test_a_signal_whose_error_was_kept_by_a_loop_is_not_forgotten(supervised):
    """asyncio logs what a callback raises, and goes on."""
    done = supervised("""
        import asyncio
        async def main():
            asyncio.get_running_loop().call_soon(kill)
            await asyncio.sleep(0.1)
        asyncio.run(main())
        try:
            supervisor.run(["true"], os.environ, here)
        except StoppedError as error:
            print(error)
    """)
    assert done.stdout.split() == ["SIGTERM"], done.stderr


def test_nohup_counts_for_the_child_too(supervised):
    done = supervised(
        """
        threading.Timer(0.3, kill, [signal.SIGHUP]).start()
        print(supervisor.run(["sleep", "1"], os.environ, here))
        """,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert done.stdout.split() == ["0"], done.stderr


def test_output_is_read_to_its_end_when_no_copy_can_be_kept(supervised):
    """Else the child would wait for ever for somebody to read its pipe."""
    done = supervised("""
        program = "for number in range(50000): print(number)"
        print("status", supervisor.run([*python, program], os.environ, here, copy=Path("/dev/full")))
    """)
    assert done.stdout.splitlines()[-2:] == ["49999", "status 0"], done.stderr


def test_a_full_disk_below_stdout_does_not_stop_the_child(supervised, tmp_path):
    with open("/dev/full", "w") as full:
        program = f"""
            program = "for number in range(50000): print(number)"
            status = supervisor.run([*python, program], os.environ, here, copy=Path({str(tmp_path / "copy")!r}))
            os._exit(status + 7)
        """
        command = [sys.executable, "-c", HEAD + textwrap.dedent(program)]
        assert subprocess.run(command, cwd=os.getcwd(), stdout=full, timeout=30, check=False).returncode == 7
    assert (tmp_path / "copy").read_text().splitlines()[-1] == "49999"


def test_a_companion_that_cannot_be_started_costs_no_child(supervised):
    done = supervised("""
        def beside(pid):
            raise BlockingIOError(11, "no process left")
        print(supervisor.run(["sleep", "0.3"], os.environ, here, beside=beside))
    """)
    assert done.stdout.splitlines()[-1] == "0", done.stderr


PILOT = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("-a") + 1]) / f"PanDA_Pilot3_{os.getpid()}_1" if "-a" in sys.argv else None
time.sleep(0.2)
if folder:
    folder.mkdir()
for _ in range(9):
    if folder:
        (folder / "pilotlog.txt").touch()
    time.sleep(0.15)
"""

LATE = """
    pilot = '''
    import os, pathlib, time
    time.sleep(0.5)
    folder = pathlib.Path(f"PanDA_Pilot3_{os.getpid()}_1")
    folder.mkdir()
    for _ in range(8):
        (folder / "pilotlog.txt").touch()
        time.sleep(0.2)
    '''
    def log(pid):
        return next(here.glob(f"PanDA_Pilot3_{pid}_*/pilotlog.txt"), here / "pilotlog.txt")
"""


def test_a_log_that_is_made_later_shows_life(supervised):
    text = textwrap.dedent(LATE) + textwrap.dedent("""
        import textwrap
        program = [*python, textwrap.dedent(pilot)]
        print(supervisor.run(program, os.environ, here, log=log, stuck_after=1.0), supervisor.was_stuck)
    """)
    assert supervised(text).stdout.split() == ["0", "False"]


@pytest.mark.parametrize("options", [["-a", "work"], ["--no-pilot-log"]])
def test_a_wrapper_finds_the_log_of_its_pilot_in_the_work_directory(supervised, tmp_path, options):
    """A relative one too: it is below where the pilot runs; and without a log nobody can tell."""
    (tmp_path / "work").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "fake.py").write_text(PILOT)
    words = [
        "-q",
        "Q",
        "--pilot-user",
        "generic",
        "--no-doctor",
        "--mute",
        "--stuck-after",
        "0.7",
        "--queuedata-url",
        "/nonexistent",
        *options,
    ]
    done = supervised(f"""
        from pilot.wrap.options import parse
        from pilot.wrap.wrapper import Wrapper
        print("status", Wrapper(parse({words}, os.environ), os.environ, [sys.executable, str(here / "fake.py")]).run())
    """)
    assert done.stdout.endswith("status 0\n"), done.stdout + done.stderr


def test_a_log_that_is_removed_at_the_end_is_not_silence_since_the_beginning(supervised):
    done = supervised("""
        program = "import os, time; time.sleep(4); os.remove('log'); time.sleep(1)"
        Path("log").touch()
        stop = threading.Event()
        def touch():
            while not stop.wait(0.1) and Path("log").exists():
                os.utime("log")
        threading.Thread(target=touch, daemon=True).start()
        log = Path("log").absolute()
        print(supervisor.run([*python, program], os.environ, here, log=lambda pid: log, stuck_after=3))
    """)
    assert done.stdout.split()[-1] == "0", done.stdout + done.stderr


def test_a_wrong_clock_is_no_silence(supervised):
    """The time of a change may be long ago, or not yet, for who has another clock."""
    done = supervised("""
        Path("log").touch()
        def touch():
            for number in range(20):
                os.utime("log", (number, number))
                time.sleep(0.1)
        threading.Thread(target=touch, daemon=True).start()
        log = Path("log").absolute()
        print(supervisor.run(["sleep", "2"], os.environ, here, log=lambda pid: log, stuck_after=1.0))
    """)
    assert done.stdout.split() == ["0"], done.stdout + done.stderr


def test_a_node_that_slept_finds_its_pilot_alive(supervised):
    """Our own sleep is not the pilot's silence: here the supervisor is stopped, and so is the pilot."""
    started = time.monotonic()
    done = supervised("""
        Path("log").touch()
        log = Path("log").absolute()
        pause = "(sleep 0.3; kill -STOP %d; sleep 1.5; kill -CONT %d) &" % (os.getpid(), os.getpid())
        subprocess.Popen(["sh", "-c", pause])
        print(supervisor.run(["sleep", "2.3"], os.environ, here, log=lambda pid: log, stuck_after=1.7))
    """)
    assert time.monotonic() - started > 2.2
    assert done.stdout.split() == ["0"], done.stdout + done.stderr


def test_silence_ends_a_child(supervised):
    done = supervised("""
        Path("log").touch()
        log = Path("log").absolute()
        print(supervisor.run(["sleep", "20"], os.environ, here, log=lambda pid: log, stuck_after=0.5))
        print(supervisor.was_stuck)
    """)
    assert done.stdout.splitlines()[-2:] == ["130", "True"], done.stderr


def test_what_a_killed_child_leaves_is_ended_and_nothing_else(supervised):
    done = supervised("""
        helper = subprocess.Popen(["sleep", "30"])
        text = "setsid sleep 31 & echo $! > left; kill -KILL $$"
        print(supervisor.run(["bash", "-c", text], os.environ, here), helper.poll())
        helper.kill()
        while Path(f"/proc/{Path('left').read_text().strip()}/cmdline").read_bytes():
            time.sleep(0.01)
    """)
    assert done.stdout == "137 None\n", done.stderr
