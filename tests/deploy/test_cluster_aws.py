"""What the roles of cluster-aws.yaml allow, by evaluating their policies with IAM's rules."""

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from raypipe.dataset.plan import data_name
from raypipe.jobs.train.checkpoints import METRICS, TENSORBOARD
from raypipe.models.classifier_files import MODEL_FOLDER
from raypipe.search.versions import CURRENT

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]
Launch = Callable[[Document], dict[str, Document]]
OUTPUT, EC2 = "arn:aws:s3:::embeddings", "arn:aws:ec2:eu-central-1:1:"
WORKER_PROFILE = "arn:aws:iam::1:instance-profile/raypipe-worker"
VALUES = {
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::AccountId": "1",
    "AWS::StackName": "raypipe",
    "VpcId": "vpc-1",
    "SshCidr": "10.0.0.0/16",
    "InputBucket": "videos",
    "OutputBucket": "embeddings",
    "WorkerTypes": ["m7i.8xlarge", "g6.8xlarge", "p5.48xlarge"],
    "Group.GroupId": "sg-00000000000000000",
    "WorkerProfile.Arn": WORKER_PROFILE,
    "WorkerRole.Arn": "arn:aws:iam::1:role/raypipe-worker",
}


class _Loader(yaml.SafeLoader):
    """A YAML loader that resolves CloudFormation's !Ref, !GetAtt and !Sub with VALUES."""


