"""The image of the pilot as process 1 of a container: without privilege, on a read-only root, ended in every way."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.grid import Grid, until
from tests.parts import CACHE, debian

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "containers" / "kubernetes").glob("*.yaml"))
#: As a pod with a restricted security context.
RESTRICTED = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=host"),
    *("--tmpfs=/scratch:mode=1777", "--tmpfs=/tmp:mode=1777"),
)
NAMES = (f"pod-{os.getpid()}-{number}" for number in range(1000))


class Cache:
    """A panda cache: keeps the logs that are sent to it."""

    def __init__(self):
        files = self.files = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                name = body.partition(b'filename="')[2].partition(b'"')[0].decode()
                files[f"{self.path}:{name}"] = body.decode()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/cache"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def cache():
    cache = Cache()
    yield cache
    cache.close()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    os.umask(0o022)
    with Grid(tmp_path_factory.mktemp("grid")) as grid:
        for path in (grid.top, grid.storage, grid.work):
            path.chmod(0o777)  # the pod is another user
        yield grid


class Pod:
    """One container with a pilot."""

    def __init__(self, podman, image, grid, *more, queue="Q", options=(), entrypoint=(), **variables):
        self._podman = podman
        self.name = next(NAMES)
        environ = {"computingSite": "SITE", "pandaQueueName": queue, "TERMINATION_GRACE_PERIOD_SECONDS": "20"}
        words = [f"--env={name}={value}" for name, value in (environ | variables).items()]
        done = podman(
            *("run", "--detach", "--name", self.name, f"--volume={grid.top}:{grid.top}", *RESTRICTED, *words, *options),
            *(image, *entrypoint, *_options(grid, queue), *more),
        )
        assert done.returncode == 0, done.stderr

    def wait(self):
        """Its exit status."""
        try:
            return int(self._podman("wait", self.name, timeout=40).stdout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the pod still runs:\n{self.log}") from None

    @property
    def log(self):
        done = self._podman("logs", self.name)
        return done.stdout + done.stderr

    def exec(self, *words):
        return self._podman("exec", self.name, *words)

    def alive(self):
        return self.exec("python3", "/opt/pilot3/pilot.py", "alive")

    def stop(self, seconds):
        """SIGTERM, and SIGKILL later; how long it took."""
        began = time.monotonic()
        self._podman("stop", f"--time={seconds}", self.name, timeout=60)
        return time.monotonic() - began


def _options(grid, queue):
    """What the variables of a pod do not say."""
    words = grid.options(queue=queue)
    for flag in ("-a", "-q", "-s", "-r", "-j"):
        at = words.index(flag)
        del words[at : at + 2]
    return words


@pytest.fixture
def start(podman, image, grid):
    pods = []

    def start(*more, **options):
        pods.append(Pod(podman, image, grid, *more, **options))
        return pods[-1]

    yield start
    for pod in pods:
        podman("rm", "--force", "--time=0", pod.name)


def running(grid, job_id):
    until(lambda: grid.job_of(job_id).state == "running")


@pytest.mark.slow
def test_a_job_runs_to_its_end_and_the_log_goes_to_the_cache(grid, start, cache):
    queue = grid.queue("NORMAL")
    command = "id -u; until [ -e go ]; do sleep 0.05; done; echo x > normal.txt"
    (job_id,) = grid.submit(grid.job(command, queue=queue, outputs=["normal.txt"]))
    pod = start(
        queue=queue,
        proxyContent="-----BEGIN,secret,-----END",
        HARVESTER_ID="H",
        workerID="17",
        logs_frontend_w=cache.url,
        logs_frontend_r="https://cache.example.org/logs",
        proxySecretPath="$proxySecretPath",
        PILOT_WRAPPER_LOGSHIP=f"file;{grid.top}/pod.jsonl",
    )
    running(grid, job_id)
    alive = pod.alive()
    look = "tr '\\0' ' ' < /proc/1/cmdline; stat -c '%a %u' /scratch/pod-*/x509up; cat /scratch/pod-*/x509up"
    process = pod.exec("/bin/bash", "-c", look)
    pod.exec("/bin/bash", "-c", "cd /scratch/pod-*/PanDA_Pilot3_*/PanDA_Pilot-*/ && touch go")

    assert pod.wait() == 0, pod.log
    assert alive.returncode == 0, alive.stdout
    assert f"job {job_id}: payload" in alive.stdout
    assert process.stdout.startswith("python3 /opt/pilot3/pilot.py pod ")
    assert "600 10001\n-----BEGIN\nsecret\n-----END\n" in process.stdout
    job = grid.job_of(job_id)
    assert job.state == "finished", job.diag
    assert job.log()["payload.stdout"] == b"10001\n"
    assert "https://cache.example.org/logs/H_17.out" in str(job.fields)
    kept = cache.files["/cache/putFile:H_17.out"]
    assert "the pilot ended with status 0" in kept
    assert f"job {job_id}: report" in kept
    assert "secret" not in kept
    records = [json.loads(line) for line in (grid.top / "pod.jsonl").read_text().splitlines()]
    assert any(record["PandaJobID"] == str(job_id) and "payload started" in record["message"] for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("payload", ["sleep 60", "trap : TERM; while :; do sleep 0.2; done"], ids=["obeys", "does not"])
def test_a_stop_ends_in_a_report_and_a_log_within_the_grace(grid, start, payload):
    queue = grid.queue(f"STOP{len(payload)}")
    (job_id,) = grid.submit(grid.job(payload, queue=queue))
    pod = start(queue=queue)
    running(grid, job_id)

    assert pod.stop(20) < (6 if payload == "sleep 60" else 18)
    assert pod.wait() == 143, pod.log
    job = grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", 1201)
    assert job.reported_once()
    assert job.log_path.exists()


@pytest.mark.slow
def test_a_kill_takes_everything_along(grid, podman, start):
    queue = grid.queue("KILL")
    (job_id,) = grid.submit(grid.job("sleep 60", queue=queue))
    pod = start(queue=queue)
    running(grid, job_id)
    podman("kill", "--signal=KILL", pod.name)

    assert pod.wait() == 137
    assert grid.job_of(job_id).state == "running"  # the server finds it without heartbeat


@pytest.mark.slow
def test_a_payload_that_takes_all_memory_is_reported(grid, start):
    queue = grid.queue("OOM")
    eat = "python3 -c \"b = bytearray(1 << 30); b[::4096] = b[::4096].replace(b'\\\\0', b'x')\""
    (job_id,) = grid.submit(grid.job(eat, queue=queue))
    pod = start(queue=queue, options=["--memory=200m", "--memory-swap=200m"])

    assert pod.wait() == 0, pod.log
    job = grid.job_of(job_id)
    assert (job.state, job.code) in (("failed", 1212), ("failed", 1235)), job.diag  # the kernel or the look is first
    assert "204800 kB" in job.diag


@pytest.mark.slow
def test_processes_without_parents_are_collected(grid, start):
    queue = grid.queue("ORPHANS")
    (job_id,) = grid.submit(grid.job("sleep 60", queue=queue))
    pod = start(queue=queue)
    running(grid, job_id)
    # Not below the pilot, so its children are for process 1.
    pod.exec("/bin/bash", "-c", "for i in 1 2 3 4 5; do setsid sleep 0.3 & done")
    zombies = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; grep -c sleep /proc/[0-9]*/comm | grep -c ':1$'"
    until(lambda: pod.exec("/bin/bash", "-c", zombies).stdout == "1\n", why="one sleep, of the job, and no zombie")
    pod.stop(20)


@pytest.mark.slow
def test_whenever_it_is_stopped_a_job_is_reported_or_was_never_taken(grid, start):
    def one(seed):
        queue = grid.queue(f"RANDOM{seed}")
        (job_id,) = grid.submit(grid.job("sleep 1", queue=queue))
        pod = start(queue=queue)
        time.sleep(random.Random(seed).uniform(0, 3))
        pod.stop(20)
        return pod, grid.job_of(job_id), pod.wait()

    with ThreadPoolExecutor(3) as pool:
        for pod, job, status in pool.map(one, range(6)):
            assert status in (0, 143), pod.log
            assert job.reported_once() or not job.states, (job.states, pod.log)


def acquired(grid, queue):
    """What Harvester gets from the server for a worker."""
    body = json.dumps({"site_name": queue, "prod_source_label": "managed", "n_jobs": 1}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{grid.server.url}/api/v1/pilot/acquire_jobs", body, headers)
    with urllib.request.urlopen(request) as answer:
        (job,) = json.load(answer)["data"]["jobs"]
    return job


@pytest.mark.slow
def test_a_job_that_harvester_pushes_is_taken_from_its_config_map(grid, start):
    queue = grid.queue("PUSH", timefloor=0)
    config = grid.top / "jobconfig"
    config.mkdir()
    (job_id,) = grid.submit(grid.job(queue=queue))
    (config / "pandaJobData.out").write_text(json.dumps({str(job_id): acquired(grid, queue)}))
    pod = start(
        *("-k",),
        queue=queue,
        submit_mode="PUSH",
        HARVESTER_ID="H",
        workerID="18",
        options=[f"--volume={config}:/scratch/jobconfig:ro"],
    )
    assert pod.wait() == 0, pod.log
    assert grid.job_of(job_id).state == "finished"


@pytest.mark.slow
def test_the_pilot_runs_in_the_image_of_a_payload(grid, podman, image, release, tmp_path):
    subprocess.run(["tar", "-xzf", release / "pilot3.tar.gz", "-C", tmp_path], check=True)
    tmp_path.chmod(0o755)
    queue = grid.queue("PAYLOAD")
    (job_id,) = grid.submit(grid.job(queue=queue))
    pod = Pod(
        *(podman, "localhost/base", grid),
        queue=queue,
        options=[f"--volume={tmp_path}:/pilot:ro", "--user=10001:10001", "--env=TMPDIR=/scratch"],
        entrypoint=["python3", "/pilot/pilot3/pilot.py", "pod"],
    )
    assert pod.wait() == 0, pod.log
    podman("rm", pod.name)
    assert grid.job_of(job_id).state == "finished"


@pytest.mark.slow
def test_a_payload_has_an_image_of_its_own_without_privilege(grid, start, apptainer):
    """Apptainer in a user namespace, in a pod that has no capability and cannot get one."""
    program = grid.top / "apptainer"  # beside its own configuration for those who are not root
    shutil.copytree(CACHE / "apptainer", program, symlinks=True)
    shutil.copytree(program / "app/usr/etc", program / "app/usr/lib/etc")
    linked = program / "app/usr/bin/apptainer"
    options = f"--userns --no-pid {apptainer.options}"
    queue = grid.queue("IMAGE", container_type="apptainer:pilot", container_options=options)
    image = grid.top / "payload image"
    shutil.copytree(apptainer.image, image)
    command = "id -u; cat /etc/passwd; [ ! -e /opt/pilot3 ] && echo apart"
    (job_id,) = grid.submit(grid.job(command, queue=queue, container_name=str(image)))
    old = f"{CACHE}/apptainer"  # where it finds its C library
    pod = start(
        *("--container-program", str(linked)),
        queue=queue,
        options=[f"--volume={old}:{old}:ro", "--volume=/etc/localtime:/etc/localtime:ro"],
    )
    assert pod.wait() == 0, pod.log
    job = grid.job_of(job_id)
    assert job.state == "finished", pod.log
    assert job.log()["payload.stdout"].splitlines()[0] == b"10001"
    assert job.log()["payload.stdout"].splitlines()[-1] == b"apart"


@pytest.mark.slow
def test_local_jobs_and_the_demo_run_in_the_image(podman, image):
    script = """
        python3 /opt/pilot3/pilot.py local --example > job.yaml && python3 /opt/pilot3/pilot.py local -q job.yaml &&
        python3 /opt/pilot3/pilot.py demo
    """
    done = podman("run", "--rm", *RESTRICTED, "--entrypoint=/bin/bash", image, "-c", script, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 of 9 jobs ended as they should" in done.stdout


# ------------------------------------------------------------------------------------------------------------ manifests


def manifest(path):
    return yaml.safe_load(path.read_text())


def containers(spec):
    return [*spec["containers"], *spec.get("initContainers", [])]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.28", "1.33"])
def test_a_manifest_is_what_kubernetes_knows(path, version):
    kubernetes_validate.validate(manifest(path), version, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_has_words_that_kubernetes_takes(path):
    """Schemas do not know enumerations."""
    job = manifest(path)["spec"]
    spec = job["template"]["spec"]
    assert (spec["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    assert job["ttlSecondsAfterFinished"] > 0
    assert all(one["effect"] == "NoSchedule" and one["operator"] == "Equal" for one in spec.get("tolerations", []))
    mounted = {one["name"] for container in containers(spec) for one in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    for container in containers(spec):
        names = [one["name"] for one in container.get("env", [])]
        assert len(names) == len(set(names))
        assert {"memory", "ephemeral-storage"} <= {
            *container["resources"]["limits"],
            *container["resources"]["requests"],
        }


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_asks_for_no_privilege(path):
    """What the pod security standard `restricted` asks for, and a read-only root; secrets are for their owner alone."""
    spec = manifest(path)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(spec)
    assert spec["automountServiceAccountToken"] is False
    for container in containers(spec):
        context = container["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert not any("hostPort" in port for port in container.get("ports", []))
    for volume in spec["volumes"]:
        (kind,) = set(volume) - {"name"}
        assert kind in ("emptyDir", "projected")
        assert kind == "emptyDir" or volume["projected"]["defaultMode"] == 0o400


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_volume_of_a_manifest_has_no_limit_that_a_payload_can_pass_unseen(path):
    """The kubelet kills a pod for that at once. The pilot sees to the job's directory, by the limit of the pod."""
    spec = manifest(path)["spec"]["template"]["spec"]
    limited = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if volume.get("emptyDir")}
    assert limited.pop("pilot-dir") == spec["containers"][0]["resources"]["limits"]["ephemeral-storage"]
    assert set(limited) <= {"pilot"}  # of an init container; read-only for the payload


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_tells_the_pilot_no_longer_grace_than_it_has(path):
    spec = manifest(path)["spec"]["template"]["spec"]
    environ = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert 10 <= int(environ["TERMINATION_GRACE_PERIOD_SECONDS"]) <= spec["terminationGracePeriodSeconds"]


