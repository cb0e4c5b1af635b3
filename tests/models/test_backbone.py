import functools
import hashlib
import http.server
import importlib
import io
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from raypipe.errors import ConfigError, StorageError, WeightsError
from raypipe.models import backbones as backbones_module
from raypipe.models import weights as weights_module
from raypipe.models.backbone import CPU_BATCH_SIZE, Backbone
from raypipe.models.backbones import BACKBONES, Preprocessing, embedding_dim, resolve_dtype
from raypipe.models.weights import (
    Weights,
    build_network,
    prepare_torchvision,
    preprocessing,
    pretrained_url,
    resolve_weights,
    weight_shapes,
)

StateDict = dict[str, torch.Tensor]
Frames = npt.NDArray[np.uint8]


def torchvision_models() -> Any:  # noqa: ANN401 - torchvision ships no types
    prepare_torchvision()
    return importlib.import_module("torchvision.models")


@functools.cache
def trained_state_dict(name: str = "resnet18") -> StateDict:
    """Return a whole state dict, with batch norms far from their initial values."""
    generator = torch.Generator().manual_seed(7)
    with torch.device("meta"):
        network = torchvision_models().get_model(name, weights=None)
    state_dict = network.to_empty(device="cpu").state_dict()
    for key, tensor in state_dict.items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(3)
        elif tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        else:
            low, high = {"weight": (0.2, 0.8), "running_var": (0.5, 2.0)}.get(key.rsplit(".", 1)[1], (-0.5, 0.5))
            tensor.uniform_(low, high, generator=generator)
    return dict(state_dict)


def save(state_dict: Any, path: Path) -> str:  # noqa: ANN401 - whatever a user may have stored
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state_dict, path)
    else:
        torch.save(state_dict, path)
    return str(path)