def _fill(_: _Loader, kind: str, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - whatever the value is
    if kind == "Sub":
        return re.sub(r"\$\{([\w:.]+)\}", lambda match: str(VALUES[match[1]]), node.value)
    return VALUES.get(node.value, node.value)


_Loader.add_multi_constructor("!", _fill)


@pytest.fixture(scope="module")
def template() -> Document:
    loaded: Document = yaml.load((ROOT / "cluster-aws.yaml").read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    return loaded


@pytest.fixture(scope="module")
def worker(template: Document) -> list[Document]:
    """Return the statements that apply to a worker."""
    resources = template["Resources"]
    assert resources["WorkerRole"]["Properties"]["ManagedPolicyArns"] == ["Storage"]
    assert "Policies" not in resources["WorkerRole"]["Properties"]
    statements: list[Document] = resources["Storage"]["Properties"]["PolicyDocument"]["Statement"]
    return statements


@pytest.fixture(scope="module")
def head(template: Document, worker: list[Document]) -> list[Document]:
    """Return the statements that apply to the head."""
    role = template["Resources"]["HeadRole"]["Properties"]
    assert role["ManagedPolicyArns"] == ["Storage"]
    (policy,) = role["Policies"]
    return [*worker, *policy["PolicyDocument"]["Statement"]]


def may(statements: list[Document], action: str, resource: str, **context: Any) -> bool:  # noqa: ANN401 - IAM's keys
    """Apply IAM's rule: at least one statement allows the action, and none denies it."""
    effects = {one["Effect"] for one in statements if _applies(one, action, resource, context)}
    return effects == {"Allow"}


def _applies(statement: Document, action: str, resource: str, context: Document) -> bool:
    if not any(fnmatch.fnmatchcase(action, one) for one in _listed(statement["Action"])):
        return False
    key = "Resource" if "Resource" in statement else "NotResource"
    if any(fnmatch.fnmatchcase(resource, one) for one in _listed(statement[key])) != (key == "Resource"):
        return False
    for operation, wanted in statement.get("Condition", {}).items():
        assert operation in {"StringEquals", "NumericEquals", "ArnEquals", "Bool", "Null"}
        for name, values in wanted.items():
            found = str(name not in context).lower() if operation == "Null" else context.get(name)
            if found not in _listed(values):
                return False
    return True


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _put(name: str, *, is_new: bool, creates: bool = True) -> tuple[str, str, Document]:
    context = {"s3:ObjectCreationOperation": str(creates).lower(), **({"s3:if-none-match": "*"} if is_new else {})}
    return "s3:PutObject", f"{OUTPUT}/{name}", context


@pytest.mark.parametrize("who", ["worker", "head"])
def test_objects_are_read_and_created_and_never_deleted(who: str, request: pytest.FixtureRequest) -> None:
    statements = request.getfixturevalue(who)
    assert may(statements, "s3:ListBucket", "arn:aws:s3:::videos")
    assert may(statements, "s3:GetObject", "arn:aws:s3:::videos/a.mp4")
    assert may(statements, "s3:GetObject", f"{OUTPUT}/v1/plans/00000.parquet")
    assert may(statements, "s3:AbortMultipartUpload", f"{OUTPUT}/v1/x")
    assert not may(statements, "s3:GetObject", "arn:aws:s3:::others/a.mp4")
    for action in ("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectAcl", "s3:PutBucketPolicy"):
        assert not may(statements, action, f"{OUTPUT}/v1/x")
        assert not may(statements, action, OUTPUT)


@pytest.mark.parametrize("folder", ["", "v1/", "a/b/"])
def test_committed_objects_are_never_replaced(worker: list[Document], folder: str) -> None:
    for name in (data_name(0, 1), f"{MODEL_FOLDER}/model.safetensors", "versions/1/manifest.json"):
        for is_new in (True, False):
            action, resource, context = _put(folder + name, is_new=is_new)
            assert may(worker, action, resource, **context) == is_new
    action, resource, context = _put(f"{folder}data/large.parquet", is_new=False, creates=False)
    assert may(worker, action, resource, **context)  # an upload part; completing the upload carries the condition
    for name in (CURRENT, METRICS, TENSORBOARD, f"{MODEL_FOLDER}/README.md"):
        action, resource, context = _put(folder + name, is_new=False)
        assert may(worker, action, resource, **context), f"raypipe replaces {name}"
    assert not may(worker, "s3:PutObject", "arn:aws:s3:::videos/a.mp4", **_put("", is_new=True)[2])


def _requests(node: Document) -> dict[str, Document]:
    """Return the resources of a RunInstances request, each with the context keys that IAM sees."""
    (interface,), (mapping,) = node["NetworkInterfaces"], node["BlockDeviceMappings"]
    tags = {tag["Key"]: tag["Value"] for one in node["TagSpecifications"] for tag in one["Tags"]}
    profile = node["IamInstanceProfile"]["Name"]
    found = {
        "instance/i-1": {
            f"aws:RequestTag/{TAG_RAY_CLUSTER_NAME}": tags[TAG_RAY_CLUSTER_NAME],
            "ec2:InstanceType": node["InstanceType"],
            "ec2:MetadataHttpTokens": node["MetadataOptions"]["HttpTokens"],
            "ec2:MetadataHttpPutResponseHopLimit": str(node["MetadataOptions"]["HttpPutResponseHopLimit"]),
            "ec2:InstanceProfile": f"arn:aws:iam::1:instance-profile/{profile}",
        },
        "volume/vol-1": {"ec2:Encrypted": str(mapping["Ebs"]["Encrypted"]).lower()},
        "network-interface/eni-1": {"ec2:AssociatePublicIpAddress": str(interface["AssociatePublicIpAddress"]).lower()},
        f"subnet/{interface['SubnetId']}": {"ec2:Vpc": f"{EC2}vpc/vpc-1"},
        f"security-group/{interface['Groups'][0]}": {},
        f"key-pair/{node['KeyName']}": {},
    }
    if "InstanceMarketOptions" in node:
        found["spot-instances-request/sir-1"] = {}
    return {EC2 + name: context for name, context in found.items()} | {
        f"arn:aws:ec2:eu-central-1::image/{node['ImageId']}": {}
    }


def test_the_head_starts_the_workers_of_cluster_yaml_and_no_other(
    head: list[Document], document: Document, launch: Launch
) -> None:
    for node, request in launch(document).items():
        allowed = {name: may(head, "ec2:RunInstances", name, **known) for name, known in _requests(request).items()}
        refused = {name for name, is_allowed in allowed.items() if not is_allowed}
        assert refused == ({f"{EC2}instance/i-1"} if node == document["head_node_type"] else set())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("InstanceType",), "p5e.48xlarge"),
        (("IamInstanceProfile", "Name"), "administrator"),
        (("MetadataOptions", "HttpTokens"), "optional"),
        (("MetadataOptions", "HttpPutResponseHopLimit"), 2),
        (("BlockDeviceMappings", 0, "Ebs", "Encrypted"), False),
        (("NetworkInterfaces", 0, "AssociatePublicIpAddress"), True),
        (("NetworkInterfaces", 0, "Groups"), ["sg-2"]),
        (("TagSpecifications", 0, "Tags", 0, "Value"), "another"),
    ],
)
def test_a_head_that_was_taken_over_starts_nothing_less_safe(
    path: tuple[str | int, ...], value: object, head: list[Document], document: Document, launch: Launch
) -> None:
    node: Any = launch(document)["g6"]
    place = node
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not all(may(head, "ec2:RunInstances", name, **known) for name, known in _requests(node).items())


