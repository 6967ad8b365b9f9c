"""cluster/ tried: the image's steps in a clean environment, and every way to start a job on real Ray nodes.

    python -m pytest -m slow tests/test_cluster_runs.py

No container engine, Kubernetes or Slurm is needed: the hosts are namespaces (tests/hosts.py), srun and scontrol are
stand-ins; commands, options and settings are those of the files in cluster/.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import dockerfile, slurm_stubs
from tests.hosts import Hosts, three_hosts
from tests.small_world import STEPS, make_world
from tests.test_cluster_files import CLUSTER, TOP, manifest, written_commands
from twilbert.tracking.metrics import read_metrics

pytestmark = pytest.mark.slow
TIMEOUT = 1500  # seconds; the work is a minute or two on an idle machine
SMALL = ["training.global_batch_size=32", "training.micro_batch_tokens=512", "tracking.mode=disabled"]
FEW_STEPS = [
    *SMALL,
    "training.warmup_steps=1",
    "training.max_steps=4",
    "training.eval_steps=4",
    "training.save_steps=4",
]
# Exit code 0 when all three hosts are in the cluster.
ALL_JOINED = 'import ray; ray.init("10.77.0.1:6379", logging_level="ERROR"); raise SystemExit(len(ray.nodes()) != 3)'


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Three hosts, gone when the test ends."""
    with three_hosts() as made:
        yield made


@pytest.fixture
def world(hosts: Hosts) -> Path:
    """What stands for /shared on all hosts: the corpus, the tokenizer and small.yaml of tests/small_world.py."""
    return make_world(hosts.folder / "shared")


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of a run's sealed checkpoints, in order."""
    return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*/manifest.json"))


def trained_steps(run: Path) -> int:
    """The step of a run's newest checkpoint; its metrics must reach as far."""
    newest = checkpoint_steps(run)[-1]
    assert max(row["step"] for row in read_metrics(str(run / "metrics.jsonl"))) == newest
    return newest


