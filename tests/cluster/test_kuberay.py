"""KubeRay's own schemas on the manifests, where IGKD_SCHEMAS names the folder that has them in kuberay/."""

import copy
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.helpers.manifests import FILES, KINDS, KUBERNETES, load, pods, resources, schema, walk

SCHEMAS = os.environ.get("IGKD_SCHEMAS")
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("*/kustomization.yaml") if "kind: Kustomization" in path.read_text())
METADATA = {"name", "namespace", "labels", "annotations"}

needs_schemas = pytest.mark.skipif(SCHEMAS is None, reason="IGKD_SCHEMAS is not set")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def check(manifest: dict[str, Any]) -> None:
    """Validate a custom resource as a whole, of any other its pods."""
    folder = Path(SCHEMAS or "")
    assert set(manifest["metadata"]) <= METADATA
    if manifest["kind"] in KINDS:
        validate(manifest, schema(folder, manifest["kind"]))
        return
    pod = schema(folder, "RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    for one in pods(manifest):
        validate({"spec": one}, pod)


def validate(value: Any, against: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(against).validate(value)  # without looking at the megabyte of schema itself each time


def rendered(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(KUBERNETES / overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@needs_schemas
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_manifests_are_valid(path: Path) -> None:
    for manifest in load(path):
        check(manifest)


@needs_schemas
@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_makes_is_valid(overlay: str) -> None:
    for manifest in rendered(overlay):
        check(manifest)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_puts_the_cluster_into_the_jobs(overlay: str) -> None:
    made = {one["kind"]: one for one in rendered(overlay)}
    [cluster] = resources("RayCluster")
    specs = [one["rayClusterSpec"] for one in walk(list(made.values())) if "rayClusterSpec" in one]
    if "RayCluster" in made:
        assert specs == []
        specs = [made["RayCluster"]["spec"]]
    images = {one.pop("image") for spec in made.values() for pod in pods(spec) for one in pod["containers"]}
    assert images == {"REGISTRY/igkd:0.1.0"}
    expected = copy.deepcopy(cluster["spec"])
    if "RayCluster" not in made:
        expected["workerGroupSpecs"][0]["replicas"] = 2
    for pod in pods(expected):
        for one in pod["containers"]:
            del one["image"]
    assert specs == [expected]


def misspell(manifest: dict[str, Any]) -> None:
    manifest["spec"]["headGroupSpecs"] = manifest["spec"].pop("headGroupSpec")


def misspell_deep(manifest: dict[str, Any]) -> None:
    container = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["securityContext"]["runAsNonRot"] = container["securityContext"].pop("runAsNonRoot")


def wrong_mode(manifest: dict[str, Any]) -> None:
    manifest["spec"]["authOptions"]["mode"] = "tokens"


def number_for_text(manifest: dict[str, Any]) -> None:
    manifest["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


@needs_schemas
@pytest.mark.parametrize("spoil", [misspell, misspell_deep, wrong_mode, number_for_text])
def test_a_wrong_manifest_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    [cluster] = copy.deepcopy(resources("RayCluster"))
    check(cluster)
    spoil(cluster)
    with pytest.raises(jsonschema.ValidationError):
        check(cluster)


@needs_schemas
def test_a_misspelt_key_of_a_plain_cron_job_is_refused() -> None:
    [job] = copy.deepcopy(resources("CronJob"))
    [pod] = pods(job)
    pod["restartPolicies"] = pod.pop("restartPolicy")
    with pytest.raises(jsonschema.ValidationError):
        check(job)
