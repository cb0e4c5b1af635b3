import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]
Launch = Callable[[Document], dict[str, Document]]


class _Account:
    """The AWS calls that ``ray up`` may make here. Any other call fails, such as creating a group or a role."""

    def __init__(self) -> None:
        self.launched: list[Document] = []
        subnet = SimpleNamespace(
            subnet_id="subnet-00000000000000000",
            vpc_id="vpc-1",
            state="available",
            availability_zone="eu-central-1a",
            map_public_ip_on_launch=True,
        )
        self.subnets = SimpleNamespace(all=lambda: [subnet], filter=lambda **_: [subnet])
        self.security_groups = SimpleNamespace(filter=lambda **_: [SimpleNamespace(vpc_id="vpc-1", id="sg-1")])
        self.meta = SimpleNamespace(client=SimpleNamespace())

    def create_instances(self, **request: Any) -> list[Any]:  # noqa: ANN401 - whatever Ray asks for
        self.launched.append(request)
        return []


@pytest.fixture
def document() -> Document:
    """Load cluster.yaml with its YAML anchors copied, so that a test can change one copy."""
    parted: Document = json.loads(json.dumps(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))))
    return parted


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Start one node of each type through Ray's own provider; return the RunInstances request of each."""
    account = _Account()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("boto3", "boto3.exceptions", "boto3.resources", "boto3.resources.base"):
            patch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules["boto3"]).update(__version__="1.43.117", resource=lambda *_, **__: account)
        vars(sys.modules["boto3.exceptions"]).update(ResourceNotExistsError=KeyError)
        vars(sys.modules["boto3.resources.base"]).update(ServiceResource=_Account)
        before = set(sys.modules)
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: PLC0415 - it imports boto3

        def start_all(document: Document) -> dict[str, Document]:
            config = AWSNodeProvider.bootstrap_config(prepare_config(document))
            provider = AWSNodeProvider(config["provider"], config["cluster_name"])
            account.launched.clear()
            for name, node_type in config["available_node_types"].items():
                tags = {TAG_RAY_NODE_NAME: name, TAG_RAY_NODE_KIND: NODE_KIND_WORKER}
                provider.create_node(node_type["node_config"], tags, 1)
            return dict(zip(config["available_node_types"], account.launched, strict=True))

        yield start_all
        for name in set(sys.modules) - before:
            if name.startswith("ray.autoscaler._private.aws"):
                del sys.modules[name]
