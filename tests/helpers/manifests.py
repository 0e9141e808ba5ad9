"""The files of cluster/ as data, and the schemas of KubeRay's custom resources."""

import copy
import functools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.paths import ROOT

KUBERNETES = ROOT / "cluster" / "kubernetes"
AWS = ROOT / "ray-cluster.yaml"
ON_PREMISES = ROOT / "cluster" / "on-premises.yaml"
FILES = sorted(path for path in KUBERNETES.glob("*/*.yaml") if path.name != "kustomization.yaml")
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}


def load(path: Path) -> list[Any]:
    """The documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def resources(kind: str | None = None) -> list[dict[str, Any]]:
    """All manifests as they stand in the files, before kustomize."""
    return [one for path in FILES for one in load(path) if kind in (None, one["kind"])]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings inside a document."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(one)


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """The specs of all pods inside a document."""
    return (one for one in walk(value) if "containers" in one)


def commands() -> list[list[str]]:
    """The programs that the manifests run on a cluster, one a list."""
    found = [shlex.split(one["entrypoint"]) for document in resources() for one in walk(document) if "entrypoint" in one]
    return found + [one["args"] for document in resources("CronJob") for pod in pods(document) for one in pod["containers"]]


@functools.cache
def schema(folder: Path, kind: str) -> dict[str, Any]:
    """What the API server would check a resource with, unknown fields being errors."""
    with (folder / "kuberay" / f"ray.io_{KINDS[kind]}.yaml").open() as file:
        crd = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
    return strict(version["schema"]["openAPIV3Schema"])


def strict(node: Any) -> Any:
    """A schema of Kubernetes as one of JSON Schema, which refuses fields that it does not name."""
    node = copy.copy(node)
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **({"pattern": node["pattern"]} if "pattern" in node else {})}
    if "properties" in node:
        node["properties"] = {name: strict(one) for name, one in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            node[name] = strict(node[name])
    if node.pop("nullable", False) and "type" in node:
        node["type"] = [node["type"], "null"]
    return node
