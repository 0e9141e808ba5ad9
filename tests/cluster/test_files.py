"""What the files of cluster/ say fits this repository: programs, flags, paths, images; nothing runs as root, nothing holds a secret."""

import importlib
import re
import shlex
import subprocess
from typing import Any

import pytest
import tyro

from igkd.__main__ import settings_of
from igkd.config import pipeline, precompute, recipes, sweeps, teacher
from tests.helpers.manifests import AWS, KUBERNETES, ON_PREMISES, commands, load, pods, resources, walk
from tests.helpers.paths import ROOT

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
GUIDE = ROOT / "docs" / "cluster.md"
IMAGE = "REGISTRY/igkd:0.1.0"
CONFIGS = {
    "teacher": teacher.TeacherConfig,
    "precompute": precompute.PrecomputeConfig,
    "pipeline": pipeline.PipelineConfig,
    "ablate": sweeps.AblateConfig,
    "tune": sweeps.TuneConfig,
    "search": sweeps.SearchConfig,
}
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|PRIVATE KEY|\b[0-9a-f]{32,}\b|(?i:(secret_access_key|password|token)\s*[:=]\s*[\"']?[A-Za-z0-9/+_-]{16,})"
)


def all_files() -> list[Any]:
    """Every file of this part that git knows or would take."""
    where = ["cluster", "ray-cluster.yaml", ".dockerignore", "docs/cluster.md"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *where], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split()]


