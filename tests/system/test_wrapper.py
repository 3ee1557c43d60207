"""`pilot-wrapper.sh` and the release archive, as a batch system starts them, on good and bad nodes."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from pilot.processes import is_zombie
from tests.grid import Grid, Pilot, until
from tests.parts import program

ROOT = Path(__file__).resolve().parents[2]
#: What a plain node has in its PATH.
PATH = "/usr/bin:/bin"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        yield grid


@pytest.fixture
def wrapped(grid, release, tmp_path):
    """Starts the wrapper on the grid."""
    started = []

    def start(*options, queue="Q", url=None, without=(), **environ):
        words = [word for word in grid.options(queue=queue) if word not in without]
        del words[words.index("-a") : words.index("-a") + 2]
        launch = tmp_path / f"launch-{len(started)}"
        (tmp_path / "tmp").mkdir(exist_ok=True)
        variables = {"PATH": PATH, "PILOT_PYTHON": sys.executable, "TMPDIR": str(tmp_path / "tmp"), "LANG": "C.UTF-8"}
        pilot = Pilot(
            [release / "pilot-wrapper.sh", *words, "--piloturl", url or str(release / "pilot3.tar.gz"), *options],
            cwd=launch,
            env={**variables, **environ},
        )
        started.append(pilot)
        return pilot

    yield start
    for pilot in started:
        pilot.close()


@pytest.fixture(scope="module")
def web(release, tmp_path_factory):
    """A directory that is served over plain http on loopback, with a copy of the release."""
    top = tmp_path_factory.mktemp("web")
    for path in release.iterdir():
        shutil.copy(path, top)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(top))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield top, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "tmp").iterdir())


def test_the_script_is_clean_to_shellcheck():
    script = ROOT / "wrappers" / "pilot-wrapper.sh"
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_job_runs_and_nothing_is_left(grid, wrapped, tmp_path):
    (job_id,) = grid.submit(grid.job("echo x > out.txt", outputs=["out.txt"]))
    pilot = wrapped("--mute")

    assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"
    assert f"pandaids: {job_id}" in pilot.text
    assert "ok       server" in pilot.text
    assert f"free on {tmp_path}/tmp/pilot_" in pilot.text  # where the pilot works, not where the slot began
    assert left(tmp_path) == []


def test_an_hpc_hears_that_there_was_no_job(grid, wrapped):
    grid.queue("HPC", resource_type="hpc_special")
    assert wrapped(queue="HPC").wait() == 82


def test_the_environment_is_shown_without_secrets(grid, wrapped):
    grid.submit(grid.job())
    pilot = wrapped(SITE_PASSWORD="hunter22", PROXYCONTENT="-----BEGIN", PLAIN="shown")

    assert pilot.wait() == 0
    assert "PLAIN=shown" in pilot.text
    assert "SITE_PASSWORD=***" in pilot.text
    assert "hunter22" not in pilot.text
    assert "-----BEGIN" not in pilot.text


def test_every_option_of_the_old_wrapper_is_taken(grid, wrapped):
    (job_id,) = grid.submit(grid.job())
    options = ["--cvmfsbase", "/nonexistent", "--alma9", "--mute", "--pilotversion", "3", "--pythonversion", "3"]
    pilot = wrapped(*options, "--localpy", "--container", "-S", "-w", "generic")

    assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"
    assert "WARNING: shoal-client" in pilot.text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGXCPU])
def test_a_signal_reaches_the_pilot_at_once(grid, wrapped, tmp_path, signum):
    queue = grid.queue(f"S{int(signum)}")
    (job_id,) = grid.submit(grid.job("sleep 60", queue=queue))
    pilot = wrapped("--mute", queue=queue)
    until(lambda: grid.job_of(job_id).state == "running")
    sent = pilot.signal(signum)
    status = pilot.wait()

    assert time.monotonic() - sent < 5
    assert status == {signal.SIGTERM: 1, signal.SIGINT: 2}.get(signum, 128 + signum)
    assert grid.job_of(job_id).state == "failed"
    assert grid.job_of(job_id).code == {10: 1207, 15: 1201, 2: 1208, 24: 1204}[signum]
    assert left(tmp_path) == []


def test_a_wrapper_that_is_killed_takes_its_pilot_along(grid, wrapped):
    queue = grid.queue("KILLED")
    (job_id,) = grid.submit(grid.job("sleep 60", queue=queue))
    pilot = wrapped(queue=queue)
    until(lambda: grid.job_of(job_id).state == "running")
    pilot.process.kill()

    until(lambda: grid.job_of(job_id).state == "failed")
    assert grid.job_of(job_id).code == 1201


def test_a_signal_before_the_pilot_ends_the_wrapper(grid, wrapped, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pilot = wrapped(url=f"http://127.0.0.1:{silent.getsockname()[1]}/pilot3.tar.gz")
        pilot.says("Python:")
        until(lambda: left(tmp_path))
        time.sleep(0.2)
        pilot.signal()
        assert pilot.wait(5) == 1
    assert left(tmp_path) == []


def test_a_signal_at_any_moment_before_the_pilot_leaves_nothing(wrapped, tmp_path):
    """Such as while Python starts: what the script has made is removed by who comes after it."""
    for moment in (0.0, 0.1, 0.2, 0.35, 0.6):
        pilot = wrapped("--queuedata-url", "/nonexistent/queue.json", "--mute")
        pilot.says("Python:")
        time.sleep(moment)
        pilot.signal()
        pilot.signal(signal.SIGXCPU)
        status = pilot.wait()
        if status != -signal.SIGTERM:  # between bash's exec and the first line of Python nobody can listen
            assert (status, left(tmp_path)) == (1, []), pilot.text
        shutil.rmtree(tmp_path / "tmp")


def test_a_stuck_pilot_is_ended(grid, wrapped):
    queue = grid.queue("STUCK")
    (job_id,) = grid.submit(grid.job("sleep 60", queue=queue))
    pilot = wrapped("--stuck-after", "5", "--mute", queue=queue)
    until(lambda: grid.job_of(job_id).state == "running")
    (inner,) = psutil.Process(pilot.pid).children()
    inner.suspend()

    assert pilot.wait() == 2, pilot.text
    assert "the pilot is stuck" in pilot.text
    assert grid.job_of(job_id).state == "failed"


def test_a_pilot_that_is_killed_leaves_no_payload(grid, wrapped, tmp_path):
    """By the kernel for its memory, or by us because it was stuck."""
    queue, pids = grid.queue("KILLED"), tmp_path / "pids"
    grid.submit(grid.job(f"sleep 61 & setsid sleep 61 & echo $$ $! >> {pids}; wait", queue=queue))
    wrapper = wrapped("--mute", queue=queue)
    payload = until(lambda: pids.exists() and [int(pid) for pid in pids.read_text().split()])
    pilot = psutil.Process(payload[0]).parent()
    pilot.kill()

    assert wrapper.wait() == 1, wrapper.text
    until(lambda: all(map(is_zombie, payload)))  # gone, or left to whoever adopts what a dead wrapper leaves


def test_the_archive_must_have_its_checksum(wrapped, release, tmp_path):
    pilot = wrapped("--pilotsha256", "0" * 64)
    assert pilot.wait() == 64
    found = hashlib.sha256((release / "pilot3.tar.gz").read_bytes()).hexdigest()
    assert f"its SHA-256 is {found}, not 000" in pilot.text
    assert left(tmp_path) == []


def test_the_archive_comes_over_the_network_with_the_checksum_beside_it(grid, wrapped, web):
    grid.submit(grid.job())
    pilot = wrapped(url=f"{web[1]}/pilot3.tar.gz")
    assert pilot.wait() == 0, pilot.text


def test_an_archive_that_changed_on_the_way_is_not_unpacked(wrapped, web):
    top, url = web
    broken = (top / "pilot3.tar.gz").read_bytes()[:-1]
    (top / "broken.tar.gz").write_bytes(broken)
    with open(top / "SHA256SUMS", "a") as sums:
        sums.write(f"{'1' * 64}  broken.tar.gz\n")
    pilot = wrapped(url=f"{url}/broken.tar.gz")
    assert pilot.wait() == 64
    assert "its SHA-256 is" in pilot.text


@pytest.mark.parametrize("url", ["http://example.org/pilot3.tar.gz", "ftp://example.org/pilot3.tar.gz"])
def test_an_archive_is_not_fetched_unsafely(wrapped, url):
    pilot = wrapped(url=url)
    assert pilot.wait() == 64
    assert "plain http needs --pilotsha256" in pilot.text


def test_the_old_place_is_cvmfs(grid, wrapped, release, tmp_path):
    place = tmp_path / "cvmfs/atlas.cern.ch/repo/sw/PandaPilot/tar"
    place.mkdir(parents=True)
    shutil.copy(release / "pilot3.tar.gz", place / "pilot3-4.0.tar.gz")
    grid.submit(grid.job())
    words = ["--piloturl", "", "--cvmfsbase", str(tmp_path / "cvmfs"), "--pilotversion", "4.0"]
    pilot = wrapped(*words)
    assert pilot.wait() == 0, pilot.text


def test_only_what_the_script_made_is_removed(tmp_path):
    """No directory that a person calls scratch, and not where it starts, by whatever path the shell came there."""
    launch, data = tmp_path / "real" / "pilot_12345678", tmp_path / "data"
    launch.mkdir(parents=True)
    data.mkdir()
    (launch / "pandaJobData.out").touch()
    (tmp_path / "link").symlink_to("real")
    fails = ["-q", "Q", "--pilot-user", "generic", "--queuedata-url", "/nonexistent", "--setup", "/nonexistent/setup"]
    for scratch, options in ((data, ["--help"]), (data, fails), (tmp_path / "link" / launch.name, fails)):
        words = [sys.executable, ROOT / "pilot.py", "wrap", "--scratch", scratch, *options]
        done = subprocess.run(words, cwd=launch, capture_output=True, text=True, check=False)
        assert done.returncode == (options == fails), done.stderr
        assert options != fails or "/nonexistent/setup ended with status" in done.stdout
        assert scratch.is_dir()


def test_local_means_what_lies_there(grid, release, tmp_path):
    (job_id,) = grid.submit(grid.job())
    launch = tmp_path / "launch"
    launch.mkdir()
    with tarfile.open(release / "pilot3.tar.gz") as archive:
        archive.extractall(launch, filter="data")
    words = grid.options()
    del words[words.index("-a") : words.index("-a") + 2]
    environ = {"PATH": PATH, "PILOT_PYTHON": sys.executable}
    pilot = Pilot([release / "pilot-wrapper.sh", *words, "--piloturl", "local"], cwd=launch, env=environ)

    assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"
    assert (launch / "pilot3" / "pandaIDs.out").read_text().split() == [str(job_id)]
    assert (launch / "pilotlog.txt").exists()


def test_nodes_that_unpack_in_one_directory_see_all_of_the_pilot_or_nothing(grid, release, tmp_path):
    """A `tar` that has not brought the engine yet when the second node begins."""
    tools, launch = tmp_path / "tools", tmp_path / "launch"
    tools.mkdir()
    launch.mkdir()
    shutil.copy(release / "pilot3.tar.gz", launch)
    slow = '#!/bin/sh\n/usr/bin/tar "$@" --exclude "pilot3/pilot/*" && sleep 2 && exec /usr/bin/tar "$@"\n'
    (tools / "tar").write_text(slow)
    (tools / "tar").chmod(0o755)
    digest = hashlib.sha256((release / "pilot3.tar.gz").read_bytes()).hexdigest()
    words = [*grid.options(), "--harvester", "NODE", "--harvester_workflow", "OneToMany", "--pilotsha256", digest]
    del words[words.index("-a") : words.index("-a") + 2]
    pilots = []
    for node in ("1", "2"):
        environ = {"PATH": f"{tools}:{PATH}", "PILOT_PYTHON": sys.executable, "NODE": node}
        pilots.append(Pilot([release / "pilot-wrapper.sh", *words], cwd=launch, env=environ))
        pilots[-1].out, pilots[-1].err = (path.rename(f"{path}.{node}") for path in (pilots[-1].out, pilots[-1].err))
        until(lambda: list(launch.rglob("pilot.py")))
    assert [(pilot.wait(), pilot.text.count("Traceback")) for pilot in pilots] == [(0, 0)] * 2, pilots[1].text
    assert [path.name for path in launch.glob("pilot3*")].count("pilot3") == 1
    assert not list(launch.glob("pilot3_*"))


def test_what_lies_there_must_have_its_checksum_too(wrapped, release, tmp_path):
    (tmp_path / "launch-0").mkdir()
    shutil.copy(release / "pilot3.tar.gz", tmp_path / "launch-0")
    pilot = wrapped("--pilotsha256", "0" * 64, url="local")
    assert pilot.wait() == 64
    assert "is not the one of --pilotsha256" in pilot.text


def test_help_needs_neither_python_nor_pilot(release):
    done = subprocess.run([release / "pilot-wrapper.sh", "-h"], env={"PATH": PATH}, capture_output=True, check=False)
    assert (done.returncode, done.stdout[:28]) == (0, b"What a batch system starts: ")


def test_each_node_of_a_worker_has_a_directory(grid, release, tmp_path):
    """As `srun` starts it at an HPC's edge, where Harvester has brought the archive."""
    (job_id,) = grid.submit(grid.job(queue=grid.queue("MANY", timefloor=0)))
    launch = tmp_path / "launch"
    launch.mkdir()
    shutil.copy(release / "pilot3.tar.gz", launch)
    words = [*grid.options(queue="MANY"), "--harvester", "SLURM_NODEID", "--harvester_workflow", "OneToMany"]
    del words[words.index("-a") : words.index("-a") + 2]
    environ = {"PATH": PATH, "PILOT_PYTHON": sys.executable, "SLURM_NODEID": "3"}
    pilot = Pilot([release / "pilot-wrapper.sh", *words], cwd=launch, env=environ)

    assert pilot.wait() == 0, pilot.text
    assert (launch / "atlas_3" / "pilot3" / "pandaIDs.out").read_text().split() == [str(job_id)]
    assert (launch / "atlas_3" / "pilotlog.txt").exists()
    assert f"pandaids: {job_id}" in pilot.text


