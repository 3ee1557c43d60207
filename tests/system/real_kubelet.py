"""Pods of our manifests under a real kubelet; run by `test_kubelet.py` inside namespaces of their own.

No controller runs, so what is made is the pod of a job: its template, with a name and a node. Besides that, what is
changed is said where it is: the network is the node's, the server and its storage are the test's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml

from tests.grid import Grid, Scenarios, processes_with, until
from tests.parts.kubelet import NODE, PAUSE, Node

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "token-of-a-pilot"
IMAGES = {"pilot": ["registry.example.org/pilot:4.0.0"], "base": ["registry.example.org/payload:1", PAUSE]}


class Pod:
    """The pod of a job's manifest, from its creation on watched by kubectl.

    Args:
        change: what to change in its specification.
    """

    def __init__(self, site: Site, queue: str, *, file: str = "job.yaml", **change: Any) -> None:
        self.site, self.node, self.name = site, site.node, queue.lower()
        spec = site.spec(file, queue)
        (container,) = spec["containers"]
        for key, value in change.pop("container", {}).items():
            container[key] |= value
        names = {"name": self.name, "labels": {"job-name": self.name}}  # that label the controller of jobs adds
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": names, "spec": spec | change}
        done = self.node("create", "--filename=-", given=pod)
        assert done.returncode == 0, done.stderr
        self._log = site.top / f"{self.name}.log"
        self._log.touch()
        self.states: list[dict[str, Any]] = []
        self._watch = self.node.follow("get", "pod", self.name, "--watch", "--output=json", out=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.until(lambda: self.status.get("phase") in ("Running", "Succeeded", "Failed"), "it runs")
        with open(self._log, "wb") as log:
            self._logs = self.node.follow("logs", "--follow", "--container=pilot", self.name, out=log)

    def _read(self) -> None:
        text = ""
        assert self._watch.stdout
        with self._watch.stdout as lines:
            for line in lines:
                text += line.decode()
                if line == b"}\n":  # the next object is the next state
                    self.states.append(json.loads(text))
                    text = ""

    def until(self, what: Any, why: str, seconds: float = 60) -> Any:
        return until(what, seconds, lambda: f"{why}: {json.dumps(self.status)}\n{self.log}\n{self.events}")

    @property
    def status(self) -> dict[str, Any]:
        """The last that was seen, also when the pod is no more."""
        return self.states[-1]["status"] if self.states else {}

    @property
    def ended(self) -> dict[str, Any]:
        """How its container ended, empty if it has not."""
        (state,) = (one["state"] for one in self.status.get("containerStatuses") or [{"state": {}}])
        found: dict[str, Any] = state.get("terminated", {})
        return found

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def events(self) -> str:
        words = ("get", "events", f"--field-selector=involvedObject.name={self.name}", "--no-headers")
        return self.node(*words).stdout

    def wait(self, seconds: float = 60) -> int:
        """Its exit status."""
        status: int = self.until(lambda: self.ended, "it ends", seconds)["exitCode"]
        return status

    def stopped(self, seconds: float = 30) -> None:
        """It ended by SIGTERM. The last state of a pod that is deleted may never be told; its log is."""
        words = ("the pilot ended with status 143", "stopped by SIGTERM before the pilot began")
        self.until(lambda: any(text in self.log for text in words), "it ends by SIGTERM", seconds)
        assert self.ended.get("exitCode", 143) == 143

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.node("exec", self.name, "--", *words)

    def delete(self, *words: str) -> float:
        """Delete it; seconds until it is gone from the server."""
        began = time.monotonic()
        done = self.node("delete", "pod", self.name, *words)
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began

    def pids(self) -> list[int]:
        """Its processes, as the node sees them; the first is its process 1."""
        uid = self.states[0]["metadata"]["uid"]
        (group,) = Path("/sys/fs/cgroup/pids", self.site.group).glob(f"kubepods/*/pod{uid}")
        (ident,) = (one["containerID"].rpartition("/")[2] for one in self.status["containerStatuses"])
        return sorted(map(int, (group / ident / "cgroup.procs").read_text().split()))

    def said(self, text: str) -> float:
        """When its log said something, s since the epoch."""
        self.until(lambda: text in self.log, f"it says {text}", 10)
        line = next(line for line in self.log.splitlines() if text in line)
        return datetime.strptime(line[:23] + "+0000", "%Y-%m-%d %H:%M:%S,%f%z").timestamp()

    def let_go(self) -> None:
        self.exec("bash", "-c", "cd /scratch/pod-*/PanDA_Pilot3_*/PanDA_Pilot-*/ && touch go")

    def close(self) -> None:
        for process in (self._watch, self._logs):
            process.kill()
            process.wait()
        self._reader.join()
        self.node("delete", "pod", self.name, "--grace-period=0", "--force", "--ignore-not-found")


class Site:
    """A grid and a node."""

    def __init__(self, top: Path, grid: Grid, node: Node, group: str) -> None:
        self.top, self.grid, self.node, self.group = top, grid, node, group
        self._pods: list[Pod] = []

    def spec(self, file: str, queue: str) -> dict[str, Any]:
        text = Template(
            (ROOT / "containers/kubernetes" / file)
            .read_text()
            .replace("ORIGIN, value: example", "ORIGIN, value: Rubin")
        )
        variables = {"computingSite": "SITE", "pandaQueueName": queue, "HARVESTER_ID": "H", "workerID": "17"}
        spec: dict[str, Any] = yaml.safe_load(text.safe_substitute(variables))["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        words = self.grid.options(queue=queue)
        for flag in ("-a", "-q", "-s", "-r", "-j", "--pilot-user"):
            at = words.index(flag)
            del words[at : at + 2]
        container["args"] += words
        container["resources"]["requests"]["cpu"] = "100m"  # several scenarios run side by side
        spec["volumes"].append({"name": "grid", "hostPath": {"path": str(self.grid.top)}})
        container["volumeMounts"].append({"name": "grid", "mountPath": str(self.grid.top)})
        return spec | {"nodeName": NODE, "hostNetwork": True}

    def job(self, queue: str, command: str, outputs: Sequence[str] = ()) -> int:
        self.grid.queue(queue)
        (job_id,) = self.grid.submit(self.grid.job(command, queue=queue, outputs=outputs))
        return job_id

    def pod(self, queue: str, **change: Any) -> Pod:
        self._pods.append(Pod(self, queue, **change))
        return self._pods[-1]

    def running(self, job_id: int, pod: Pod) -> None:
        pod.until(lambda: self.grid.job_of(job_id).state == "running", "its job runs", 40)

    def close(self) -> None:
        for pod in self._pods:
            pod.close()


scenario = Scenarios(4, given="site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    os.umask(0o022)
    top = Path(os.environ["PILOT_NODE"])
    group = os.environ["PILOT_GROUP"]
    images = {top / f"{name}.tar": names for name, names in IMAGES.items()}
    with Grid(top / "grid", token=TOKEN, origin="Rubin") as grid, Node(top, group, images) as node:
        for path in (grid.top, grid.storage, grid.work):
            path.chmod(0o777)  # the pod is another user
        words = ("--from-literal=panda_token=" + TOKEN, "--from-literal=panda_token_key=key")
        assert node("create", "secret", "generic", "credentials", *words).returncode == 0
        site = Site(top, grid, node, group)
        yield site
        site.close()


running = scenario.fixture()


@scenario
def a_job_runs_to_its_end_without_privilege(site: Site) -> None:
    rights = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' ' '; echo; touch /opt/x"
    job_id = site.job("NORMAL", f"id -u; {rights} 2>&1; until [ -e go ]; do sleep 0.1; done; echo x > n.txt", ["n.txt"])
    pod = site.pod("NORMAL")
    site.running(job_id, pod)
    alive = pod.exec("python3", "/opt/pilot3/pilot.py", "alive")
    files = pod.exec("bash", "-c", "stat -Lc '%a %u %g' /credentials/*; stat -c '%a %u' /scratch/pod-*/credentials/*")
    environ = pod.exec("bash", "-c", "tr '\\0' '\\n' < /proc/1/environ").stdout.splitlines()
    pod.let_go()

    assert pod.wait() == 0, pod.log
    pod.until(lambda: pod.status["phase"] == "Succeeded", "the phase of the pod")
    assert alive.stdout.startswith("running for ")
    assert f"job {job_id}: payload" in alive.stdout
    assert files.stdout.splitlines() == ["440 0 10001"] * 2 + ["600 10001"] * 2  # of the secret, and the pilot's copies
    assert {"K8S_JOB_ID=normal", "storageLimitMiB=20480", "proxyContent=$proxyContent"} <= {*environ}
    assert "grace after a stop signal: 12.5 s (TERMINATION_GRACE_PERIOD_SECONDS is 15 s)" in pod.log
    assert "control groups version 1 with a limit of 4096 MB; Kubernetes normal; pod storage 20480 MB" in pod.log
    job = site.grid.job_of(job_id)
    assert (job.state, job.fields["batch_id"]) == ("finished", "normal")
    user, kernel, refused = job.log()["payload.stdout"].decode().splitlines()
    assert user == "10001"
    nothing = "0000000000000000"
    assert kernel.split() == ["CapEff:", nothing, "CapBnd:", nothing, "NoNewPrivs:", "1", "Seccomp:", "2"]
    assert "Read-only file system" in refused


OBEYS, IGNORES = "sleep 600", "trap : TERM; while :; do sleep 0.2; done"


@scenario.for_each(obeys=("DELETE-1", OBEYS, 2), ignores=("DELETE-2", IGNORES, 8))
def a_pod_that_is_deleted_reports_its_job(site: Site, queue: str, payload: str, most: float) -> None:
    job_id = site.job(queue, payload)
    pod = site.pod(queue)
    site.running(job_id, pod)
    began = time.time()
    took = pod.delete()

    pod.stopped()
    heard = pod.said("received SIGTERM: ending within 12 s")
    ended = pod.said("pilot ends after")
    tell(queue, f"TERM after {heard - began:.1f} s, the pilot's end {ended - heard:.1f} s later, {took:.1f} s in all")
    assert heard - began < 3
    assert ended - heard < most
    assert took < 30
    reported(site, job_id)


@scenario
def a_pod_that_is_deleted_as_it_starts_hears_of_it(site: Site) -> None:
    """The kernel throws away a signal that process 1 does not listen for yet."""
    job_id = site.job("EARLY", OBEYS)
    pod = site.pod("EARLY")
    pod.delete()
    pod.stopped()
    job = site.grid.job_of(job_id)
    assert job.reported_once() or not job.states


@scenario
def an_evicted_pod_reports_its_job(site: Site) -> None:
    """By the API, as when a node is drained: that is a delete."""
    job_id = site.job("EVICT", IGNORES)
    pod = site.pod("EVICT")
    site.running(job_id, pod)
    pids = pod.pids()
    eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": pod.name}}
    path = f"/api/v1/namespaces/default/pods/{pod.name}/eviction"
    done = site.node("create", f"--raw={path}", "--filename=-", given=eviction)
    assert done.returncode == 0, done.stderr
    pod.until(lambda: not any(map(lives, pids)), "its processes end", 20)
    reported(site, job_id)


@scenario.for_each(obeys=("FORCE-1", OBEYS), ignores=("FORCE-2", IGNORES))
def a_pod_that_is_deleted_by_force_has_two_seconds(site: Site, queue: str, payload: str) -> None:
    """On the server it is gone at once. A payload that does not obey costs the report, but does not outlive it."""
    job_id = site.job(queue, payload)
    pod = site.pod(queue)
    site.running(job_id, pod)
    pids = pod.pids()
    began = time.monotonic()
    pod.delete("--grace-period=0", "--force")
    pod.until(lambda: not any(map(lives, pids)), "its processes end", 20)
    tell(queue, f"all gone after {time.monotonic() - began:.1f} s")
    if payload == OBEYS:
        reported(site, job_id)
    else:
        assert site.grid.job_of(job_id).state == "running"


@scenario
def a_pod_whose_time_is_up_reports_its_job(site: Site) -> None:
    """Harvester makes `maxtime` of the queue the deadline of the pod."""
    job_id = site.job("DEADLINE", IGNORES)
    pod = site.pod("DEADLINE", activeDeadlineSeconds=20)
    site.running(job_id, pod)
    pids = pod.pids()
    pod.stopped(60)
    pod.until(lambda: not any(map(lives, pids)), "its processes end", 10)
    assert (pod.status["phase"], pod.status["reason"]) == ("Failed", "DeadlineExceeded")
    reported(site, job_id)


@scenario
def a_node_that_shuts_down_ends_all_processes_at_once(site: Site) -> None:
    """As systemd ends the scope of a container: SIGTERM to each process in it."""
    job_id = site.job("SHUTDOWN", "trap : TERM; while :; do sleep 0.2; done")
    pod = site.pod("SHUTDOWN")
    site.running(job_id, pod)
    began = time.monotonic()
    for pid in pod.pids():
        os.kill(pid, signal.SIGTERM)
    assert pod.wait() == 143
    tell("SHUTDOWN", f"ended after {time.monotonic() - began:.1f} s")
    reported(site, job_id)


@scenario
def a_pilot_that_hangs_is_ended_and_a_quiet_payload_is_not(site: Site) -> None:
    """The probe as it is, but for its times; SIGSTOP is what no pilot hears."""
    job_id = site.job("HANGS", "exec sleep 600")
    quick = {"initialDelaySeconds": 15, "periodSeconds": 2, "failureThreshold": 2}
    pod = site.pod("HANGS", container={"livenessProbe": quick}, terminationGracePeriodSeconds=5)
    site.running(job_id, pod)
    time.sleep(22)
    assert not pod.ended
    assert "Unhealthy" not in pod.events
    pids = pod.pids()
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    assert pod.wait(90) == 137
    tell("HANGS", f"ended after {time.monotonic() - began:.1f} s")
    pod.until(lambda: pod.status["phase"] == "Failed", "the phase of the pod")
    assert "no answer from a pilot" in pod.events
    assert not any(map(lives, pids))


@scenario
def a_payload_that_takes_all_memory_is_reported(site: Site) -> None:
    eat = "python3 -c \"b = bytearray(1 << 30); b[::4096] = b[::4096].replace(b'\\0', b'x')\""
    job_id = site.job("MEMORY", eat)
    few = {"requests": {"memory": "100Mi"}, "limits": {"memory": "200Mi"}}
    pod = site.pod("MEMORY", container={"resources": few})
    assert pod.wait() == 0, pod.log
    job = site.grid.job_of(job_id)
    tell("MEMORY", f"{job.code} {job.diag}; {pod.ended['reason']}")
    assert (job.state, job.code) in (("failed", 1212), ("failed", 1235)), job.diag
    assert "204800 kB" in job.diag
    pod.until(lambda: pod.status["phase"] == "Succeeded", "the phase of the pod")
    assert pod.ended["reason"] == ("OOMKilled" if job.code == 1212 else "Completed")


LITTLE_DISK = {
    "requests": {"ephemeral-storage": "300Mi"},
    "limits": {"memory": "2Gi", "ephemeral-storage": "300Mi"},
}


@scenario
def a_payload_that_writes_too_much_is_reported(site: Site) -> None:
    """Before the kubelet evicts the pod, which counts more than the job's directory."""
    job_id = site.job("DISK", "head -c 290M /dev/zero > much; head -c 20M /dev/zero > /tmp/more; sleep 600")
    pod = site.pod("DISK", container={"resources": LITTLE_DISK})
    assert pod.wait(120) == 0
    job = site.grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", 1104), job.diag


