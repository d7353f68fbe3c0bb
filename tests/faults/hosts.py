"""Two hosts on one machine: network namespaces that see each other over one cable (a veth pair),
and nothing else.

Each has its own loopback, address, ports and host name; the file system is one, as on a cluster
with shared storage, unless a host is given a folder of its own in the place of a shared one. Needs
root and `ip` (Debian: iproute2).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NETWORK_CARD = "net0"
ADDRESSES = ("10.231.87.1", "10.231.87.2")
HOST_NAMES = ("alpha", "beta")
PORT = 29500


def why_not() -> str | None:
    """Why this machine cannot have such hosts, None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]:
        return f"{missing[0]} is not here (Debian: iproute2, util-linux)"
    name = f"mats-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"ip netns add: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    tried = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"unshare: {tried.stderr.strip()}" if tried.returncode != 0 else None


@dataclass
class Host:
    """One of the two. `own_folders`: shared folder -> the folder of its own that this host sees in
    its place."""

    name: str
    address: str
    namespace: str
    own_folders: dict[Path, Path] = field(default_factory=dict)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The same command, run on this host."""
        steps = [f"echo {self.name} > /proc/sys/kernel/hostname"]
        steps += [f"mount --bind '{own}' '{shared}'" for shared, own in self.own_folders.items()]
        inside = " && ".join([*steps, 'exec "$@"'])
        # `ip netns exec` has a mount namespace of its own already; its mounts reach nobody else
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", inside, "sh", *arguments]

    def start(self, arguments: Sequence[str], *, log: Path, variables: Mapping[str, str], folder: Path) -> subprocess.Popen:
        """Start it in a process group of its own, in `folder`, with what it prints in `log`."""
        with log.open("w") as file:
            return subprocess.Popen(
                self.command(arguments),
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class TwoHosts:
    """`with TwoHosts() as hosts:` hosts[0] and hosts[1], and the cable between them. Nothing of
    them is left at the end."""

    def __init__(self) -> None:
        self.hosts = [
            Host(name, address, f"mats-{name}-{os.getpid()}") for name, address in zip(HOST_NAMES, ADDRESSES, strict=True)
        ]
        self.started: list[subprocess.Popen] = []

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def __enter__(self) -> TwoHosts:
        try:
            first, second = (host.namespace for host in self.hosts)
            for host in self.hosts:
                ip("netns", "add", host.namespace)
            ip("link", "add", NETWORK_CARD, "netns", first, "type", "veth", "peer", "name", NETWORK_CARD, "netns", second)
            for host in self.hosts:
                ip("-n", host.namespace, "link", "set", "lo", "up")
                ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", NETWORK_CARD)
                ip("-n", host.namespace, "link", "set", NETWORK_CARD, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        for process in self.started:
            end_group(process)
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)

    def cut_cable(self) -> None:
        """From now on no packet of one reaches the other, and nobody is told."""
        ip("-n", self.hosts[1].namespace, "link", "set", NETWORK_CARD, "down")

    def serve_ssh(self, folder: Path) -> dict[str, str]:
        """An sshd on each host, with keys of their own in `folder`; returns the variables with
        which pdsh reaches them."""
        folder.mkdir(mode=0o700)
        key, known = folder / "key", folder / "known_hosts"
        for path in (key, folder / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        (folder / "authorized_keys").write_bytes((folder / "key.pub").read_bytes())
        Path("/run/sshd").mkdir(exist_ok=True)
        settings = {"HostKey": folder / "host_key", "AuthorizedKeysFile": folder / "authorized_keys", "PidFile": "none"}
        settings |= {"StrictModes": "no", "UsePAM": "no", "PermitRootLogin": "yes", "PasswordAuthentication": "no"}
        for host in self.hosts:
            command = [shutil.which("sshd"), "-D", "-e", "-f", "/dev/null", "-o", f"ListenAddress={host.address}"]
            command += [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
            self.started.append(host.start(command, log=folder / f"{host.name}.log", variables={}, folder=folder))
        # DeepSpeed itself calls plain ssh too, which reads the user's own settings: a stand-in adds
        # ours.
        ssh = folder / "ssh"
        options = f"-i {key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
        ssh.chmod(0o755)
        return {"PATH": f"{folder}:{os.environ['PATH']}"}

    def launch(
        self,
        script: Path,
        arguments: Sequence[str],
        *,
        logs: Path,
        folder: Path,
        ranks_each: int = 2,
        on: Sequence[int] = (0, 1),
        extra: Mapping[int, Sequence[str]] | None = None,
    ) -> list[subprocess.Popen]:
        """DeepSpeed's per-node launcher on the hosts `on`, as pdsh would start it; what host i
        prints is in logs/NAME.log.

        extra: arguments of one host alone, by its index.
        """
        chosen = [self.hosts[index] for index in on]
        world = {host.address: list(range(ranks_each)) for host in chosen}
        encoded = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
        variables = {
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": NETWORK_CARD if len(chosen) > 1 else "lo",
            "OMP_NUM_THREADS": "1",
        }
        logs.mkdir(parents=True, exist_ok=True)
        launched = []
        for node_rank, (index, host) in enumerate(zip(on, chosen, strict=True)):
            command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={encoded}"]
            command += [f"--node_rank={node_rank}", f"--master_addr={chosen[0].address}", f"--master_port={PORT}", "--quiet"]
            command += [str(script), *arguments, *(extra or {}).get(index, ())]
            launched.append(host.start(command, log=logs / f"{host.name}.log", variables=variables, folder=folder))
        self.started += launched
        return launched


def ip(*arguments: str) -> None:
    """Run `ip`. Raises RuntimeError with what it says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def end_group(process: subprocess.Popen) -> None:
    """Leave nobody of its process group behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