# ----------------------------------------------------------------------------------------------------------- bad nodes


def test_a_python_that_is_too_old_is_passed_over(grid, wrapped, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for name in ("python3", "python3.12"):
        (old / name).write_text("#!/bin/sh\nexit 1\n")
        (old / name).chmod(0o755)
    (old / "python3.11").symlink_to(sys.executable)
    grid.submit(grid.job())
    pilot = wrapped(PATH=f"{old}:{PATH}", PILOT_PYTHON="/nonexistent/python")

    assert pilot.wait() == 0, pilot.text
    assert f"Python: {old}/python3.11" in pilot.text


def test_a_node_without_a_python_says_what_to_do(wrapped, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "date", "dirname", "readlink", "env"):
        (tools / name).symlink_to(program(name))
    pilot = wrapped(PATH=str(tools), PILOT_PYTHON="")

    assert pilot.wait() == 1
    assert "no Python >= 3.11: set PILOT_PYTHON" in pilot.text


@pytest.mark.parametrize("full", [True, False], ids=["full", "too small for a job"])
def test_a_full_tmp_is_passed_over(grid, wrapped, tmp_path, full):
    small = tmp_path / "small"
    small.mkdir()
    size = f"size={1 if full else 200}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", small], check=False).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        with open(small / "all", "wb", buffering=0) as rest, contextlib.suppress(OSError):
            while full:
                rest.write(bytes(4096))
        grid.submit(grid.job())
        pilot = wrapped(TMPDIR=str(small), BASH_COMPAT="5.0")  # its here-documents are files, as those of EL 8
        assert pilot.wait() == 0, pilot.text
        assert f"--scratch {tmp_path}/launch-0/pilot_" in pilot.text
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_full_disk_under_its_own_log_does_not_matter(grid, release, tmp_path):
    (job_id,) = grid.submit(grid.job())
    words = grid.options()
    del words[words.index("-a") : words.index("-a") + 2]
    command = [release / "pilot-wrapper.sh", *words, "--mute", "--piloturl", release / "pilot3.tar.gz"]
    environ = {"PATH": PATH, "PILOT_PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=tmp_path, env=environ, stdout=full, stderr=full, timeout=30, check=False)
    assert (done.returncode, grid.job_of(job_id).state) == (0, "finished")


def test_a_read_only_home_does_not_matter(grid, wrapped):
    grid.submit(grid.job())
    assert wrapped(HOME="/proc").wait() == 0


def test_a_bad_node_waits_before_it_ends(grid, wrapped):
    """And the wait ends with the slot."""
    pilot = wrapped("--queuedata-url", "/nonexistent/queue.json")
    pilot.says("this node is not fit for jobs: waiting")
    pilot.signal()
    assert pilot.wait(5) == 1
    assert "failure  queue" in pilot.text


def test_a_mistake_on_the_command_line_is_a_fault_of_the_wrapper(wrapped, release, tmp_path):
    pilot = wrapped("--no-such-option")
    assert pilot.wait() == 1
    assert "unknown option '--no-such-option'" in pilot.text
    for url, kept in ((None, []), ("local", ["pilot3", "pilot3.tar.gz"])):  # it takes no directory that is not its own
        if url:
            (tmp_path / "launch-2").mkdir()
            shutil.copy(release / "pilot3.tar.gz", tmp_path / "launch-2")
        pilot = wrapped("--stuck-after", "long", url=url)
        assert (pilot.wait(), "invalid float value" in pilot.text) == (1, True), pilot.text
        assert sorted(path.name for path in pilot.cwd.glob("pilot3*")) == kept
        assert left(tmp_path) == []


def test_an_expired_token_is_told(wrapped, grid, tmp_path):
    import base64

    claims = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time()) - 60}).encode()).decode().rstrip("=")
    (tmp_path / "token").write_text(f"eyJhbGciOiJub25lIn0.{claims}.c2ln\n")
    pilot = wrapped(PANDA_AUTH_TOKEN=str(tmp_path / "token"), PANDA_AUTH_ORIGIN="panda_dev", without=["-t"])
    pilot.says("this node is not fit")
    pilot.signal()
    assert pilot.wait(5) == 1
    assert "failure  credential" in pilot.text


