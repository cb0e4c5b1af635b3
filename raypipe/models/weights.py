"""Load the weights of a backbone, and get its network and preprocessing from torchvision.

The driver loads the weights once, identifies them by a digest, and passes them to every actor as arrays.
"""

import functools
import hashlib
import importlib
import importlib.util
import io
import json
import math
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from raypipe.background import in_background
from raypipe.errors import RaypipeError, WeightsError
from raypipe.models.backbones import Preprocessing, check_name, head_name
from raypipe.text import one_line

Arrays = dict[str, npt.NDArray[np.float32]]

_ENDINGS = (".safetensors", ".pth", ".pt")
_GIVE = f"Give `weights: default`, `weights: random`, or the path or URI of a {', '.join(_ENDINGS)}."
_SEED = 0
REPLY_SECONDS = 8.0  # a download that cannot work fails after this time


def preprocessing(name: str) -> Preprocessing:
    """Return torchvision's preprocessing for the default weights of a backbone.

    Raises:
        ConfigError: the name is unknown.
    """
    found = _default_weights(name).transforms()
    return Preprocessing(found.resize_size[0], found.crop_size[0], mean=tuple(found.mean), std=tuple(found.std))


def pretrained_url(name: str) -> str:
    """Return the URL of torchvision's default weights for a backbone.

    Raises:
        ConfigError: the name is unknown.
    """
    return str(_default_weights(name).url)


@functools.cache
def prepare_torchvision() -> torch.library.Library | None:
    """Make torchvision importable with a CPU-only torch. Call this before importing torchvision or transformers.

    transformers imports torchvision. torchvision's Linux wheel is a CUDA build, so its operators cannot be loaded with
    a CPU-only torch. Its import then fails because the operators' schemas are missing. This function declares the
    schemas only if the real ones are missing. No network here calls these operators.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    package = importlib.util.find_spec("torchvision")
    folders = package.submodule_search_locations if package is not None else None
    for folder in folders or ():
        for extension in sorted(Path(folder).glob("_C*.so")):  # _C.so, and _C_stable.so since torchvision 0.29
            with suppress(OSError):
                torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
                return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return library  # cached, because a library that is garbage-collected takes its schemas with it


def _models() -> Any:  # noqa: ANN401 - torchvision ships no types
    prepare_torchvision()
    with _compiler_deferred():
        return importlib.import_module("torchvision.models")


@contextmanager
def _compiler_deferred() -> Iterator[None]:
    """Defer the import of torch's compiler, which takes about two seconds in every process.

    ``torchvision.ops`` imports the compiler for one check in a function that no network here calls. During the ``with``
    block, a stand-in module imports the compiler only if that check or any other attribute is used.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(name)

    def leave() -> None:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]

    def ask(attribute: str) -> Any:  # noqa: ANN401
        if attribute.startswith("__"):  # imports look for these attributes
            raise AttributeError(attribute)
        leave()
        return getattr(importlib.import_module(name), attribute)

    stand_in.is_compile_supported = lambda kind: ask("is_compile_supported")(kind)  # noqa: PLW0108 - asked when called
    stand_in.__getattr__ = ask
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        leave()


def _default_weights(name: str) -> Any:  # noqa: ANN401 - torchvision ships no types
    check_name(name)
    return _models().get_model_weights(name).DEFAULT


def build_network(name: str) -> nn.Module:
    """Build the network of a backbone without its head. Its tensors take no memory (``meta`` device)."""
    check_name(name)
    with torch.device("meta"), _Undrawn():
        network = cast("nn.Module", _models().get_model(name, weights=None))
    network.set_submodule(head_name(name), nn.Identity())
    return network.eval()


class _Undrawn(TorchFunctionMode):
    """Skips random initialisation.

    For tensors without memory, the initialisation would do nothing except import torch's compiler.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        return args[0] if func in {torch.Tensor.normal_, torch.Tensor.uniform_} else func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a backbone without its head, and the SHA-256 that identifies them.

    They are float32 arrays under torchvision's names.
    """

    state_dict: Arrays
    digest: str