def test_the_images_steps_make_a_clean_environment_pinned_by_the_constraints_that_starts_the_command(tmp_path):
    text = (CLUSTER / "Dockerfile").read_text()
    # PyTorch comes from where this machine's pip is told to look, not from the address that the image takes it from.
    script = dockerfile.build_script(text, TOP, tmp_path, {"TORCH_INDEX": ""})
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON", "RAY_"))}
    built = subprocess.run(
        ["bash", "-c", script], env=kept | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-2000:]

    environment = tmp_path / "opt" / "twilbert"
    clean = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path / "home" / "twilbert")}

    def run(*command: str) -> str:
        done = subprocess.run(command, env=clean, cwd=clean["HOME"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "the same command resumes a run" in run("python", "-m", "twilbert.pretrain", "--help")
    assert "max_steps: 600" in run("python", "-m", "twilbert.pretrain", "recipes/tiny.yaml", "--dry-run")
    where = run("python", "-c", "import twilbert, torch; print(twilbert.__file__, torch.version.cuda)")
    assert where.startswith(str(environment)), "the sources are not what runs"
    assert run("ray", "--version").startswith("ray, version")
    assert os.access(environment / "bin" / "twilbert-before-stop", os.X_OK)

    pinned = set((TOP / "constraints.txt").read_text().lower().replace("_", "-").split("\n"))
    frozen = run("python", "-m", "pip", "freeze").lower().replace("_", "-").split()
    installed = {line.split("+")[0] for line in frozen if "==" in line}
    assert len(installed) > 80 and installed - {line for line in installed if line.startswith("wheel==")} <= pinned


@pytest.mark.ray
def test_the_slurm_script_trains_on_two_nodes_to_the_end(hosts, world):
    hosts.add_command("scontrol", slurm_stubs.SCONTROL)
    hosts.add_command("srun", slurm_stubs.SRUN)
    job = slurm_stubs.ENVIRONMENT | {"VIRTUAL_ENV": sys.prefix, "SLURM_JOB_END_TIME": str(int(time.time()) + 6 * 3600)}
    arguments = [str(world / "small.yaml"), "run.name=slurm", "tracking.mode=disabled"]
    code, output = hosts.run(f"bash {CLUSTER / 'slurm.sh'} {shlex.join(arguments)}", job, TIMEOUT)
    assert code == 0, output[-3000:]
    assert "On worker node. Connecting to Ray cluster at host1:24242" in output
    assert "cluster.num_workers=2" in output and "training.max_time=3" in output
    assert "done; model in" in output
    assert trained_steps(world / "runs" / "slurm") == STEPS


@pytest.mark.ray
def test_the_slurm_script_fails_with_the_commands_exit_code_and_where_ray_does_not_start(hosts, world):
    hosts.add_command("scontrol", slurm_stubs.SCONTROL)
    hosts.add_command("srun", "#!/usr/bin/env bash\necho 'Failed to start Ray'\n")
    job = slurm_stubs.ENVIRONMENT | {"VIRTUAL_ENV": sys.prefix}
    script = f"bash {CLUSTER / 'slurm.sh'} {world / 'small.yaml'}"
    code, output = hosts.run(script, job, TIMEOUT)
    assert code == 1 and "Ray did not start on every node" in output
    # srun that runs the command alone, as symmetric-run does once Ray has started
    alone = '#!/usr/bin/env bash\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
    hosts.add_command("srun", alone)
    code, output = hosts.run(f"{script} training.max_stepz=1", job, TIMEOUT)
    assert code == 2 and "max_stepz" in output


# What KubeRay makes of a RayJob: a `ray start` with the group's parameters in every pod, the token in its environment,
# and, when all pods are ready, `ray job submit`. {start} is that of the head, {join} the workers'.
_RAYJOB = """
cd {shared}
host 1 bash -ec '{start}; while [ ! -e end-1 ]; do sleep 1; done; {before} head; touch ended-1' &
for worker in 2 3; do
    host $worker bash -c '
        until ray health-check --address 10.77.0.1:6379 2> status-$0; do sleep 1; done # what its first container does
        {join} && while [ ! -e end-$0 ]; do sleep 1; done && {before} worker && touch ended-$0' $worker &
done
until host 1 python -c '{all_joined}' 2> status; do sleep 2; done
submit() {{ RAY_AUTH_TOKEN=$token host 1 ray job submit --address http://10.77.0.1:8265 "$@"; }}
token=a-wrong-one
submit -- true && exit 9
token=$RAY_AUTH_TOKEN
submit -- {command} run.name=whole {few}

submit --no-wait -- {command} run.name=ended {small} training.max_steps=100000
metrics=runs/ended/metrics.jsonl
until [ "$(cat $metrics 2> status | wc -l)" -ge 2 ]; do sleep 1; done
for worker in 2 3; do # one that trains is a spot machine, and gets its notice
    if host $worker bash -c 'grep -lsP ^ray::RayTrainWorker /proc/[0-9]*/cmdline' > training; then break; fi
done
touch end-$worker
until ls runs/ended/checkpoint-*/manifest.json 2> status; do sleep 1; done
touch end-1
until [ -e ended-1 ] && [ -e ended-$worker ]; do sleep 1; done
"""


@pytest.mark.ray
def test_the_tiny_rayjob_trains_to_the_end_and_a_pod_that_ends_leaves_a_checkpoint(hosts, world):
    spec = manifest("tiny.yaml")["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert groups[1]["replicas"] == 2
    options = [" ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items()) for group in groups]
    variables = {entry["name"]: entry["value"] for entry in groups[0]["template"]["spec"]["containers"][0]["env"]}
    script = _RAYJOB.format(
        start=f"ray start --head --port=6379 --dashboard-host=0.0.0.0 {options[0]}",
        join=f"ray start --address=10.77.0.1:6379 {options[1]}",
        command=spec["entrypoint"].replace("/shared", str(world)),
        few=shlex.join(FEW_STEPS),
        small=shlex.join(SMALL),
        all_joined=ALL_JOINED,
        shared=world,
        before=f"bash {CLUSTER / 'kubernetes' / 'before_stop.sh'}",
    )
    environment = variables | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    code, output = hosts.run(script, environment | {"RAY_ADDRESS": "10.77.0.1:6379"}, TIMEOUT)
    assert code == 0, output[-3000:]
    assert trained_steps(world / "runs" / "whole") == 4
    saved = checkpoint_steps(world / "runs" / "ended")
    # recipes/tiny.yaml saves every 200 steps: these were written for the notice and for the end
    assert len(saved) == 2 and saved[-1] < 200, saved


_ON_PREMISES = """
export RAY_AUTH_MODE=token
host 1 ray get-auth-token --generate > {shared}/token
for machine in 2 3; do cp -r {home1}/.ray {folder}/home$machine/; done
host 1 bash -ic '{stop}; {start}'
for machine in 2 3; do RAY_HEAD_IP=10.77.0.1 host $machine bash -ic '{join}'; done
until host 1 python -c '{all_joined}' 2> {shared}/status; do sleep 2; done
host 1 ray job submit --address http://localhost:8265 -- {command} run.name=own {few}
"""


@pytest.mark.ray
def test_the_commands_of_the_machines_on_premises_make_a_cluster_that_trains(hosts, world):
    from ray.autoscaler._private.util import prepare_config

    config = yaml.safe_load((CLUSTER / "on-premises.yaml").read_text())
    for number in (1, 2, 3):
        hosts.home(number).mkdir(exist_ok=True)
        (hosts.home(number) / "twilbert-venv").symlink_to(sys.prefix)
    # what `ray up` leaves on the head: here without workers, since there is no ssh to start them by
    provider = {"type": "local", "head_ip": "10.77.0.1", "worker_ips": []}
    left = prepare_config(config | {"provider": provider})
    (hosts.home(1) / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(left))
    _, *overrides = written_commands()["on-premises.yaml"]
    fewer = {"cluster.num_workers=16": "cluster.num_workers=2", "cluster.use_gpu=true": "cluster.use_gpu=false"}
    assert fewer.keys() <= set(overrides)
    words = ["python", "-m", "twilbert.pretrain", "/shared/small.yaml", *(fewer.get(o, o) for o in overrides)]
    stop, start = config["head_start_ray_commands"]
    script = _ON_PREMISES.format(
        stop=stop,
        start=start,
        join=config["worker_start_ray_commands"][1],
        command=shlex.join(words).replace("/shared", str(world)),
        few=shlex.join(FEW_STEPS),
        all_joined=ALL_JOINED,
        shared=world,
        home1=hosts.home(1),
        folder=hosts.folder,
    )
    code, output = hosts.run(script, {}, TIMEOUT)
    assert code == 0, output[-3000:]
    assert trained_steps(world / "runs" / "own") == 4
