"""Ray's launcher accepts cluster.yaml, its safety settings are in place, and these checks notice when one is not."""

import functools
import json
import operator
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]
Launch = Callable[[Document], dict[str, Document]]


def is_valid(document: Document, launch: Launch) -> None:
    """Check Ray's schema on the launching machine and again on the head, and the EC2 API's own."""
    prepared = prepare_config(document)
    validate_config(prepared)
    validate_config(prepare_config(json.loads(json.dumps(prepared))))
    for request in launch(document).values():
        report = ParamValidator().validate(request, _run_instances())
        assert not report.has_errors(), report.generate_report()


@functools.cache
def _run_instances() -> Any:  # noqa: ANN401 - botocore has no types
    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def is_private(document: Document, launch: Launch) -> None:
    assert document["provider"]["use_internal_ips"] is True
    for request in launch(document).values():
        assert "SubnetId" not in request  # so the subnet would decide about public addresses
        assert [one["AssociatePublicIpAddress"] for one in request["NetworkInterfaces"]] == [False]


def has_own_group(document: Document, launch: Launch) -> None:
    """The group that Ray would create allows SSH from anywhere."""
    for request in launch(document).values():
        assert [one["Groups"] for one in request["NetworkInterfaces"]] == [[document["metadata"]["group"]]]
    assert "security_group" not in document["provider"]


def keeps_metadata(document: Document, launch: Launch) -> None:
    for request in launch(document).values():
        options = request["MetadataOptions"]
        assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)


def encrypts_volumes(document: Document, launch: Launch) -> None:
    assert document["provider"]["cache_stopped_nodes"] is False
    for request in launch(document).values():
        for mapping in request["BlockDeviceMappings"]:
            assert mapping["Ebs"]["Encrypted"] is True
            assert mapping["Ebs"]["DeleteOnTermination"] is True


def has_two_profiles(document: Document, launch: Launch) -> None:
    """The profiles have the names that the stack of cluster-aws.yaml gives them."""
    name = document["cluster_name"]
    profiles = {node: request["IamInstanceProfile"]["Name"] for node, request in launch(document).items()}
    assert profiles.pop(document["head_node_type"]) == f"{name}-head"
    assert set(profiles.values()) == {f"{name}-worker"}


def rents_spot_gpus(document: Document, launch: Launch) -> None:
    requests = launch(document)
    families = {node: request["InstanceType"].partition(".")[0] for node, request in requests.items()}
    spot = {node for node, request in requests.items() if "InstanceMarketOptions" in request}
    assert {families[node] for node in spot} == {"g6", "p5"}
    resources = {node: node_type["resources"] for node, node_type in document["available_node_types"].items()}
    assert all(resources[node]["GPU"] for node in spot)
    decoding = [node for node in resources if node not in spot and node != document["head_node_type"]]
    assert decoding
    assert all(resources[node]["CPU"] and not resources[node].get("GPU") for node in decoding)


def starts_from_zero(document: Document, launch: Launch) -> None:
    _ = launch
    types = dict(document["available_node_types"])
    head = types.pop(document["head_node_type"])
    assert (head["resources"]["CPU"], head["resources"]["GPU"], head.get("max_workers", 0)) == (0, 0, 0)
    assert {node_type["min_workers"] for node_type in types.values()} == {0}
    assert all(0 < node_type["max_workers"] <= document["max_workers"] for node_type in types.values())


def is_pinned(document: Document, launch: Launch) -> None:
    assert {request["ImageId"] for request in launch(document).values()} == {document["metadata"]["image"]}
    assert document["metadata"]["image"].startswith("ami-")
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    prepared = prepare_config(document)
    for command in prepared["head_setup_commands"] + prepared["worker_setup_commands"]:
        assert not re.search(r"curl|wget|https?://", command)
        if "pip install" in command:
            wanted = command.partition("pip install --no-cache-dir ")[2].replace("boto3", "botocore")
            assert wanted in pins or wanted == "-r ~/requirements.txt"
    assert prepared["file_mounts"]["~/requirements.txt"] == "requirements.txt"


def holds_no_secret(document: Document, launch: Launch) -> None:
    """The token is in a file; cluster.yaml holds only the name of that file."""
    _ = launch
    text = json.dumps({key: value for key, value in document.items() if key != "file_mounts"})
    assert not re.search(r"RAY_AUTH_TOKEN\b|AWS_(ACCESS|SECRET)|[0-9a-fA-F]{32}", text)
    assert document["file_mounts"]["~/.ray/auth_token"] == document["metadata"]["token_file"]
    assert "chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token" in document["setup_commands"]


