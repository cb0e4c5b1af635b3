"""dtype int8 from the input to the endpoint: one network for an output, in its fingerprint and in its indexes."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raypipe import schema
from raypipe.config import DecodeConfig, EmbedConfig, IndexConfig, load_config
from raypipe.dataset.read import frame_embeddings, read_embeddings
from raypipe.endpoint.uploads import EmbeddingSettings
from raypipe.errors import ConfigError, FingerprintError, WeightsError
from raypipe.jobs.embed import quantizing
from raypipe.jobs.embed.estimate import estimate
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.one_video import embed_video
from raypipe.jobs.embed.setup import EmbedSetup, prepare
from raypipe.jobs.embed.verify import verify
from raypipe.jobs.index.job import run_index
from raypipe.models import openvino_backbone, quantization
from raypipe.models.int8_files import Agreement, Int8Facts, int8_file
from raypipe.runs.job import BatchRun
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.executors import InlineExecutor
from support.folders import keys
from support.videos import upload

NUM_VIDEOS = 8


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("videos")))
    upload(folder, NUM_VIDEOS)
    return folder


def configured(videos: Folder, output: Path, *overrides: str) -> EmbedConfig:
    settings = ("backbone.name=resnet18", "backbone.weights=random", "backbone.dtype=int8", "sampling.num_frames=2")
    values = {"input": videos.uri, "output": str(output)}
    return load_config(EmbedConfig, values=values, overrides=(*settings, *overrides))


def other_network(setup: EmbedSetup, *, weights: str | None = None) -> bytes:
    """Return the file of another network: the one in float32."""
    network = openvino_backbone.export("resnet18", setup.weights.state_dict)
    facts = Int8Facts("resnet18", weights or setup.weights.digest, 20, Agreement(1, 1.0, 1.0, 1.0))
    return int8_file(network, facts)


@pytest.fixture(scope="module")
def embedded(videos: Folder, tmp_path_factory: pytest.TempPathFactory) -> BatchRun:
    """Return a run that made a network from few videos, whatever its vectors are like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizing, "_FEWEST_VIDEOS", NUM_VIDEOS)
        patch.setattr(Agreement, "is_enough", True)
        return run_embed(configured(videos, tmp_path_factory.mktemp("out")), executor=InlineExecutor())


def test_the_network_is_in_the_record_and_read_by_the_next_run(
    videos: Folder, embedded: BatchRun, tmp_path: Path
) -> None:
    machine, output = embedded.record.machine, Folder(embedded.record.output_uri)
    assert (machine["dtype"], machine["engine"]) == ("int8", "openvino")
    assert machine["int8"]["agreement"]["num_videos"] > 1
    assert run_embed(configured(videos, Path(output.uri)), executor=InlineExecutor()).record.plans == ()
    assert verify(output).ok
    copied = Folder(str(tmp_path / "copied"))
    copied.put(schema.INT8_NETWORK, output.read(schema.INT8_NETWORK))
    found = estimate(configured(videos, tmp_path / "copied"))
    assert (found.num_new, found.engine, found.dtype) == (NUM_VIDEOS, "openvino", "int8")
    assert found.int8 == Agreement(**machine["int8"]["agreement"])
    assert keys(copied) == [schema.INT8_NETWORK]


def test_an_index_serves_videos_with_its_own_copy_of_the_network(embedded: BatchRun, tmp_path: Path) -> None:
    shutil.copytree(embedded.record.output_uri, tmp_path / "out")
    output = Folder(str(tmp_path / "out"))
    run_index(IndexConfig(embeddings=output.uri, output=str(tmp_path / "index")))
    output.delete(schema.INT8_NETWORK)
    assert [violation.check for violation in verify(output).violations] == ["int8_network"]
    versions = Versions(Folder(str(tmp_path / "index")))
    about = EmbeddingSettings.of(versions.read_manifest(versions.require_current()))
    about.check_backbone(versions, "no weights are needed")
    embedder = about.load_embedder(versions, "no weights are needed")
    rows = pa.concat_tables(read_embeddings(output))
    with about.sandbox(DecodeConfig()) as sandbox, Path(rows[schema.VIDEO_URI][0].as_py()).open("rb") as file:
        frames = sandbox.decode(file).frames
    np.testing.assert_allclose(embedder.embed(frames), frame_embeddings(rows)[0], rtol=2e-3, atol=1e-3)


