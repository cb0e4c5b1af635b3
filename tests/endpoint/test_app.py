"""A server's abilities are fixed before it starts; it is an error if the configuration asks for one that it lacks."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from raypipe.config import ServeConfig, load_config
from raypipe.endpoint.app import build, build_app, find_abilities
from raypipe.endpoint.run import base_url
from raypipe.errors import ConfigError, FingerprintError, IndexVersionError, WeightsError
from raypipe.models.weights import resolve_weights
from raypipe.storage import Folder
from support.classify_outputs import save_model
from support.served_index import DIM, damage, make_items, put_version

EXAMPLE = Path(__file__).parents[2] / "jobs" / "serve.yaml"


def index_of(folder: Folder, *, weights: str = "random") -> str:
    """Put an index of embeddings that resnet18 made, and return its version."""
    digest = resolve_weights("resnet18", weights, read_bytes=lambda _: b"").digest if weights == "random" else weights
    sampling = {"mode": "uniform", "num_frames": 2, "nearest_keyframe": False}
    made = {"backbone": "resnet18", "weights": digest, "dtype": "float32", "sampling": sampling}
    about = {"uri": "e", "fingerprint": "mark", "settings": {**made, "resize_size": 256, "crop_size": 224}}
    return put_version(folder, *make_items(20), about=about)


@pytest.fixture
def index(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "index"))


def config(index: Folder, **keys: Any) -> ServeConfig:  # noqa: ANN401 - of any type
    embedder = {"weights": "random"} | keys.pop("embedder", {})
    return ServeConfig.model_validate({"index": index.uri, "embedder": embedder, **keys})


def test_with_the_weights_of_the_index_a_server_embeds(index: Folder, tmp_path: Path) -> None:
    index_of(index)
    found = find_abilities(config(index))
    assert found.embeddings is not None
    assert (found.embeddings.fingerprint, found.has_classifier) == ("mark", False)
    model = save_model(tmp_path / "model", dim=DIM, mark="mark")
    assert find_abilities(config(index, model=str(model))).has_classifier


def test_without_the_weights_a_server_starts_and_says_so(index: Folder) -> None:
    other = "0" * 64
    index_of(index, weights=other)
    found = find_abilities(config(index))
    assert found.embeddings is None
    assert f"{other[:16]}…" in found.why_no_embedder
    with pytest.raises(FingerprintError) as caught:
        find_abilities(config(index, embedder={"enabled": True}))
    assert (caught.value.key, caught.value.expected) == ("embedder.weights", other)
    assert find_abilities(config(index, embedder={"weights": "/none.pth"})).embeddings is None
    with pytest.raises(WeightsError, match=r"/none\.pth"):
        find_abilities(config(index, embedder={"weights": "/none.pth", "enabled": True}))
    assert "embedder.enabled" in find_abilities(config(index, embedder={"enabled": False})).why_no_embedder


def test_an_index_that_does_not_say_how_it_was_embedded_is_served_without_an_embedder(index: Folder) -> None:
    put_version(index, *make_items(20), about={"uri": "e", "fingerprint": "mark", "settings": {"crop_size": 224}})
    assert "backbone, weights, sampling" in find_abilities(config(index)).why_no_embedder
    with pytest.raises(IndexVersionError) as caught:
        find_abilities(config(index, embedder={"enabled": True}))
    assert caught.value.key == "embeddings.settings.backbone"
    assert "raypipe index" in caught.value.remedy


def test_a_model_of_other_embeddings_is_refused(index: Folder, tmp_path: Path) -> None:
    index_of(index)
    other = save_model(tmp_path / "other", dim=DIM, mark="other")
    with pytest.raises(FingerprintError) as caught:
        find_abilities(config(index, model=str(other)))
    error = caught.value
    assert (error.key, error.value, error.expected) == ("embedding_fingerprint", "mark", "other")
    longer = save_model(tmp_path / "longer", dim=DIM + 1)
    with pytest.raises(FingerprintError) as caught:
        find_abilities(config(index, model=str(longer)))
    error = caught.value
    assert (error.key, error.value, error.expected) == ("embedding_dim", DIM, DIM + 1)
    with pytest.raises(WeightsError) as no_model:
        find_abilities(config(index, model=str(tmp_path / "none")))
    assert no_model.value.key == str(tmp_path / "none")


def test_without_an_index_a_server_waits_for_one(index: Folder) -> None:
    assert index.uri in find_abilities(config(index)).why_no_embedder
    with pytest.raises(ConfigError) as caught:
        find_abilities(config(index, model="model"))
    assert (caught.value.key, caught.value.value) == ("index", index.uri)
    assert "raypipe index" in caught.value.remedy


def test_a_broken_version_is_skipped(index: Folder) -> None:
    index_of(index)
    damage(index, index_of(index), "manifest.json")
    assert find_abilities(config(index)).embeddings is not None


def test_the_application_has_what_its_abilities_allow(index: Folder) -> None:
    index_of(index)
    settled = config(index, replicas={"min": 1, "max": 3})
    assert isinstance(build(settled, find_abilities(settled)), Application)
    assert isinstance(build_app(config(index, embedder={"enabled": False})), Application)


def test_the_example_deploys_and_holds_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    ServeDeploySchema.model_validate(tree)
    [application] = tree["applications"]
    assert application["import_path"] == f"{build_app.__module__}:{build_app.__name__}"
    given = application["args"]
    assert given == ServeConfig(index=given["index"]).model_dump()
    assert (tree["http_options"]["host"], tree["http_options"]["port"]) == (given["host"], given["port"])
    lines = re.findall(r"^ *\w+: \S", text, re.MULTILINE)
    assert len(lines) == leaves_of(given) + len(["proxy_location", "host", "port", "route_prefix", "import_path"])


def leaves_of(tree: dict[str, Any]) -> int:
    return sum(leaves_of(value) if isinstance(value, dict) and value else 1 for value in tree.values())


@pytest.mark.parametrize(
    ("override", "key", "value", "said"),
    [
        ("replicas.min=2", "replicas", {"min": 2}, ("2", "1")),
        ("replicas.num_cpus=-1", "replicas.num_cpus", -1, ("equal to 0.",)),
        ("port=0", "port", 0, ("equal to 1.",)),
        ("limits.max_history=0", "limits.max_history", 0, ("equal to 1.",)),
        ("limits.max_body=1", "limits.max_body", "limits.max_body", ("'max_body_bytes'",)),
        ("embedder.enabled=maybe", "embedder.enabled", "maybe", ("'auto'", "boolean")),
        ("reload_seconds=0", "reload_seconds", 0, ("greater than 0.",)),
    ],
)
def test_what_serve_cannot_do_is_refused_in_one_line(
    override: str, key: str, value: object, said: tuple[str, ...]
) -> None:
    """The text after the value is pydantic's own."""
    with pytest.raises(ConfigError) as caught:
        load_config(ServeConfig, values={"index": "i"}, overrides=[override])
    assert (caught.value.key, caught.value.value) == (key, value)
    assert "\n" not in str(caught.value)
    assert [one for one in said if one not in str(caught.value)] == []


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        ServeConfig.model_validate({"index": "i", "indx": "j"})


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000")],  # noqa: S104
)
def test_the_printed_address_can_be_used(host: str, expected: str) -> None:
    assert base_url(ServeConfig(index="i", host=host)) == expected