CHECKS = [
    is_valid,
    is_private,
    has_own_group,
    keeps_metadata,
    encrypts_volumes,
    has_two_profiles,
    rents_spot_gpus,
    starts_from_zero,
    is_pinned,
    holds_no_secret,
]
TYPES = "available_node_types"
BROKEN = [
    (is_valid, (TYPES, "cpu", "node_config", "MetadataOptions", "HttpToken"), "required"),
    (is_valid, (TYPES, "cpu", "max_worker"), 8),
    (is_valid, ("docker",), {"images": "x"}),
    (is_private, ("provider", "use_internal_ips"), False),
    (is_private, (TYPES, "g6", "node_config", "NetworkInterfaces", 0, "AssociatePublicIpAddress"), True),
    (has_own_group, (TYPES, "g6", "node_config", "NetworkInterfaces", 0, "Groups"), ["sg-2"]),
    (has_own_group, ("provider", "security_group"), {"GroupName": "open"}),
    (keeps_metadata, (TYPES, "p5", "node_config", "MetadataOptions", "HttpTokens"), "optional"),
    (keeps_metadata, (TYPES, "head", "node_config", "MetadataOptions", "HttpPutResponseHopLimit"), 2),
    (encrypts_volumes, (TYPES, "cpu", "node_config", "BlockDeviceMappings", 0, "Ebs", "Encrypted"), False),
    (encrypts_volumes, ("provider", "cache_stopped_nodes"), True),
    (has_two_profiles, (TYPES, "cpu", "node_config", "IamInstanceProfile"), {"Name": "raypipe-head"}),
    (has_two_profiles, ("cluster_name",), "another"),
    (rents_spot_gpus, (TYPES, "cpu", "node_config", "InstanceMarketOptions"), {"MarketType": "spot"}),
    (rents_spot_gpus, (TYPES, "cpu", "resources", "GPU"), 1),
    (starts_from_zero, (TYPES, "p5", "min_workers"), 1),
    (starts_from_zero, (TYPES, "head", "resources", "CPU"), 4),
    (is_pinned, (TYPES, "p5", "node_config", "ImageId"), "ami-1"),
    (is_pinned, ("setup_commands", 0), "curl -s example.com/install | bash"),
    (is_pinned, ("setup_commands", 0), "~/venv/bin/pip install --no-cache-dir ray"),
    (is_pinned, ("head_setup_commands", 0), "~/venv/bin/pip install --no-cache-dir boto3==1.42.0"),
    (holds_no_secret, ("setup_commands", 0), "export RAY_AUTH_TOKEN=secret"),
    (holds_no_secret, ("metadata", "token_file"), "aa" * 16),
]


@pytest.mark.parametrize("check", CHECKS)
def test_it_is_safe_as_shipped(check: Callable[[Document, Launch], None], document: Document, launch: Launch) -> None:
    check(document, launch)


@pytest.mark.parametrize(("check", "path", "value"), BROKEN)
def test_unsafe_changes_are_noticed(
    check: Callable[[Document, Launch], None],
    path: tuple[str | int, ...],
    value: object,
    document: Document,
    launch: Launch,
) -> None:
    functools.reduce(operator.getitem, path[:-1], document)[path[-1]] = value
    with pytest.raises((AssertionError, ValidationError)):
        check(document, launch)


def test_ray_would_open_a_group_of_its_own_to_the_world(document: Document, launch: Launch) -> None:
    """The nodes' interfaces must name their group: otherwise Ray tries to create one, which this account refuses."""
    node = document[TYPES]["cpu"]["node_config"]
    node["SubnetIds"] = [node.pop("NetworkInterfaces")[0]["SubnetId"]]
    with pytest.raises(AttributeError):
        launch(document)


def test_values_to_change_are_at_the_top_and_written_once(document: Document) -> None:
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    assert next(iter(document)) == "metadata"
    for name, value in document["metadata"].items():
        if name not in {"most", "node", "key_name", "token_file"}:
            assert len(re.findall(rf"(?<![\w/]){re.escape(value)}(?![\w-])", text.partition("metadata:")[2])) == 1, name


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_starts_with_a_token_and_only_its_own_node_reaches_it(
    kind: str, document: Document, tmp_path: Path
) -> None:
    ray, cloud = tmp_path / "venv" / "bin" / "ray", tmp_path / "bin" / "cloud-init"
    for program, line in ((ray, 'echo "$@"; env'), (cloud, "echo eu-central-1")):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="ascii")
        program.chmod(0o700)
    stop, start = document[f"{kind}_start_ray_commands"]
    assert stop == "~/venv/bin/ray stop"
    environment = {"HOME": str(tmp_path), "PATH": f"{cloud.parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment["RAY_HEAD_IP"] = "10.0.0.1"
    said, *lines = subprocess.run(
        ["bash", "-c", start], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert seen["RAY_AUTH_MODE"] == "token"
    assert seen["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/.ray/auth_token"
    assert (seen["RAY_USAGE_STATS_ENABLED"], seen["AWS_DEFAULT_REGION"]) == ("0", "eu-central-1")
    assert "OMP_NUM_THREADS" not in seen
    arguments = set(shlex.split(said))
    expected = {"--head", "--dashboard-host=127.0.0.1", "--dashboard-port=8265", "--num-cpus=0", "--num-gpus=0"}
    assert arguments > (expected if kind == "head" else {"start", "--address=10.0.0.1:6379"})


def test_setup_is_idempotent(document: Document, tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("t", encoding="ascii")
    token.chmod(0o644)
    plain = [line for line in document["setup_commands"] if not re.search(r"sudo|pip", line)]
    for command in plain * 2:
        subprocess.run(["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    assert (token.parent.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)
    (line,) = (tmp_path / ".bashrc").read_text(encoding="utf-8").splitlines()
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in line
