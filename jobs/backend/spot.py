"""The node provider of ray-cluster.yaml: launches Amazon's spot instances, and on-demand ones if there are none.

Ray 2.60 has no such fallback. A second node type for on-demand instances does not work: if EC2 refuses to launch (no capacity, limit
reached), the autoscaler asks for the same type again; only a node that was launched and never joined makes it prefer another type
(`CloudResourceMonitor` looks at ALLOCATION_TIMEOUT, not at ALLOCATION_FAILED).
"""

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

REFUSED = frozenset(
    {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow", "UnfulfillableCapacity", "Unsupported"}
)
"""EC2's error codes for "not available as spot now". Other errors, such as missing permissions, would occur on demand, too."""


class SpotOrOnDemand(AWSNodeProvider):
    """Ray's provider for AWS; a node that is not available as a spot instance in any zone is launched on demand."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> Any:
        try:
            return super()._create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in REFUSED:
                raise
            print(f"no spot instance ({error.category}): launching on demand", flush=True)
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super()._create_node(on_demand, tags, count)