def resolve(weights: str, name: str = "resnet18") -> Weights:
    return resolve_weights(name, weights, read_bytes=lambda uri: Path(uri).read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return resolve(save(trained_state_dict(), tmp_path_factory.mktemp("weights") / "resnet18.safetensors"))


def textures(num_frames: int, *, size: int = 32) -> Frames:
    """Return random frames, each with its own colour and its own coarseness of texture."""
    generator = np.random.default_rng(3)
    frames = []
    for number in range(num_frames):
        cell = 2 ** (1 + number % 4)
        tint = generator.integers(0, 156, 3, dtype=np.uint8)
        cells = tint + generator.integers(0, 100, (size // cell, size // cell, 3), dtype=np.uint8)
        frames.append(cells.repeat(cell, axis=0).repeat(cell, axis=1))
    return np.stack(frames)


def cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    product: npt.NDArray[np.float32] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return product


def reference(name: str, state_dict: StateDict, frames: Frames) -> npt.NDArray[np.float32]:
    """Compute with torchvision's own transform and unmodified model, before the head."""
    with torch.device("meta"):
        network = torchvision_models().get_model(name, weights=None).eval()
    network.load_state_dict(state_dict, assign=True)
    head = network.fc if name.startswith("resnet") else network.classifier[6]
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    size = frames.shape[1]
    transforms = torchvision_models().get_model_weights(name).DEFAULT.transforms(crop_size=size, resize_size=size)
    with torch.inference_mode():
        network(transforms(torch.from_numpy(frames).permute(0, 3, 1, 2)))
    return seen[0].numpy()


def test_names_are_all_of_torchvision() -> None:
    models = torchvision_models()
    names = [name for name in models.list_models(module=models) if re.match(r"(wide_)?resne|vgg", name)]
    assert sorted(BACKBONES) == sorted(names)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_builds_with_its_declared_size(name: str) -> None:
    size = preprocessing(name).crop_size
    embeddings = build_network(name)(torch.empty((2, 3, size, size), device="meta"))
    assert embeddings.shape == (2, embedding_dim(name))


def test_preprocessing_is_what_the_weights_declare() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert preprocessing("resnet50") == Preprocessing(resize_size=232, crop_size=224, mean=mean, std=std)
    assert preprocessing("vgg16") == Preprocessing(resize_size=256, crop_size=224, mean=mean, std=std)


@pytest.mark.parametrize("use", [embedding_dim, preprocessing, pretrained_url, build_network])
def test_unknown_name_is_reported_with_the_choices(use: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError) as caught:
        use("resnet5")
    assert (caught.value.key, caught.value.value, caught.value.choices) == ("backbone.name", "resnet5", BACKBONES)


def test_importing_loads_no_torchvision_and_preparing_makes_it_importable() -> None:
    code = (
        "import sys; import raypipe.models.weights as n, raypipe.models.weights;"
        "assert 'torchvision' not in sys.modules;"
        "import raypipe.models.backbone as b; assert b.embedding_dim('vgg11') == 4096;"
        "assert 'torchvision' not in sys.modules;"
        "n.prepare_torchvision(); n.prepare_torchvision(); import torchvision.models"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    prepare_torchvision.__wrapped__()  # a no-op if the operators exist; declaring them twice would raise


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn"])
def test_embeddings_are_those_of_torchvision(name: str) -> None:
    state_dict = trained_state_dict(name)
    frames = textures(3, size=96)
    arrays = {key: state_dict[key].numpy() for key in weight_shapes(name)}
    embeddings = Backbone(arrays, name=name).embed(frames)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (3, embedding_dim(name))
    expected = reference(name, state_dict, frames)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))
    assert cosines(embeddings, expected).min() > 0.999


def test_bfloat16_stays_close(trained: Weights) -> None:
    frames = textures(4, size=64)
    full, half = (Backbone(trained.state_dict, name="resnet18", dtype=d).embed(frames) for d in ("float32", "bfloat16"))
    assert half.dtype == np.float32
    assert 0.98 < cosines(full, half).min() < 1 - 1e-7


@pytest.mark.parametrize("num_frames", [0, 1, 3, 7, 8])
def test_any_number_of_frames(trained: Weights, num_frames: int) -> None:
    frames = textures(8)[:num_frames]
    frames.flags.writeable = False  # like blocks of an object store
    embeddings = Backbone(trained.state_dict, name="resnet18", batch_size=3).embed(frames)
    assert embeddings.shape == (num_frames, 512)
    assert embeddings.dtype == np.float32
    one_by_one = Backbone(trained.state_dict, name="resnet18", batch_size=1).embed(frames)
    np.testing.assert_allclose(embeddings, one_by_one, rtol=1e-3, atol=1e-4)


def test_frames_of_another_shape_or_type_are_refused(trained: Weights) -> None:
    model = Backbone(trained.state_dict, name="resnet18")
    with pytest.raises(ValueError, match=r"uint8\[3, 64, 64\]"):
        model.embed(np.zeros((3, 64, 64), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"float32\[1, 64, 64, 3\]"):
        model.embed(np.zeros((1, 64, 64, 3), dtype=np.float32))


def fail_above(model: Backbone, limit: int, error: BaseException) -> list[int]:
    """Make the model run out of memory above ``limit`` frames; return the list of the sizes that it tries."""
    embedder, tried = model._embedder, []

    def embed(frames: torch.Tensor) -> torch.Tensor:
        tried.append(len(frames))
        if len(frames) > limit:
            raise error
        output: torch.Tensor = embedder(frames)
        return output

    object.__setattr__(model, "_embedder", embed)
    return tried


CPU_ALLOCATOR_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), CPU_ALLOCATOR_ERROR])
def test_out_of_memory_halves_the_batch_for_good(
    trained: Weights, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    frames = textures(7)
    expected = Backbone(trained.state_dict, name="resnet18").embed(frames)
    model = Backbone(trained.state_dict, name="resnet18")
    tried = fail_above(model, 2, error)
    with caplog.at_level(logging.WARNING):
        embeddings = model.embed(frames)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4)
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert (7, 3) in [record.args for record in caplog.records]
    model.embed(frames[:2])
    assert tried[-2:] == [1, 1]


