"""cluster/: every file is what its reader accepts, and all of them start the same command."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests import dockerfile, kuberay
from tests.places import TOP
from twilbert.errors import UsageError
from twilbert.recipe import loading

CLUSTER = TOP / "cluster"
MANIFESTS = ["tiny.yaml", "large-gpu.yaml"]
KUBERNETES = ["1.30", "1.37"]  # the oldest and newest whose schemas the manifests are held against


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kubernetes" / name).read_text())


def pod_templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> pod template of a RayJob."""
    spec = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"] for name, group in {"head": spec["headGroupSpec"], **groups}.items()}


def as_kubernetes_sees(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}


def written_commands() -> dict[str, list[str]]:
    """File -> the words after `python -m twilbert.pretrain` that it runs or, where the user types it, names."""
    found = {name: manifest(name)["spec"]["entrypoint"] for name in MANIFESTS}
    comments = {name: (CLUSTER / name).read_text() for name in ("on-premises.yaml", "slurm.sh")}
    for name, text in comments.items():
        uncommented = re.sub(r"\s*\\\n#\s*", " ", text)
        found[name] = next(line for line in uncommented.splitlines() if "recipes/" in line)
    start = {"slurm.sh": "cluster/slurm.sh"}
    return {
        name: shlex.split(command.split(start.get(name, "-m twilbert.pretrain"))[1]) for name, command in found.items()
    }