# --------------------------------------------------------------------------------------------------------- set-up, logs


def test_a_set_up_file_changes_the_environment_of_the_pilot(grid, wrapped, tmp_path):
    setup = tmp_path / "site setup.sh"
    setup.write_text("echo noise; export SITE_FLAVOUR='two words'\n")
    grid.queue("SETUP", environ="QUEUE_FLAVOUR=salt")
    (job_id,) = grid.submit(grid.job('test "$SITE_FLAVOUR" = "two words"', queue="SETUP"))
    pilot = wrapped("--setup", str(setup), "--payload-variables", "SITE_FLAVOUR", queue="SETUP")

    assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"


def test_a_set_up_file_that_fails_ends_the_wrapper(wrapped, tmp_path):
    (tmp_path / "setup.sh").write_text("false\n")
    pilot = wrapped("--setup", str(tmp_path / "setup.sh"))
    assert pilot.wait() == 1
    assert "setup.sh ended with status 1" in pilot.text


def test_the_queue_may_want_a_container_around_the_pilot(grid, wrapped, release, tmp_path):
    """A runtime that enters no container but sets its variable, as the real ones do, and forgets the environment."""
    tools = tmp_path / "tools"
    tools.mkdir()
    runtime = tools / "apptainer"
    runtime.write_text(
        "#!/bin/bash\n"
        'echo "runtime: $*"\n'
        'while [ "$1" != IMAGE ]; do shift; done; shift\n'
        'kept=(); for name in ${!APPTAINERENV_*}; do kept+=("${name#APPTAINERENV_}=${!name}"); done\n'
        'echo "kept: ${kept[*]}"\n'
        f'exec env -i PATH={PATH} PILOT_PYTHON={sys.executable} APPTAINER_CONTAINER=x "${{kept[@]}}" "$@"\n'
    )
    (tools / "squeue").write_text("#!/bin/sh\ndate -d '+1 hour' +%Y-%m-%dT%H:%M:%S\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "slurm.conf").write_text("KillWait=12\n")
    slurm = {"SLURM_JOB_ID": "77", "SLURM_CONF": str(tmp_path / "slurm.conf")}
    grid.queue("WRAPPED", container_type="singularity:wrapper", container_options="-C")
    (job_id,) = grid.submit(grid.job(queue="WRAPPED"))
    digest = hashlib.sha256((release / "pilot3.tar.gz").read_bytes()).hexdigest()
    words = ["--image", "IMAGE", "--pilotsha256", digest]
    pilot = wrapped(*words, queue="WRAPPED", PATH=f"{tools}:{PATH}", GTAG="http://logs/1", **slurm)

    assert pilot.wait() == 0, pilot.text
    assert grid.job_of(job_id).state == "finished"
    assert grid.job_of(job_id).fields["pilot_id"].startswith("http://logs/1|")
    assert "runtime: exec -C --bind=" in pilot.text
    assert grid.job_of(job_id).fields["batch_id"] == "77"
    assert f"--bind={tmp_path}/slurm.conf" in pilot.text
    assert "KillWait of Slurm is 12 s" in pilot.text
    assert re.search(r"kept: .*SLURM_JOB_END_TIME=\d{10}", pilot.text)


def test_the_factory_hears_of_begin_and_end(grid, wrapped):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as monitor:
        monitor.bind(("127.0.0.1", 0))
        monitor.settimeout(10)
        where = f"127.0.0.1:{monitor.getsockname()[1]}"
        grid.submit(grid.job())
        facts = {"APFFID": "fac", "APFCID": "12.3", "APFMON_UDP": where, "HARVESTER_ID": "H", "GTAG": "G"}
        pilot = wrapped(**facts)
        words = monitor.recv(1000).decode().split()
        assert words[1:4] == ["fac:12.3", "running", "0"]
        assert words[4:] == ["Q", "unknown", "H", "unknown", "G"]
        assert pilot.wait() == 0
        assert monitor.recv(1000).decode().split()[2] == "exiting"


def test_the_whole_log_goes_to_a_sink(grid, wrapped, tmp_path):
    grid.submit(grid.job("echo from-the-payload"))
    sink = tmp_path / "shipped.json"
    pilot = wrapped("--ship-log", f"logserver=file;{sink}")

    assert pilot.wait() == 0, pilot.text
    messages = [json.loads(line).get("message", "") for line in sink.read_text().splitlines()]
    assert any("pilot ends after" in message for message in messages)


def test_nobody_else_is_signalled(grid, wrapped):
    """Only the child: another process of our session lives on."""
    with subprocess.Popen(["sleep", "30"]) as decoy:
        grid.submit(grid.job())
        assert wrapped().wait() == 0
        assert decoy.poll() is None
        os.kill(decoy.pid, signal.SIGKILL)