def test_two_runs_use_the_network_that_is_stored_first(
    videos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepare(configured(videos, tmp_path / "out"), dtype="int8")
    first = other_network(setup)

    def is_overtaken(setup: EmbedSetup) -> bytes:
        setup.output.put(schema.INT8_NETWORK, first)
        return b"the network of the slower run"

    monkeypatch.setattr(quantizing, "_make_file", is_overtaken)
    made = quantizing.with_int8_network(setup)
    assert made.int8 is not None
    assert made.int8.facts.num_float_layers == 20
    assert made.settings["int8"] == made.int8.digest
    monkeypatch.setattr(quantizing, "_make_file", None)
    assert quantizing.with_int8_network(setup).settings == made.settings


def test_a_network_of_other_weights_or_a_corrupt_one_is_refused(videos: Folder, tmp_path: Path) -> None:
    setup = prepare(configured(videos, tmp_path / "out"), dtype="int8")
    setup.output.put(schema.INT8_NETWORK, other_network(setup, weights="0" * 64))
    with pytest.raises(ConfigError) as raised:
        quantizing.with_int8_network(setup)
    assert raised.value.expected == ("resnet18", setup.weights.digest)
    setup.output.put(schema.INT8_NETWORK, b"no archive")
    with pytest.raises(WeightsError) as corrupt:
        quantizing.with_int8_network(setup)
    assert corrupt.value.key == setup.output.child(schema.INT8_NETWORK)


def test_an_output_is_never_continued_with_another_network(videos: Folder, embedded: BatchRun, tmp_path: Path) -> None:
    shutil.copytree(embedded.record.output_uri, tmp_path / "out")
    config = configured(videos, tmp_path / "out")
    setup = prepare(config, dtype="int8")
    setup.output.put(schema.INT8_NETWORK, other_network(setup))
    for overrides in ((), ("backbone.dtype=float32",)):
        with pytest.raises(FingerprintError):
            run_embed(configured(videos, tmp_path / "out", *overrides), executor=InlineExecutor())
    setup.output.delete(schema.INT8_NETWORK)
    with pytest.raises(FingerprintError) as raised:
        run_embed(config, executor=InlineExecutor())
    assert raised.value.expected == "int8"
    assert not setup.output.exists(schema.INT8_NETWORK)


def test_too_few_videos_and_too_different_vectors_are_refused(
    videos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(videos, tmp_path / "out")
    with pytest.raises(ConfigError) as raised:
        run_embed(config, executor=InlineExecutor())
    assert (raised.value.key, raised.value.expected) == ("backbone.dtype", 30)
    monkeypatch.setattr(quantizing, "_FEWEST_VIDEOS", NUM_VIDEOS)
    monkeypatch.setattr(Agreement, "is_enough", False)
    monkeypatch.setattr(quantization, "quantize_layers", lambda *_: {})
    with pytest.raises(ConfigError, match="nearest neighbor") as raised:
        run_embed(config, executor=InlineExecutor())
    assert raised.value.value == "int8"
    assert not (tmp_path / "out" / schema.INT8_NETWORK).exists()
    with pytest.raises(ConfigError, match="One video"):
        embed_video(configured(Folder(f"{videos.uri}/part-0/video-0000.mp4"), tmp_path / "out"))


def test_int8_needs_openvino_and_a_cpu() -> None:
    for overrides in (("backbone.engine=torch",), ("backbone.compile=true",)):
        with pytest.raises(ConfigError):
            configured(Folder("in"), Path("out"), *overrides)
