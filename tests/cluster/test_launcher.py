"""The files for `ray up`: Ray's own validator, and what its AWS provider makes of ours against a simulated EC2."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from jobs import nodes
from jobs.backend.spot import SpotOrOnDemand
from tests.helpers.manifests import AWS, ON_PREMISES, load
from tests.helpers.paths import ROOT

both = pytest.mark.parametrize("path", [AWS, ON_PREMISES], ids=lambda path: path.name)


@both
def test_ray_accepts_the_file(path: Path) -> None:
    config = prepare_config(load(path)[0])
    validate_config(config)
    assert config["cluster_name"] == "igkd"


def test_the_autoscaler_reads_it_as_meant() -> None:
    config = AutoscalingConfig(load(AWS)[0], skip_content_hash=True)
    types = config.get_node_type_configs()
    assert types["head"].resources == {"CPU": 0, "GPU": 0} and types["head"].max_worker_nodes == 1
    assert [(types[one].min_worker_nodes, types[one].max_worker_nodes) for one in ("gpu", "cpu")] == [(0, 4), (0, 4)]
    assert config.get_max_num_worker_nodes() == 8


@both
def test_ray_refuses_a_misspelt_key(path: Path) -> None:
    [config] = load(path)
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(prepare_config(config))


@both
def test_what_is_copied_is_there(path: Path) -> None:
    mounts = load(path)[0]["file_mounts"]
    sources = {there: here for there, here in mounts.items() if there.startswith("~/igkd/")}
    assert all((ROOT / here).exists() and there == f"~/igkd/{here}" for there, here in sources.items())
    assert {"igkd", "jobs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= set(sources.values())  # what pip needs


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A simulated account with the security group that the guide makes."""
    monkeypatch.setenv("HOME", str(tmp_path))  # for the key pair
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        client = boto3.client("ec2", region_name=load(AWS)[0]["provider"]["region"])
        [vpc] = client.describe_vpcs()["Vpcs"]
        group = client.create_security_group(GroupName="igkd", Description="igkd", VpcId=vpc["VpcId"])["GroupId"]
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
        client.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
        yield client


@pytest.fixture
def image(ec2: Any) -> str:
    """Any image: the simulated account has not those of the file."""
    return str(ec2.describe_images()["Images"][0]["ImageId"])


@pytest.fixture
def cluster(image: str) -> dict[str, Any]:
    """The file as `ray up` completes it."""
    config = SpotOrOnDemand.bootstrap_config(prepare_config(load(AWS)[0]))
    for one in config["available_node_types"].values():
        assert one["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/")
        one["node_config"]["ImageId"] = image
        one["node_config"].pop("IamInstanceProfile")  # not in the simulated account
    return dict(config)


def test_ray_uses_the_group_as_it_is(ec2: Any, cluster: dict[str, Any]) -> None:
    [group] = ec2.describe_security_groups(GroupNames=["igkd"])["SecurityGroups"]
    assert [one["node_config"]["SecurityGroupIds"] for one in cluster["available_node_types"].values()] == [[group["GroupId"]]] * 3
    assert [one["IpRanges"] for one in group["IpPermissions"]] == [[{"CidrIp": "203.0.113.7/32"}]]


def launch(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch, refusal: str | None) -> list[bool]:
    """Launch a GPU node while spot requests are refused; says of each request whether it was for spot."""
    provider = SpotOrOnDemand(cluster["provider"], cluster["cluster_name"])
    asked, create = [], provider.ec2_fail_fast.create_instances

    def create_instances(**request: Any) -> Any:
        asked.append("InstanceMarketOptions" in request)
        if asked[-1] and refusal:
            raise ClientError({"Error": {"Code": refusal, "Message": "no"}}, "RunInstances")
        return create(**request)

    monkeypatch.setattr(provider.ec2_fail_fast, "create_instances", create_instances)
    config = copy.deepcopy(cluster["available_node_types"]["gpu"]["node_config"])
    made = provider.create_node(config, {"ray-node-type": "worker"}, 1)
    assert len(made) == 1
    return asked