def resolve_weights(name: str, weights: str, *, read_bytes: Callable[[str], bytes]) -> Weights:
    """Load the weights of a backbone.

    ``weights`` is one of:

    - ``default``: torchvision's weights, from the torch hub cache. They are downloaded if they are not in the cache.
    - ``random``: random weights, which are the same on every machine.
    - The path or URI of a state dict that ends in ``.safetensors``, ``.pth`` or ``.pt``. ``read_bytes`` reads it.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: the weights cannot be found or read, or do not fit the backbone.
    """
    if weights == "random":
        arrays = _random_arrays(name)
    else:
        tree = _read_default(name) if weights == "default" else _read(weights, read_bytes)
        arrays = _fit(tree, name=name, source=weights)
    return Weights(state_dict=arrays, digest=_digest(arrays))


def _read_default(name: str) -> Mapping[str, object]:
    url = pretrained_url(name)
    folder = Path(torch.hub.get_dir(), "checkpoints")
    cached = folder / PurePosixPath(urlsplit(url).path).name
    if cached.exists():
        return _read(str(cached), lambda path: Path(path).read_bytes())
    try:
        _await_reply(url)
        # torch announces the download on stdout, which is reserved for the output of a command.
        with redirect_stdout(sys.stderr):
            state_dict: Mapping[str, object] = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a wrong hash
        if isinstance(error, HTTPError):
            error.close()  # the error is also the response, and keeps the socket open
        msg = f"Cannot download the weights {url}: {_one_line(error)}"
        remedy = f"Put that file into {folder} by hand, or use `weights: random` for a dry run."
        raise WeightsError(msg, key=url, remedy=remedy) from error
    return state_dict


def _await_reply(url: str) -> None:
    """Return as soon as the server replies, even with an error, because torch downloads without a time limit.

    Raises:
        OSError: there is no connection, or no reply within ``REPLY_SECONDS``.
        HTTPException: the reply is not HTTP.
    """

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=REPLY_SECONDS).close()  # noqa: S310 - torchvision's URL
        except HTTPError as error:
            error.close()  # the error is also the response

    try:
        in_background(ask).result(REPLY_SECONDS)  # resolving a host name has no time limit of its own
    except TimeoutError:
        msg = f"no reply within {REPLY_SECONDS:g} s"
        raise TimeoutError(msg) from None


def _read(source: str, read_bytes: Callable[[str], bytes]) -> Mapping[str, object]:
    try:
        data = read_bytes(source)
    except (OSError, RaypipeError) as error:
        msg = f"Cannot read the weights {source!r}: {_one_line(error)}"
        raise WeightsError(msg, key=source, remedy=_GIVE) from error
    if not source.endswith(_ENDINGS):
        msg = f"The weights {source!r} have an unknown format."
        raise WeightsError(msg, key=source, remedy=_GIVE)
    try:
        if source.endswith(".safetensors"):
            tree: object = safetensors.torch.load(data)
        else:
            tree = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        msg = f"The weights {source!r} are not a plain state dict; pickled code is not run."
        raise WeightsError(msg, key=source, remedy="Save them as .safetensors.") from None
    except Exception as error:  # a corrupt file makes the parsers raise nearly anything
        msg = f"The weights {source!r} are corrupt: {_one_line(error)}"
        raise WeightsError(msg, key=source, remedy="Save or download them again.") from error
    while isinstance(tree, Mapping) and isinstance(tree.get("state_dict"), Mapping):
        tree = tree["state_dict"]
    if not isinstance(tree, Mapping):
        kind = type(tree).__name__
        msg = f"The weights {source!r} hold a {kind}, not a state dict."
        raise WeightsError(msg, key=source, value=kind, remedy="Save model.state_dict().")
    return {str(key).removeprefix("module."): value for key, value in tree.items()}


