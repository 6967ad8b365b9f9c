"""Three hosts on this machine, for tests that start real Ray nodes: namespaces joined by a virtual switch.

Each host has an address, a name, a process table (so that `ray stop` there ends no Ray of this machine) and a home
folder of its own. They see this machine's files, as hosts with shared storage do. Nothing but an own user namespace is
needed, and nothing is left when the test ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_WORLD = """
mount -t tmpfs tmpfs /run
ip link add switch type bridge
ip link set switch up
for number in 1 2 3; do
    ip netns add host$number
    ip link add cable$number type veth peer name eth0 netns host$number
    ip link set cable$number master switch up
    ip -n host$number address add 10.77.0.$number/24 dev eth0
    ip -n host$number link set eth0 up
    ip -n host$number link set lo up
    mkdir -p {folder}/home1/ray {folder}/home$number/ray
    nsenter --net=/run/netns/host$number unshare --mount --pid --fork --kill-child --mount-proc --uts bash -c "
        hostname host$number
        mount --bind {folder}/hosts /etc/hosts
        # Ray's session has the head's path everywhere, and on every host a folder of its own behind it
        mount --bind {folder}/home$number/ray {folder}/home1/ray
        touch {folder}/up$number
        while true; do sleep 1; done" &
    echo $! > {folder}/pid$number
    while [ ! -e {folder}/up$number ]; do sleep 0.1; done
done
"""

# `host N COMMAND...` runs on host N, as by ssh.
_HOST = """#!/usr/bin/env bash
pid=$(cat {folder}/pid$1)
export HOME={folder}/home$1 RAY_TMPDIR={folder}/home$1
shift
exec nsenter --target "$pid" --mount --uts --net --pid="/proc/$pid/ns/pid_for_children" --wd="$PWD" "$@"
"""

_NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]


class Hosts:
    """host1 to host3, at 10.77.0.1 to 10.77.0.3; `folder` is theirs, `log` what the latest script printed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "bin").mkdir()
        addresses = "".join(f"10.77.0.{number} host{number}\n" for number in (1, 2, 3))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{addresses}")
        self.add_command("host", _HOST.format(folder=folder))

    def home(self, number: int) -> Path:
        """The home folder of a host."""
        return self.folder / f"home{number}"

    def add_command(self, name: str, text: str) -> None:
        """An executable that scripts find by its name."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, environment: dict[str, str], timeout: float) -> tuple[int, str]:
        """Exit code (-1: after `timeout` seconds) and output of a bash script that may use `host`; then all is gone."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
        variables |= {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(150 * 2**20),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        whole = "set -euo pipefail\n" + _WORLD.format(folder=self.folder) + script
        for old in self.folder.glob("up?"):
            old.unlink()
        with self.log.open("w") as output:
            process = subprocess.Popen(
                [*_NAMESPACES, "--mount-proc", "--uts", "bash", "-c", whole],
                env=variables | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # --kill-child: with unshare goes all inside
                    process.wait()
        return code, self.log.read_text()


@contextlib.contextmanager
def three_hosts() -> Iterator[Hosts]:
    """Hosts in a folder whose short name leaves room for Ray's sockets; skips where namespaces are not to be had."""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (util-linux, iproute2) for hosts of their own")
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    made = Hosts(folder)
    code, output = made.run("host 1 true", {}, timeout=300)
    if code != 0:
        shutil.rmtree(folder)
        pytest.skip(f"no rights to make namespaces here: {output.strip()}")
    try:
        yield made
    finally:
        shutil.rmtree(folder)