def test_a_spot_instance_is_preferred(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(cluster, monkeypatch, None) == [True]


def test_without_spot_capacity_in_any_zone_the_node_is_on_demand(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = launch(cluster, monkeypatch, "InsufficientInstanceCapacity")
    assert len(asked) > 1 and asked == [True] * (len(asked) - 1) + [False]


def test_missing_rights_stay_an_error(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodeLaunchException):
        launch(cluster, monkeypatch, "UnauthorizedOperation")


def allowed(*names: str) -> set[str]:
    """The actions that policies of cluster/iam allow."""
    statements = [one for name in names for one in json.loads((ROOT / "cluster" / "iam" / f"{name}.json").read_text())["Statement"]]
    listed = [[one["Action"]] if isinstance(one["Action"], str) else one["Action"] for one in statements]
    return {action for actions in listed for action in actions}


@pytest.fixture
def calls(image: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What is asked of AWS from now on, as IAM calls it."""
    made: set[str] = set()
    call = BaseClient._make_api_call

    def recorded(self: Any, operation: str, arguments: Any) -> Any:
        made.add(f"{self.meta.service_model.signing_name}:{operation}")
        return call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    return made


def test_policies_allow_what_ray_asks_of_aws_and_not_all(calls: set[str], cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"ec2:DescribeSubnets", "ec2:DescribeSecurityGroups"} <= calls <= allowed("launcher", "head")
    calls.clear()
    provider = SpotOrOnDemand(cluster["provider"], cluster["cluster_name"])
    made = provider.create_node(copy.deepcopy(cluster["available_node_types"]["gpu"]["node_config"]), {"ray-node-type": "worker"}, 1)
    [node] = provider.non_terminated_nodes({})
    assert node in made and provider.internal_ip(node)
    provider.terminate_nodes([node])
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} <= calls <= allowed("head")
    assert not [action for action in allowed("launcher", "head", "worker") if "*" in action]


def test_ray_itself_does_not_avoid_a_type_whose_launch_was_refused() -> None:
    """Why jobs.backend.spot exists; when this fails, a second node type may do."""
    monitor = CloudResourceMonitor()
    monitor.notify([InstanceUpdateEvent(instance_id="1", instance_type="gpu", new_instance_status=Instance.ALLOCATION_FAILED)])
    assert monitor.get_recoverable_resource_availabilities() == {}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, int]]]:
    """What jobs.nodes asks of the autoscaler, which has a GPU more at every look, up to two."""
    found: list[list[dict[str, int]]] = []
    looks = iter(range(1000))
    monkeypatch.setattr(nodes, "request_resources", lambda bundles: found.append(bundles))
    monkeypatch.setattr(nodes.ray, "cluster_resources", lambda: {"GPU": float(min(2, next(looks)))})
    monkeypatch.setattr(nodes, "LOOK_S", 0.001)
    return found


def test_nodes_are_asked_for_and_the_request_withdrawn(asked: list[list[dict[str, int]]]) -> None:
    nodes.wait_for_nodes(nodes.NodesConfig(gpus=2))
    assert asked == [[{"GPU": 1}] * 2, []]


def test_fewer_nodes_are_better_than_none(asked: list[list[dict[str, int]]], capsys: pytest.CaptureFixture[str]) -> None:
    nodes.wait_for_nodes(nodes.NodesConfig(gpus=3, minutes=0.001))
    assert asked[-1] == [] and "2 of 3 GPUs" in capsys.readouterr().out


def test_no_nodes_are_an_error_and_the_request_is_withdrawn(asked: list[list[dict[str, int]]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes.ray, "cluster_resources", lambda: {})
    with pytest.raises(nodes.UserError, match="no nodes after"):
        nodes.wait_for_nodes(nodes.NodesConfig(gpus=1, minutes=0.0001))
    assert asked[-1] == []