def _fit(tree: Mapping[str, object], *, name: str, source: str) -> Arrays:
    """Return the backbone's tensors as float32 arrays, in the network's order.

    Raises:
        WeightsError: a tensor is missing or unknown, or does not fit. The error names the first such tensor.
    """
    shapes = weight_shapes(name)
    unknown = (key for key in tree if key not in shapes and not _is_unused(name, key))
    misfits = {key: misfit for key, shape in shapes.items() if (misfit := _misfit(tree.get(key), shape))}
    misfits |= dict.fromkeys(unknown, ("is not one of its tensors", None, None))
    for key, (problem, value, expected) in misfits.items():
        msg = f"The weights {source!r} do not fit {name}: {key!r} {problem}."
        remedy = f"Give weights of {name}, or name their backbone."
        raise WeightsError(msg, key=key, value=value, expected=expected, remedy=remedy)
    return {key: torch.as_tensor(tree[key]).detach().to(torch.float32).contiguous().numpy() for key in shapes}


def _misfit(tensor: object, shape: tuple[int, ...]) -> tuple[str, object, object] | None:
    """Return why a tensor does not fit, the wrong value, and the expected value. Return None if it fits."""
    if tensor is None:
        return "is missing", None, shape
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        return f"is {kind}, not a dense tensor of floats", kind, None
    if (found := tuple(tensor.shape)) != shape:
        return f"has shape {found} instead of {shape}", found, shape
    is_finite = tensor.isfinite()
    if not is_finite.all():
        number = str(tensor[~is_finite][0].item())
        return f"holds {number}, which is not finite", number, None
    return None


def weight_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that an embedding depends on, in the network's order.

    The head is left out, and so are counters that only training uses.
    """
    state = build_network(name).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not _is_unused(name, key)}


def _is_unused(name: str, key: str) -> bool:
    return key.startswith(f"{head_name(name)}.") or key.endswith(".num_batches_tracked")


def _random_arrays(name: str) -> Arrays:
    """Draw weights whose embeddings stay finite in float16 and distinguish images, at any depth.

    This is He initialisation with two changes. First, every filter after a ReLU has mean zero. The positive mean of a
    ReLU is common to all images, so after many layers all images would have embeddings in the same direction. Second,
    each residual block adds only 1 / (4 x blocks) of variance, so that the sum does not grow with depth and does not
    lose the shallow layers.
    """
    shapes = weight_shapes(name)
    last_norms = _last_norms(shapes)
    generator = np.random.default_rng(_SEED)
    arrays: Arrays = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            arrays[key] = _random_filters(generator, shape, centered=bool(arrays))  # all but the first filters
        elif key in last_norms:
            arrays[key] = np.full(shape, 0.5 / math.sqrt(len(last_norms)), dtype=np.float32)
        else:
            value = 1 if key.endswith((".weight", ".running_var")) else 0
            arrays[key] = np.full(shape, value, dtype=np.float32)
    return arrays


def _random_filters(
    generator: np.random.Generator, shape: tuple[int, ...], *, centered: bool
) -> npt.NDArray[np.float32]:
    """Draw filters from a uniform distribution.

    A uniform distribution needs no logarithms, so every machine computes the same bits and the same digest.
    """
    filters = generator.random(shape, dtype=np.float32) - np.float32(0.5)
    axes = tuple(range(1, len(shape)))
    if centered:
        # The sum is exact in float64, in any order of additions.
        filters -= filters.mean(axis=axes, keepdims=True, dtype=np.float64).astype(np.float32)
    # A ReLU halves the mean square of its input; the square of the mean is 1 / pi of that half.
    gain = 2 / (1 - 1 / math.pi) if centered else 2
    filters *= np.float32(math.sqrt(12 * gain / math.prod(shape[1:])))
    return filters


def _last_norms(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the names of the weights of the last batch norm in each residual block.

    The result is empty for a VGG, which has no residual blocks.
    """
    last = {}
    for key in shapes:
        if match := re.fullmatch(r"(layer\d+\.\d+)\.bn\d\.weight", key):
            last[match[1]] = key
    return set(last.values())


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = arrays[key]
        digest.update(json.dumps([key, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    text = one_line(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
