"""The fields of KubeRay's RayJob, as its operator documents them.

Source: ray-project/kuberay docs/reference/api.md at release v1.7.0 (commit 97509c3a7216cf3440af381646560a1885afb53b),
which its CI generates from the Go types of the custom resources; also docs.ray.io, "KubeRay CRD API reference".
"""

from __future__ import annotations

from typing import Any

_FIELDS = {
    "RayJobSpec": """activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector
        submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources
        entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished preRunningDeadlineSeconds shutdownAfterJobFinishes
        suspend""",
    "RayClusterSpec": """upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations
        enableInTreeAutoscaling gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions headGroupSpec
        rayVersion workerGroupSpecs""",
    "AuthOptions": "enableK8sTokenAuth secretName mode",
    "AutoscalerOptions": """resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version
        env envFrom volumeMounts command args""",
    "HeadGroupSpec": """template headService enableIngress ingressOptions resources labels rayStartParams
        serviceType""",
    "WorkerGroupSpec": """suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources
        labels rayStartParams template scaleStrategy numOfHosts""",
}
# Field -> the type of its value, where that is one of the operator's own.
_TYPES = {
    "rayClusterSpec": "RayClusterSpec",
    "authOptions": "AuthOptions",
    "autoscalerOptions": "AutoscalerOptions",
    "headGroupSpec": "HeadGroupSpec",
    "workerGroupSpecs": "WorkerGroupSpec",
}
_REQUIRED = {
    "RayClusterSpec": {"headGroupSpec"},
    "HeadGroupSpec": {"template", "rayStartParams"},
    "WorkerGroupSpec": {"groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"},
}
_VALUES = {"mode": {"disabled", "token"}, "version": {"v1", "v2"}}


def faults(spec: dict[str, Any], kind: str = "RayJobSpec") -> list[str]:
    """What the operator does not document in a RayJob's `spec`: unknown fields and values, missing ones."""
    found = [f"{kind}.{key}: not documented" for key in spec.keys() - set(_FIELDS[kind].split())]
    found += [f"{kind}.{key}: missing" for key in _REQUIRED.get(kind, set()) - spec.keys()]
    for key, value in spec.items():
        if key in _VALUES and value not in _VALUES[key]:
            found.append(f"{kind}.{key}: {value} is none of {sorted(_VALUES[key])}")
        if key in _TYPES:
            for item in value if isinstance(value, list) else [value]:
                found += faults(item, _TYPES[key])
    start = spec.get("rayStartParams", {})
    found += [f"{kind}.rayStartParams.{key}: not a string" for key in start if not isinstance(start[key], str)]
    return sorted(found)