@scenario
def a_pod_that_the_kubelet_evicts_has_no_grace(site: Site) -> None:
    """Because of what the pilot does not count. No SIGTERM comes."""
    job_id = site.job("TMP", "head -c 400M /dev/zero > /tmp/much; sleep 600")
    pod = site.pod("TMP", container={"resources": LITTLE_DISK})
    site.running(job_id, pod)
    pids = pod.pids()
    pod.until(lambda: pod.status["phase"] == "Failed", "the kubelet sees it", 150)
    pod.until(lambda: not any(map(lives, pids)), "its processes end", 10)
    assert pod.status["reason"] == "Evicted"
    assert site.grid.job_of(job_id).state == "running"  # the server finds it without heartbeat


@scenario
def a_pilot_runs_in_the_image_of_its_payloads(site: Site) -> None:
    job_id = site.job("IMAGE", "[ ! -e /opt/pilot3 ] && ! touch /pilot/pilot3/x")
    pod = site.pod("IMAGE", file="job-payload-image.yaml")
    assert pod.wait() == 0, pod.log
    assert site.grid.job_of(job_id).state == "finished"
    assert "(TERMINATION_GRACE_PERIOD_SECONDS is 60 s)" in pod.log


def reported(site: Site, job_id: int) -> None:
    """A stop ended in one report and a log, and nothing of the payload lives."""
    job = site.grid.job_of(job_id)
    assert (job.state, job.code) == ("failed", 1201)
    assert job.reported_once()
    assert job.log_path.exists()
    assert not processes_with(f"PandaID={job_id}")


def tell(what: str, text: str) -> None:
    """A figure for people to read."""
    with open(os.environ["PILOT_NODE"] + "/figures", "a") as file:
        file.write(f"{what}: {text}\n")


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


test_scenario = scenario.test()


def test_a_job_does_not_notice_that_the_kubelet_restarts(site: Site) -> None:
    job_id = site.job("RESTART", "until [ -e go ]; do sleep 0.1; done")
    pod = site.pod("RESTART")
    site.running(job_id, pod)
    pids = pod.pids()
    site.node.restart_kubelet()
    assert pod.pids()[:3] == pids[:3]  # process 1, the pilot, the payload
    pod.let_go()
    assert pod.wait() == 0
    assert pod.status["containerStatuses"][0]["restartCount"] == 0
    assert site.grid.job_of(job_id).state == "finished"