def test_the_job_of_harvester_has_the_placeholders_of_rubin():
    (container,) = manifest(ROOT / "containers/kubernetes/job.yaml")["spec"]["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    for name in (
        *("computingSite", "pandaQueueName", "proxySecretPath", "proxyContent", "workerID", "resourceType"),
        *("logs_frontend_w", "logs_frontend_r", "HARVESTER_WORKER_ID", "HARVESTER_ID", "PANDA_JSID"),
    ):
        assert values[name] == f"${name}"


def test_the_dockerfile_is_clean_to_hadolint():
    checker = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([checker, ROOT / "containers/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_podman_plays_the_pod_of_a_manifest(grid, podman, image, tmp_path):
    """The pod of the job, with what is this machine's in the place of what is a cluster's."""
    debian("catatonit", provides=("catatonit",))
    queue = grid.queue("PLAY")
    (job_id,) = grid.submit(grid.job(queue=queue))
    spec = manifest(ROOT / "containers/kubernetes/job.yaml")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    spec["hostNetwork"] = True
    container |= {
        "image": image,
        "imagePullPolicy": "Never",
        "args": ["--pilot-user", "generic", *_options(grid, queue)],
    }
    values = {"pandaQueueName": queue, "computingSite": "SITE"}
    container["env"] = [
        one | {"value": values.get(one["name"], one["value"])} for one in container["env"] if "value" in one
    ]
    container["env"] = [one for one in container["env"] if not one["name"].startswith(("PANDA_AUTH", "GOOGLE"))]
    top = {"name": "grid", "hostPath": {"path": str(grid.top)}}
    spec["volumes"] = [{"name": name, "emptyDir": {}} for name in ("pilot-dir", "tmp")] + [top]
    container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] in ("pilot-dir", "tmp")]
    container["volumeMounts"].append({"name": "grid", "mountPath": str(grid.top)})
    del container["livenessProbe"], container["resources"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": next(NAMES)}, "spec": spec}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    done = podman("play", "kube", str(tmp_path / "pod.yaml"), timeout=60)
    try:
        assert done.returncode == 0, done.stderr
        name = f"{pod['metadata']['name']}-pilot"
        assert podman("wait", name, timeout=60).stdout.strip() == "0", podman("logs", name)
        assert grid.job_of(job_id).state == "finished"
    finally:
        podman("pod", "rm", "--force", "--time=0", pod["metadata"]["name"])