@pytest.mark.parametrize("name", [*MANIFESTS, "on-premises.yaml", "slurm.sh"])
def test_every_cluster_starts_the_same_command_with_settings_that_a_recipe_takes(name):
    recipe, *overrides = written_commands()[name]
    checked = loading.load(str(TOP / recipe), overrides)
    assert (checked.run.storage_path, checked.corpus.path) == ("/shared/runs", "/shared/corpus")
    assert checked.corpus.tokenizer == "/shared/tokenizer"
    if name == "slurm.sh":  # the script sets the number of workers from what Slurm gave
        text = (CLUSTER / name).read_text()
        assert 'python -m twilbert.pretrain "$recipe" "${settings[@]}" "$@"' in text
        assert "cluster.num_workers=$SLURM_JOB_NUM_NODES" in text
    else:
        assert any(override.startswith("cluster.num_workers=") for override in overrides)
    with pytest.raises(UsageError, match="workerz"):
        loading.load(str(TOP / recipe), [*overrides, "cluster.workerz=2"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_rayjob_has_only_fields_that_the_operator_documents(name):
    job = manifest(name)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert kuberay.faults(job["spec"]) == []

    broken = copy.deepcopy(job["spec"])
    broken["ttlSeconds"] = 1
    broken["rayClusterSpec"]["authOptions"]["mode"] = "tokens"
    broken["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    del broken["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert kuberay.faults(broken) == [
        "AuthOptions.mode: tokens is none of ['disabled', 'token']",
        "HeadGroupSpec.rayStartParams.num-cpus: not a string",
        "RayJobSpec.ttlSeconds: not documented",
        "WorkerGroupSpec.maxReplicas: missing",
    ]


@pytest.mark.parametrize("version", KUBERNETES)
def test_pod_templates_and_storage_hold_against_the_schemas_of_kubernetes(version):
    seen = list(yaml.safe_load_all((CLUSTER / "kubernetes" / "storage.yaml").read_text()))
    assert [item["kind"] for item in seen] == ["PersistentVolumeClaim", "Pod"]
    for name in MANIFESTS:
        templates = pod_templates(manifest(name))
        assert len(templates) == 2
        seen += [as_kubernetes_sees(template) for template in templates.values()]
    for item in seen:
        assert kubernetes_validate.validate(item, version, strict=True) == version

    broken = copy.deepcopy(seen[-1])
    broken["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_ordinary_users_share_the_volume_and_leave_time_for_a_checkpoint(name):
    job = manifest(name)
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}" in (TOP / "constraints.txt").read_text().split()
    claim = next(yaml.safe_load_all((CLUSTER / "kubernetes" / "storage.yaml").read_text()))["metadata"]["name"]
    _, user = next(item for item in dockerfile.instructions((CLUSTER / "Dockerfile").read_text()) if item[0] == "USER")
    for group, template in pod_templates(job).items():
        pod, container = template["spec"], template["spec"]["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"] and str(pod["securityContext"]["runAsUser"]) == user != "0"
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": claim}
        assert container["volumeMounts"][0]["mountPath"] == "/shared"
        role = "head" if group == "head" else "worker"
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["twilbert-before-stop", role]
        environment = {entry["name"]: entry for entry in container.get("env", [])}
        wait = environment.get("RAY_JOB_STOP_WAIT_TIME_S", {"value": "300" if role == "worker" else "0"})
        assert 300 == int(wait["value"]) < pod["terminationGracePeriodSeconds"]


def test_the_large_job_keeps_its_head_off_spot_scales_between_its_workers_and_holds_no_secret():
    job = manifest("large-gpu.yaml")
    spec, templates = job["spec"]["rayClusterSpec"], pod_templates(job)
    head, gpu = templates["head"]["spec"], templates["gpu"]["spec"]
    terms = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    kept_off = {rule["key"]: rule["values"] for rule in terms[0]["matchExpressions"] if rule["operator"] == "NotIn"}
    assert len(terms) == 1 and len(kept_off) == len(terms[0]["matchExpressions"]) == 4
    tolerated = {toleration["key"] for toleration in gpu["tolerations"]}
    assert "tolerations" not in head and {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated

    recipe, *overrides = written_commands()["large-gpu.yaml"]
    cluster = loading.load(str(TOP / recipe), overrides).cluster
    group = spec["workerGroupSpecs"][0]
    gpus = int(gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert spec["enableInTreeAutoscaling"] is True and cluster.use_gpu
    # the command asks for the least at once, and the autoscaler must be able to give the most
    assert (group["minReplicas"] * gpus, group["maxReplicas"] * gpus) == (cluster.least_workers, cluster.most_workers)
    assert int(gpu["containers"][0]["resources"]["limits"]["cpu"]) > gpus, "no CPU for Ray Data"

    for pod in (head, gpu):
        secrets = [entry for entry in pod["containers"][0]["env"] if re.search("KEY|TOKEN|SECRET", entry["name"])]
        assert {"WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"} <= {entry["name"] for entry in secrets}
        assert all("value" not in entry and entry["valueFrom"]["secretKeyRef"]["optional"] for entry in secrets)


def ray_start_options() -> set[str]:
    from ray.scripts.scripts import start

    return {option.removeprefix("--") for parameter in start.params for option in parameter.opts}


def test_ray_takes_every_option_that_the_files_start_it_with():
    known = ray_start_options()
    used: set[str] = set()
    for name in MANIFESTS:
        spec = manifest(name)["spec"]["rayClusterSpec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            used |= set(group["rayStartParams"])
    config = yaml.safe_load((CLUSTER / "on-premises.yaml").read_text())
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        used |= set(re.findall(r"--([a-z-]+)", command.partition("ray start")[2]))
    slurm = (CLUSTER / "slurm.sh").read_text().partition("ray symmetric-run")[2].partition(" -- ")[0]
    used |= set(re.findall(r"--([a-z-]+)", slurm)) - {"min-nodes"}  # symmetric-run's own
    assert {"num-cpus", "num-gpus", "head", "autoscaling-config", "address"} <= used <= known


def test_rays_own_validator_takes_the_cluster_of_machines_on_premises():
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((CLUSTER / "on-premises.yaml").read_text())
    jsonschema.validate(config, schema)
    assert len(config["provider"]["worker_ips"]) == 2
    started = [command for key in ("head", "worker") for command in config[f"{key}_start_ray_commands"][1:]]
    assert all("RAY_AUTH_MODE=token" in command for command in started) and len(started) == 2
    assert "RAY_JOB_STOP_WAIT_TIME_S=300" in started[0] and "--dashboard-host" not in started[0]
    with pytest.raises(jsonschema.ValidationError, match="head_start_ray_command'"):
        jsonschema.validate(config | {"head_start_ray_command": []}, schema)


def test_the_image_is_pinned_has_no_root_and_copies_only_what_is_there():
    text = (CLUSTER / "Dockerfile").read_text()
    steps = dockerfile.instructions(text)
    runs = [rest for name, rest in steps if name == "RUN"]
    assert [dockerfile.installs_system_packages(run) for run in runs] == [True, False]
    assert runs[1] == "bash cluster/install.sh"
    install = (CLUSTER / "install.sh").read_text()
    assert "-c constraints.txt" in install and '".[train]"' in install
    assert [name for name, _ in steps][-3:] == ["USER", "WORKDIR", "CMD"], "nothing is built as another user"
    assert ("FROM", "${BASE_IMAGE}") in steps and "ARG BASE_IMAGE=python:3.11-slim-bookworm" in text

    ignored = [line for line in (TOP / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert {"constraints.txt", "twilbert", "recipes"} <= set(copied)
    for source in copied:
        assert (TOP / source).exists()
        assert not any(fnmatch.fnmatch(source.split("/")[0], pattern) for pattern in ignored), source
    assert any(fnmatch.fnmatch("tests", pattern) for pattern in ignored)


@pytest.mark.parametrize("name", ["install.sh", "slurm.sh", "kubernetes/before_stop.sh"])
def test_shell_scripts_parse_and_refuse_to_start_without_what_they_need(name, tmp_path):
    assert subprocess.run(["bash", "-n", CLUSTER / name], check=False).returncode == 0
    bare = {"PATH": "/usr/bin:/bin"}
    refused = subprocess.run(
        ["bash", CLUSTER / name], env=bare, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert {"install.sh": "VIRTUAL_ENV", "slurm.sh": "usage: sbatch", "before_stop.sh": "head|worker"}[
        Path(name).name
    ] in refused.stderr
