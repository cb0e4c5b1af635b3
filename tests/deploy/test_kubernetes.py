"""KubeRay accepts the whole manifests in jobs/kubernetes/, and their safety settings are in place."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.serve.schema import ServeDeploySchema

from raypipe.cli import app
from raypipe.config import EmbedConfig, ServeConfig, TrainConfig, load_config
from raypipe.endpoint.limits import TOKEN_VARIABLE

FOLDER = Path(__file__).parents[2] / "jobs" / "kubernetes"
Document = dict[str, Any]
Manifest = list[Document]
JOBS = {"rayjob-embed.yaml": EmbedConfig, "rayjob-train.yaml": TrainConfig}
SERVICE = "rayservice.yaml"
ALL = [*JOBS, SERVICE]


def read(name: str) -> Manifest:
    """Return the documents of a manifest, KubeRay's first, with YAML anchors copied."""
    return [json.loads(json.dumps(one)) for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


def _cluster(manifest: Manifest) -> Document:
    spec = manifest[0]["spec"]
    cluster: Document = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return cluster


def _workers(manifest: Manifest) -> list[Document]:
    return [group["template"] for group in _cluster(manifest)["workerGroupSpecs"]]


def _ray_pods(manifest: Manifest) -> list[Document]:
    return [_cluster(manifest)["headGroupSpec"]["template"], *_workers(manifest)]


def _pods(manifest: Manifest) -> list[Document]:
    submitter = manifest[0]["spec"].get("submitterPodTemplate")
    return [*_ray_pods(manifest), *([submitter] if submitter else [])]


def _containers(manifest: Manifest) -> Iterator[Document]:
    for pod in _pods(manifest):
        assert set(pod["spec"]) <= {
            "automountServiceAccountToken",
            "containers",
            "restartPolicy",
            "securityContext",
            "serviceAccountName",
            "tolerations",
            "topologySpreadConstraints",
        }  # nothing of the host, and no volume
        yield from pod["spec"]["containers"]


def _of_kind(manifest: Manifest, kind: str) -> list[Document]:
    return [document for document in manifest if document["kind"] == kind]


def is_pinned(manifest: Manifest) -> None:
    image = manifest[0]["metadata"]["annotations"]["raypipe/image"]
    assert re.fullmatch(r"[^:@]+:[^:@]+@sha256:\w+", image)
    assert {container["image"] for container in _containers(manifest)} == {image}
    assert _cluster(manifest)["rayVersion"] == "2.60.0"


def is_confined(manifest: Manifest) -> None:
    for pod in _pods(manifest):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    contexts = [container["securityContext"] for container in _containers(manifest)]
    if _cluster(manifest).get("enableInTreeAutoscaling"):
        contexts.append(_cluster(manifest)["autoscalerOptions"]["securityContext"])
    confined = {"privileged": False, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert all(context == confined for context in contexts)


def asks_for_a_token(manifest: Manifest) -> None:
    assert _cluster(manifest)["authOptions"] == {"mode": "token", "secretName": "raypipe-ray"}
    for pod in _ray_pods(manifest):
        for container in pod["spec"]["containers"]:
            assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
            (token,) = [one for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN"]
            assert token["valueFrom"] == {"secretKeyRef": {"name": "raypipe-ray", "key": "auth_token"}}


def holds_no_secret(manifest: Manifest) -> None:
    names = {one["name"] for container in _containers(manifest) for one in container.get("env", [])}
    assert not any(name.startswith("AWS_") for name in names)
    for container in _containers(manifest):
        plain = [one["name"] for one in container.get("env", []) if "value" in one]
        assert set(plain) <= {"RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE"}
    assert not _of_kind(manifest, "Secret")


def has_roles(manifest: Manifest) -> None:
    """Pods get their rights from a role; Kubernetes' own token is only in the pod that scales the cluster."""
    accounts = {one["metadata"]["name"]: one for one in _of_kind(manifest, "ServiceAccount")}
    for account in accounts.values():
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")
    assert {pod["spec"]["serviceAccountName"] for pod in _ray_pods(manifest)} == set(accounts)
    head = _cluster(manifest)["headGroupSpec"]["template"]
    for pod in _pods(manifest):
        scales = pod is head and _cluster(manifest).get("enableInTreeAutoscaling")
        assert pod["spec"].get("automountServiceAccountToken", True) is bool(scales)


def asks_for_resources(manifest: Manifest) -> None:
    for container in _containers(manifest):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert _cluster(manifest)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def is_fenced(manifest: Manifest) -> None:
    """Only KubeRay and its own pods reach the dashboard, which runs code for any token holder."""
    (policy,) = _of_kind(manifest, "NetworkPolicy")
    (selected,) = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(selected in pod["metadata"]["labels"].items() for pod in _pods(manifest))
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    for rule in policy["spec"]["ingress"]:
        (peer,) = rule["from"]
        labels = peer.get("podSelector", {}).get("matchLabels")
        ports = {port["port"] for port in rule.get("ports", [])}
        assert labels == dict([selected]) or (ports and (labels == operator or ports <= {8000, 8080}))
    (egress,) = policy["spec"]["egress"]
    assert {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]} in [one.get("ipBlock") for one in egress["to"]]


CHECKS = [is_pinned, is_confined, asks_for_a_token, holds_no_secret, has_roles, asks_for_resources, is_fenced]


def _break(check: Callable[[Manifest], None], name: str, change: Callable[[Manifest], object]) -> Any:  # noqa: ANN401 - pytest's
    return pytest.param(check, name, change, id=f"{check.__name__}-{name}")


BROKEN = [
    _break(is_pinned, SERVICE, lambda m: _workers(m)[0]["spec"]["containers"][0].update(image="raypipe:latest")),
    _break(is_confined, SERVICE, lambda m: _workers(m)[0]["spec"]["securityContext"].update(runAsNonRoot=False)),
    _break(is_confined, "rayjob-embed.yaml", lambda m: _cluster(m)["autoscalerOptions"].update(securityContext={})),
    _break(
        is_confined, "rayjob-train.yaml", lambda m: m[0]["spec"]["submitterPodTemplate"]["spec"].update(hostPID=True)
    ),
    _break(asks_for_a_token, SERVICE, lambda m: _workers(m)[0]["spec"]["containers"][0]["env"].pop(1)),
    _break(asks_for_a_token, "rayjob-embed.yaml", lambda m: _cluster(m)["authOptions"].update(mode="disabled")),
    _break(
        holds_no_secret,
        SERVICE,
        lambda m: _workers(m)[0]["spec"]["containers"][0]["env"].append({"name": "RAYPIPE_API_TOKEN", "value": "t"}),
    ),
    _break(has_roles, SERVICE, lambda m: _workers(m)[0]["spec"].pop("automountServiceAccountToken")),
    _break(has_roles, "rayjob-embed.yaml", lambda m: m[1]["metadata"].update(annotations={"x": "y"})),
    _break(asks_for_resources, SERVICE, lambda m: _workers(m)[0]["spec"]["containers"][0]["resources"].pop("requests")),
    _break(is_fenced, SERVICE, lambda m: m[-1]["spec"]["ingress"].append({"from": [{"namespaceSelector": {}}]})),
    _break(is_fenced, "rayjob-embed.yaml", lambda m: _workers(m)[0]["metadata"].update(labels={})),
]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("check", CHECKS)
def test_it_is_safe_as_shipped(check: Callable[[Manifest], None], name: str) -> None:
    check(read(name))


@pytest.mark.parametrize(("check", "name", "change"), BROKEN)
def test_unsafe_changes_are_noticed(
    check: Callable[[Manifest], None], name: str, change: Callable[[Manifest], object]
) -> None:
    manifest = read(name)
    change(manifest)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(manifest)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_starts_without_workers_and_its_command_is_valid(name: str) -> None:
    manifest = read(name)
    assert {group["minReplicas"] for group in _cluster(manifest)["workerGroupSpecs"]} == {0}
    assert all(group["maxReplicas"] > 0 for group in _cluster(manifest)["workerGroupSpecs"])
    assert manifest[0]["spec"]["shutdownAfterJobFinishes"] is True
    program, command, *arguments = shlex.split(manifest[0]["spec"]["entrypoint"])
    assert program == "raypipe"
    context = typer.main.get_command(app).commands[command].make_context(command, arguments)
    given = {("input" if key == "input_uri" else key): value for key, value in context.params.items()}
    overrides = given.pop("overrides")
    values = {key: value for key, value in given.items() if value is not None and key not in {"config", "debug"}}
    load_config(JOBS[name], values=values, overrides=overrides)


def test_two_replicas_run_on_two_nodes_and_are_not_drained_together() -> None:
    manifest = read(SERVICE)
    (group,) = _cluster(manifest)["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 2
    labels = group["template"]["metadata"]["labels"]
    spread = {one["topologyKey"]: one for one in group["template"]["spec"]["topologySpreadConstraints"]}
    by_node = spread["kubernetes.io/hostname"]
    assert (by_node["maxSkew"], by_node["minDomains"], by_node["whenUnsatisfiable"]) == (1, 2, "DoNotSchedule")
    assert by_node["labelSelector"]["matchLabels"].items() <= labels.items()
    (budget,) = _of_kind(manifest, "PodDisruptionBudget")
    assert budget["spec"] == {"minAvailable": 1, "selector": by_node["labelSelector"]}
    head = _cluster(manifest)["headGroupSpec"]["template"]["metadata"]["labels"]
    assert not by_node["labelSelector"]["matchLabels"].items() <= head.items()


def test_rays_state_is_in_redis_whose_address_is_a_secret() -> None:
    cluster = _cluster(read(SERVICE))
    options = cluster["gcsFaultToleranceOptions"]
    environment = {one["name"]: one for one in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    address = environment[re.fullmatch(r"\$\((\w+)\)", options["redisAddress"])[1]]
    for source in (address["valueFrom"], options["redisPassword"]["valueFrom"]):
        assert source["secretKeyRef"]["name"] == "raypipe-serve"


def test_serve_takes_the_configuration_and_other_machines_need_the_token() -> None:
    manifest = read(SERVICE)
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest[0]["spec"]["serveConfigV2"]))
    assert (str(config.proxy_location.value), config.http_options.host) == ("EveryNode", "0.0.0.0")  # noqa: S104 - compared
    (application,) = config.applications
    assert application.import_path == "raypipe.endpoint.app:build_app"
    for pod in _ray_pods(manifest):
        (token,) = [one for one in pod["spec"]["containers"][0]["env"] if one["name"] == TOKEN_VARIABLE]
        assert token["valueFrom"]["secretKeyRef"]["name"] == "raypipe-serve"
    settings = ServeConfig.model_validate(application.args)
    for replicas in (settings.replicas, settings.model_replicas):
        assert (replicas.min, replicas.max_per_node) == (2, 1)
