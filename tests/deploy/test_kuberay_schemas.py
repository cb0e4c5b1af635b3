"""The manifests in jobs/kubernetes/ pass the schemas of KubeRay's resources; an unknown key is an error."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, ValidationError

FOLDER = Path(__file__).parents[2] / "jobs" / "kubernetes"
Document = dict[str, Any]


@functools.cache
def _schema(crd: Path) -> Document:
    """Return the schema as JSON Schema that rejects the keys that Kubernetes would silently drop."""
    loaded = yaml.load(crd.read_text(encoding="utf-8"), yaml.CSafeLoader)
    (version,) = [one for one in loaded["spec"]["versions"] if one["name"] == "v1"]
    schema: Document = version["schema"]["openAPIV3Schema"]
    metadata = schema["properties"].pop("metadata")
    _close(schema)
    schema["properties"]["metadata"] = metadata
    return schema


def _close(schema: Any) -> None:  # noqa: ANN401 - any part of a schema
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.get("nullable") is True:
            schema["type"] = [schema["type"], "null"]
        for key, part in schema.items():
            if key == "properties":
                for one in part.values():
                    _close(one)
            elif key in {"items", "additionalProperties", "anyOf", "oneOf", "allOf"}:
                _close(part)


@pytest.fixture(params=["rayjob-embed.yaml", "rayjob-train.yaml", "rayservice.yaml"])
def manifest(request: pytest.FixtureRequest) -> list[Document]:
    return [
        json.loads(json.dumps(one)) for one in yaml.safe_load_all((FOLDER / request.param).read_text(encoding="utf-8"))
    ]


@pytest.fixture
def schema(manifest: list[Document], assets: Path) -> Document:
    crd = {"RayJob": "ray.io_rayjobs.yaml", "RayService": "ray.io_rayservices.yaml"}[manifest[0]["kind"]]
    return _schema(assets / "kuberay" / crd)


def _cluster(document: Document) -> Document:
    spec = document["spec"]
    cluster: Document = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return cluster


def test_kuberay_accepts_the_manifest(manifest: list[Document], schema: Document) -> None:
    assert manifest[0]["apiVersion"] == "ray.io/v1"
    Draft7Validator(schema).validate(manifest[0])


@pytest.mark.parametrize("depth", ["spec", "cluster", "pod", "container", "environment"])
def test_a_key_that_kubernetes_would_drop_is_refused(manifest: list[Document], schema: Document, depth: str) -> None:
    cluster = _cluster(manifest[0])
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    container = pod["containers"][0]
    places = {
        "spec": manifest[0]["spec"],
        "cluster": cluster,
        "pod": pod,
        "container": container,
        "environment": container["env"][0],
    }
    places[depth]["unheardOf"] = "x"
    with pytest.raises(ValidationError, match="unheardOf"):
        Draft7Validator(schema).validate(manifest[0])


def test_an_invalid_quantity_is_refused(manifest: list[Document], schema: Document) -> None:
    container = _cluster(manifest[0])["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "much"
    with pytest.raises(ValidationError, match="much"):
        Draft7Validator(schema).validate(manifest[0])


def test_the_network_policy_has_rules_as_kuberay_knows_them(manifest: list[Document], schema: Document) -> None:
    """Check the rules with KubeRay's schema, which embeds them; Kubernetes' own schema is not available here."""
    (policy,) = [one for one in manifest if one["kind"] == "NetworkPolicy"]
    rules = _cluster({"spec": schema["properties"]["spec"]["properties"]})["properties"]["networkPolicy"]
    rules = rules["properties"]["head"]["properties"]
    Draft7Validator(rules["ingressRules"]).validate(policy["spec"]["ingress"])
    Draft7Validator(rules["egressRules"]).validate(policy["spec"]["egress"])
