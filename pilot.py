#!/usr/bin/env python3
"""Start a pilot as wrappers do: `python3 pilot.py -q QUEUE ...` is `pilot run -q QUEUE ...`.

In a release archive (`wrappers/dist.py`) the packages that the pilot needs are in `lib/` beside this file.
"""

import os
import platform
import signal
import sys

#: Pythons that will do, beside the one that a wrapper has started us with.
PYTHONS = ("python3.14", "python3.13", "python3.12", "python3.11")
COMMANDS = (
    *("run", "local", "demo", "devserver", "plugins", "doctor", "logship", "stage", "deliver", "explain", "wrap"),
    *("pod", "alive"),
    *("--version", "-h", "--help"),
)

SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)

#: Commands that need no library: process 1 of a pod stays small, and its probe is quick.
LIGHT = (["pod"], ["alive"])


def find_libraries() -> None:
    """Let Python find what the archive carries, for this machine and this Python; a site's own packages come later.

    Last comes what `make install` has put into a checkout, if it was for this Python. The place of this file comes
    first: with PYTHONSAFEPATH, or through a link to this file, Python does not put it there.
    """
    top = os.path.dirname(os.path.realpath(__file__))
    if top not in sys.path[:1]:
        sys.path.insert(0, top)
    here = os.path.join(top, "lib")
    compiled = os.path.join(here, platform.machine())
    own = os.path.join(compiled, "cp{}{}".format(*sys.version_info))
    sys.path[1:1] = [path for path in (here, compiled, own) if os.path.isdir(path)]
    sys.path.append(os.path.join(top, ".venv", "lib", "python{}.{}".format(*sys.version_info), "site-packages"))


def missing_library() -> "str | None":
    """The name of a library that the pilot needs and Python does not find."""
    try:
        import psutil  # noqa: F401
        import urllib3  # noqa: F401
    except ModuleNotFoundError as missing:
        return missing.name
    return None


def newer_python() -> "str | None":  # in quotes: older Pythons read this file too
    """A Python of this node that runs: the one that is named, one in PATH, or one on CVMFS."""
    import glob
    import shutil
    import subprocess

    probe = "import sys; sys.exit(sys.version_info < (3, 11))"
    carried = os.environ.get("ATLAS_SW_BASE", "/cvmfs") + "/sft.cern.ch/lcg/releases/Python/3.1[1-9]*/*-opt/bin/python3"
    found = [os.environ.get("PILOT_PYTHON"), *map(shutil.which, PYTHONS), *sorted(glob.glob(carried), reverse=True)]
    for python in filter(None, found):
        try:
            if subprocess.call([python, "-c", probe], stderr=subprocess.DEVNULL, timeout=60) == 0:
                return python
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def main() -> "int | str":
    """Run a pilot, or another command of ours if the first word names one."""
    if sys.version_info < (3, 11):  # noqa: UP036 - wrappers take what `python3` is
        python = newer_python()
        if python:
            os.execv(python, [python, *sys.argv])  # noqa: S606 - the process that the wrapper watches is the pilot
        return f"pilot.py: Python >= 3.11 is needed, this is {sys.version.split()[0]}; name one with PILOT_PYTHON"
    if sys.argv[1:2] in (["pod"], ["wrap"]):  # a signal waits until somebody listens, who tidies up; process 1 loses it
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    find_libraries()
    missing = None if sys.argv[1:2] in LIGHT else missing_library()
    if missing:
        return f"pilot.py: {missing} is missing; run `make install` here, or install the package with pip"
    from pilot.cli.main import main as command

    words = sys.argv[1:]
    return command(words if words[:1] and words[0] in COMMANDS else ["run", *words])


if __name__ == "__main__":
    sys.exit(main())