def test_out_of_memory_with_one_frame_and_other_errors_are_raised(trained: Weights) -> None:
    model = Backbone(trained.state_dict, name="resnet18")
    tried = fail_above(model, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        model.embed(textures(4))
    assert tried == [4, 2, 1]
    model = Backbone(trained.state_dict, name="resnet18")
    tried = fail_above(model, 0, RuntimeError("expected stride to be a single integer"))
    with pytest.raises(RuntimeError, match="stride"):
        model.embed(textures(4))
    assert tried == [4]


def test_a_compiled_network_sees_one_shape(trained: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def compile_fake(module: nn.Module, **_options: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def compiled(frames: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(frames.shape))
            output: torch.Tensor = module(frames)
            return output

        return compiled

    frames = textures(7)
    expected = Backbone(trained.state_dict, name="resnet18", compile=False).embed(frames)
    monkeypatch.setattr(torch, "compile", compile_fake)
    embeddings = Backbone(trained.state_dict, name="resnet18", batch_size=3, compile=True).embed(frames)
    assert shapes == [(3, 32, 32, 3)] * 3
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-4)
    assert Backbone(trained.state_dict, name="resnet18").embed(frames).shape == (7, 512)
    assert len(shapes) == 3  # "auto" never compiles on a CPU


def test_a_cpu_takes_few_frames_at_a_time(trained: Weights) -> None:
    model = Backbone(trained.state_dict, name="resnet18", batch_size=256)
    tried = fail_above(model, 256, MemoryError())
    model.embed(textures(CPU_BATCH_SIZE + 1))
    assert tried == [CPU_BATCH_SIZE, 1]


def test_a_state_dict_of_another_backbone_is_refused(trained: Weights) -> None:
    with pytest.raises(WeightsError, match=r"'layer1\.2\.conv1\.weight'") as caught:
        Backbone(trained.state_dict, name="resnet34")
    assert (caught.value.key, caught.value.expected) == ("state_dict", "resnet34")
    with pytest.raises(WeightsError) as caught:
        Backbone(resolve("random", "resnet50").state_dict, name="wide_resnet50_2")
    assert (caught.value.key, caught.value.expected) == ("state_dict", "wide_resnet50_2")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2", "avx512f"}, "float32"),
        ({"avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        ({"asimd", "bf16"}, "bfloat16"),
        (set(), "float32"),
    ],
)
def test_auto_dtype_is_what_the_processor_has(flags: set[str], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones_module, "cpu_flags", lambda: frozenset(flags))
    assert resolve_dtype("auto", "cpu") == dtype
    assert resolve_dtype("float32", "cpu") == "float32"
    assert resolve_dtype("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_dtype_of_a_gpu(capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert resolve_dtype("auto", "cuda") == dtype


def test_auto_dtype_of_a_gpu_elsewhere_is_the_safe_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_dtype("auto", "cuda") == "float32"
    assert "backbone.dtype=bfloat16" in caplog.text


def without_head(state_dict: StateDict) -> StateDict:
    return {key: value for key, value in state_dict.items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("w.safetensors", without_head),
        ("w.pth", dict),
        ("w.pt", lambda weights: {"state_dict": weights, "epoch": 3}),
        ("w.pth", lambda weights: {f"module.{key}": value for key, value in weights.items()}),
        ("w.pth", lambda weights: {"state_dict": {f"module.{key}": value for key, value in weights.items()}}),
        ("w.pth", lambda weights: {key: value for key, value in weights.items() if "num_batches" not in key}),
        ("w.pth", lambda weights: {**weights, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}),
        ("w.pth", lambda weights: {key: value.double() for key, value in weights.items()}),
    ],
)
def test_any_way_to_store_weights_gives_the_same_digest(
    file: str, wrap: Callable[[StateDict], Any], tmp_path: Path, trained: Weights
) -> None:
    weights = resolve(save(wrap(trained_state_dict()), tmp_path / file))
    assert weights.digest == trained.digest
    assert list(weights.state_dict) == list(weight_shapes("resnet18"))
    assert all(array.dtype == np.float32 for array in weights.state_dict.values())
    np.testing.assert_array_equal(weights.state_dict["conv1.weight"], trained_state_dict()["conv1.weight"].numpy())


def test_the_digest_tells_weights_apart(tmp_path: Path, trained: Weights) -> None:
    state_dict = {key: value.clone() for key, value in trained_state_dict().items()}
    state_dict["layer4.1.bn2.running_var"][511] += 1e-6
    assert resolve(save(state_dict, tmp_path / "w.pth")).digest != trained.digest
    assert re.fullmatch("[0-9a-f]{64}", trained.digest)


def changed(**changes: torch.Tensor | None) -> StateDict:
    state_dict = {**trained_state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state_dict.items() if value is not None}


@pytest.mark.parametrize(
    ("state_dict", "key", "value", "expected"),
    [
        (lambda: changed(layer1__0__conv1__weight=None), "layer1.0.conv1.weight", None, (64, 64, 3, 3)),
        (lambda: changed(conv1__weight=torch.zeros(64, 1, 7, 7)), "conv1.weight", (64, 1, 7, 7), (64, 3, 7, 7)),
        (lambda: changed(layer5__weight=torch.zeros(2)), "layer5.weight", None, None),
        (lambda: changed(bn1__bias=torch.full((64,), torch.nan)), "bn1.bias", "nan", None),
        (lambda: changed(bn1__bias=torch.full((64,), -torch.inf)), "bn1.bias", "-inf", None),
        (lambda: changed(bn1__bias=torch.zeros(64, dtype=torch.int8)), "bn1.bias", "torch.strided torch.int8", None),
        (lambda: {"epoch": 3}, "conv1.weight", None, (64, 3, 7, 7)),
    ],
)
def test_the_first_misfit_is_named(
    state_dict: Callable[[], Any], key: str, value: object, expected: object, tmp_path: Path
) -> None:
    path = save(state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as raised:
        resolve(path)
    error = raised.value
    assert (error.key, error.value, error.expected) == (key, value, expected)
    assert all(token in str(error) for token in (repr(path), repr(key), "resnet18"))
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("file", "data", "cause", "remedy"),
    [
        ("w.onnx", b"", None, ".safetensors, .pth, .pt"),
        ("w.safetensors", b"not weights", SafetensorError, ""),
        ("w.pth", b"", EOFError, ""),
        ("w.pth", b"not weights", None, " .safetensors."),
        ("w.pth", [1, 2], None, "model.state_dict()"),
    ],
)
def test_a_file_without_weights_is_reported(
    file: str, data: object, cause: type[Exception] | None, remedy: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        save(data, path)
    with pytest.raises(WeightsError) as raised:
        resolve(str(path))
    error = raised.value
    assert (error.key, error.value) == (str(path), "list" if isinstance(data, list) else None)
    assert error.__cause__ is None if cause is None else isinstance(error.__cause__, cause)
    assert remedy in error.remedy
    assert repr(str(path)) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory"), StorageError("access denied")])
def test_weights_that_cannot_be_read_are_reported(error: Exception) -> None:
    def fail(_uri: str) -> bytes:
        raise error

    with pytest.raises(WeightsError, match=re.escape(str(error))) as raised:
        resolve_weights("resnet18", "s3://bucket/w.pth", read_bytes=fail)
    assert raised.value.key == "s3://bucket/w.pth"
    assert "`weights: random`" in raised.value.remedy


class TouchesFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    path = save({**trained_state_dict(), "x": TouchesFile(touched)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as raised:
        resolve(path)
    assert raised.value.key == path
    assert ".safetensors" in raised.value.remedy
    assert not touched.exists()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder on loopback; yield the folder and its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def forbid_network(*_arguments: object, **_options: object) -> None:
    pytest.fail("The test accessed the network.")


def test_default_weights_come_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, trained: Weights) -> None:
    monkeypatch.setattr(weights_module, "urlopen", forbid_network)
    monkeypatch.setattr(torch.hub, "urlopen", forbid_network)
    cache.mkdir(parents=True)
    assert pretrained_url("resnet18").endswith("/resnet18-f37072fd.pth")
    save(trained_state_dict(), cache / "resnet18-f37072fd.pth")
    assert resolve("default").digest == trained.digest


def test_a_damaged_file_in_the_cache_is_named(cache: Path) -> None:
    file = cache / "resnet18-f37072fd.pth"
    cache.mkdir(parents=True)
    file.write_bytes(b"")
    with pytest.raises(WeightsError) as raised:
        resolve("default")
    assert raised.value.key == str(file)
    assert isinstance(raised.value.__cause__, EOFError)


def test_default_weights_are_downloaded_once(
    cache: Path,
    site: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    trained: Weights,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, address = site
    data = io.BytesIO()
    torch.save(trained_state_dict(), data)
    file = f"resnet18-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.pth"
    (folder / file).write_bytes(data.getvalue())
    monkeypatch.setattr(weights_module, "pretrained_url", lambda _name: f"{address}/{file}")
    assert resolve("default").digest == trained.digest
    assert capsys.readouterr().out == ""
    (folder / file).unlink()
    assert (cache / file).exists()
    assert resolve("default").digest == trained.digest


def test_a_server_that_does_not_reply_is_not_awaited(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "REPLY_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never reads
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/resnet18-00000000.pth"
        monkeypatch.setattr(weights_module, "pretrained_url", lambda _name: url)
        with pytest.raises(WeightsError) as raised:
            resolve("default")
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert str(cache) in raised.value.remedy


def test_a_download_with_another_hash_is_refused(
    cache: Path, site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = site
    save(trained_state_dict(), folder / "resnet18-00000000.pth")
    monkeypatch.setattr(weights_module, "pretrained_url", lambda _name: f"{address}/resnet18-00000000.pth")
    with pytest.raises(WeightsError, match="invalid hash value") as raised:
        resolve("default")
    assert raised.value.key.endswith("/resnet18-00000000.pth")
    assert "`weights: random`" in raised.value.remedy
    assert list(cache.iterdir()) == []


def test_a_failed_download_says_what_to_do(
    cache: Path, site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{site[1]}/resnet18-f37072fd.pth"
    monkeypatch.setattr(weights_module, "pretrained_url", lambda _name: url)
    with pytest.raises(WeightsError) as raised:
        resolve("default")
    assert raised.value.key == url
    assert "HTTP Error 404" in str(raised.value)
    assert str(cache) in raised.value.remedy
    assert "`weights: random`" in raised.value.remedy


def test_random_weights_are_always_the_same() -> None:
    # A literal, so that this also holds on other machines, not only twice in one process.
    assert resolve("random").digest.startswith("41ce1fe4f8")


@pytest.mark.parametrize("name", ["resnet18", "resnet152", "vgg11"])
def test_random_embeddings_are_finite_and_tell_images_apart(name: str) -> None:
    frames = textures(4, size=128)
    embeddings = Backbone(resolve("random", name).state_dict, name=name).embed(frames)
    assert np.isfinite(embeddings.astype(np.float16)).all()
    assert 0.1 < embeddings.max() < 100
    pairs = [cosines(embeddings[i : i + 1], embeddings[j : j + 1])[0] for i in range(4) for j in range(i)]
    assert max(pairs) < 0.95
    assert np.mean(pairs) < 0.8


def run_python(code: str) -> str:
    """Return what a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_driver_starts_without_torch() -> None:
    assert run_python("import raypipe.jobs.embed.job, sys; print('torch' in sys.modules)") == "False"


def test_the_compiler_is_available_to_other_code_meanwhile() -> None:
    code = (
        "import torch; from raypipe.models.weights import _compiler_deferred\n"
        "with _compiler_deferred():\n"
        "    import torch._dynamo\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())"
    )
    assert run_python(code) == "2.0"


def test_a_cpu_embeds_without_torchs_compiler_and_other_code_can_use_it() -> None:
    embed = (
        "import sys, importlib, numpy as np; "
        "from raypipe.models.backbone import Backbone; from raypipe.models.weights import resolve_weights; "
        "state = resolve_weights('resnet18', 'random', read_bytes=lambda _: b'').state_dict; "
        "Backbone(state, name='resnet18').embed(np.zeros((1, 224, 224, 3), np.uint8)); "
        "print('torch._dynamo' in sys.modules, 'torch._dynamo.utils' in sys.modules); "
    )
    ask = "print(importlib.import_module('torchvision.ops.roi_align').is_compile_supported('cpu') in {True, False}); "
    assert run_python(embed + ask + "print('torch._dynamo' in sys.modules)") == "False False\nTrue\nTrue"