def documented() -> list[list[str]]:
    """The commands of ours that README and docs show: jobs as programs, and subcommands of igkd."""
    blocks = [block for guide in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) for block in guide.read_text().split("```")[1::2]]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [
        shlex.split(line, comments=True) for line in lines if "python -m jobs." in line or re.match(r"(IGKD_\w+=\S+ )*igkd [a-z]", line)
    ]
    return [words[words.index("python" if "python" in words else "igkd") :] for words in found]


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command line as the job itself would, and whatever command it wraps."""
    known = ["paper" if word.endswith(".json") and "--recipe" in words else word for word in words]  # a file that an earlier line makes
    if words[0] == "igkd":
        monkeypatch.setattr("sys.argv", [f"igkd {words[1]}", *known[2:]])
        settings_of(words[1])
        return
    assert words[:2] == ["python", "-m"]
    package, _, name = words[2].partition(".")
    assert package == "jobs" and (ROOT / "jobs" / f"{name}.py").exists(), words[2]
    if name == "nodes":
        nodes = importlib.import_module("jobs.nodes")
        own, command = nodes.split(words[3:])
        tyro.cli(nodes.NodesConfig, args=own)
        parse(command, monkeypatch)
    elif name == "distill":
        monkeypatch.setattr("sys.argv", known[2:])
        recipes.parse_distill("python -m jobs.distill")
    else:
        tyro.cli(CONFIGS[name], args=words[3:])


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[2])
def test_manifests_run_jobs_that_exist_with_flags_that_parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse(words, monkeypatch)


def test_so_do_the_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(documented()) >= 40
    for words in documented():
        parse(words, monkeypatch)


def test_a_wrong_flag_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse(["python", "-m", "jobs.tune", "--store", "s3://b/s", "--out", "o", "--trails", "5"], monkeypatch)


def test_runs_of_sweeps_are_where_all_nodes_see_them() -> None:
    for words in commands():
        for flag in ("--out", "--store"):
            if flag in words:
                assert words[words.index(flag) + 1].startswith(("/shared/", "s3://"))
    [cluster] = resources("RayCluster")
    for pod in pods(cluster):
        [shared] = [one for one in pod["volumes"] if one["name"] == "shared"]
        assert shared["persistentVolumeClaim"]["claimName"] == resources("PersistentVolumeClaim")[0]["metadata"]["name"]
        assert {one["mountPath"] for one in pod["containers"][0]["volumeMounts"]} == {"/dev/shm", "/shared"}
    assert resources("PersistentVolumeClaim")[0]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_containers_have_requests_limits_and_no_rights() -> None:
    user = int(re.findall(r"^USER (\d+)$", DOCKERFILE.read_text(), re.M)[-1])
    found = list(pods(resources()))
    assert len(found) == 8  # head and two kinds of workers, five submitters less the standing cluster's
    for pod in found:
        assert pod["securityContext"]["runAsUser"] == user > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    autoscaler = resources("RayCluster")[0]["spec"]["autoscalerOptions"]
    for container in [autoscaler, *(one for pod in found for one in pod["containers"])]:
        assert all({"cpu", "memory"} <= container["resources"][one].keys() for one in ("requests", "limits"))
        own = container["securityContext"]
        assert own["runAsNonRoot"] and not own["allowPrivilegeEscalation"] and own["capabilities"] == {"drop": ["ALL"]}


def test_one_image_everywhere() -> None:
    assert {one["image"] for pod in pods(resources()) for one in pod["containers"]} == {"igkd"}
    [image] = load(KUBERNETES / "image" / "kustomization.yaml")[0]["images"]
    assert f"{image['newName']}:{image['newTag']}" == IMAGE
    for path in (DOCKERFILE, GUIDE):
        assert f"docker build -f cluster/Dockerfile -t {IMAGE} ." in path.read_text()


def test_versions_are_those_of_the_constraints() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert resources("RayCluster")[0]["spec"]["rayVersion"] == pinned["ray"]


def test_the_dashboard_is_not_exposed_and_the_token_is_asked_for() -> None:
    [cluster] = resources("RayCluster")
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert not [one for one in resources() if one["kind"] in ("Ingress", "Service")]
    for path in (AWS, ON_PREMISES):
        text, [cluster] = path.read_text(), load(path)
        head, worker = (" ".join(cluster[f"{one}_start_ray_commands"]) for one in ("head", "worker"))
        assert "--dashboard-host=127.0.0.1" in head
        for start in (head, worker):
            assert "RAY_AUTH_MODE=token" in start and "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in start
        assert "0.0.0.0" not in text and cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_whatever_listens_beyond_loopback_asks_for_the_token() -> None:
    clusters = [one for one in walk(resources()) if "headGroupSpec" in one]
    assert clusters
    for cluster in clusters:  # in a pod, loopback would shut out the port-forward
        assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0" and cluster["authOptions"] == {"mode": "token"}
    submitters = [one for one in walk(resources()) if one.get("command", [])[:3] == ["ray", "job", "submit"]]
    assert submitters
    for submitter in submitters:
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in submitter["env"]
    exposed = [path.name for path in all_files() if "0.0.0.0" in path.read_text()]
    assert exposed == ["raycluster.yaml"]
    for path in (AWS, ON_PREMISES):
        assert "chmod 600 ~/.ray/auth_token" in load(path)[0]["setup_commands"]
        assert f"ray dashboard {path.relative_to(ROOT)}" in GUIDE.read_text()  # through SSH
    assert "kubectl port-forward service/igkd-head-svc 8265:8265" in GUIDE.read_text()


def test_no_file_of_the_repository_holds_a_secret() -> None:
    """Narrower than below: results are full of hashes."""
    pattern = (
        r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|(secret_access_key|auth_token|session_token)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+_-]{16,}"
    )
    command = ["git", "grep", "--untracked", "-I", "-i", "-l", "-E", pattern, "--", ".", ":!tests/cluster/test_files.py"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""
    command[-1] = "tests/cluster/test_files.py"  # whose examples it would find
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout != ""


def test_secrets_are_named_and_not_written_down() -> None:
    for path in all_files():
        assert not SECRETS.search(path.read_text()), path
    assert not resources("Secret")
    for one in walk(resources()):
        if re.search("KEY|TOKEN|SECRET|PASSWORD", str(one.get("name", ""))):
            assert "value" not in one and set(one["valueFrom"]) == {"secretKeyRef"}


@pytest.mark.parametrize(
    "text", ["aws_secret_access_key = abcdefghijklmnop1234", "token: 0123456789abcdef0123456789abcdef", "id: AKIAABCDEFGHIJKLMNOP"]
)
def test_a_written_secret_would_be_found(text: str) -> None:
    assert SECRETS.search(text)


def test_the_image_is_made_of_what_is_here() -> None:
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    let_in = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [one for line in lines if line.startswith("COPY ") for one in line.split()[1:-1]]
    assert set(copied) == let_in
    assert all((ROOT / one).exists() for one in copied)
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2 and all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)
    assert lines.index(installs[0]) < lines.index("COPY igkd igkd")  # a change of sources leaves the layer of dependencies


def test_every_flag_that_the_build_takes_is_declared() -> None:
    text = DOCKERFILE.read_text() + GUIDE.read_text()
    assert set(re.findall(r"--build-arg (\w+)", text)) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE.read_text(), re.M))