def test_the_head_ends_and_tags_only_its_own_nodes(head: list[Document], worker: list[Document]) -> None:
    own, instance = f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}", f"{EC2}instance/i-1"
    assert may(head, "ec2:DescribeInstances", "*")
    assert may(head, "ec2:CreateTags", instance, **{"ec2:CreateAction": "RunInstances"})
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert may(head, action, instance, **{own: "raypipe"})
        assert not may(head, action, instance, **{own: "another"})
        assert not may(head, action, instance)
        assert not may(worker, action, instance, **{own: "raypipe"})


def test_the_head_passes_only_the_role_of_workers(head: list[Document], worker: list[Document]) -> None:
    to_ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert may(head, "iam:PassRole", "arn:aws:iam::1:role/raypipe-worker", **to_ec2)
    assert not may(head, "iam:PassRole", "arn:aws:iam::1:role/raypipe-head", **to_ec2)
    assert not may(head, "iam:PassRole", "arn:aws:iam::1:role/raypipe-worker", **{"iam:PassedToService": "lambda"})
    assert not may(worker, "iam:PassRole", "arn:aws:iam::1:role/raypipe-worker", **to_ec2)


def test_the_group_lets_in_ssh_and_its_own_nodes(template: Document) -> None:
    (ssh,) = template["Resources"]["Group"]["Properties"]["SecurityGroupIngress"]
    assert (ssh["FromPort"], ssh["ToPort"], ssh["CidrIp"]) == (22, 22, VALUES["SshCidr"])
    within = [one for one in template["Resources"].values() if one["Type"] == "AWS::EC2::SecurityGroupIngress"]
    assert [one["Properties"]["SourceSecurityGroupId"] for one in within] == [VALUES["Group.GroupId"]]
    pattern = re.compile(template["Parameters"]["SshCidr"]["AllowedPattern"])
    assert pattern.fullmatch("10.0.0.0/16")
    assert not pattern.fullmatch("0.0.0.0/0")


def test_the_values_filled_in_are_those_of_the_template(template: Document, document: Document) -> None:
    assert template["Parameters"]["WorkerTypes"]["Default"].split(",") == VALUES["WorkerTypes"]
    assert document["cluster_name"] == VALUES["AWS::StackName"]
    assert template["Resources"]["WorkerProfile"]["Properties"]["InstanceProfileName"] in WORKER_PROFILE
    assert template["Resources"]["WorkerProfile"]["Properties"]["Roles"] == ["WorkerRole"]
    assert template["Resources"]["HeadProfile"]["Properties"]["Roles"] == ["HeadRole"]
