"""The edge to torchvision: its networks without memory, and what it publishes with their weights."""

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from raypipe.models.backbones import Preprocessing, check_name, head_name


def preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing that torchvision declares for the default weights; ConfigError for an unknown name."""
    transforms = _default_weights(name).transforms()
    return Preprocessing(
        resize_size=transforms.resize_size[0],
        crop_size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def pretrained_url(name: str) -> str:
    """Return the URL of torchvision's default weights; raises ConfigError for an unknown name."""
    return str(_default_weights(name).url)


@functools.cache
def prepare_torchvision() -> torch.library.Library | None:
    """Make torchvision, and transformers which imports it, importable with a CPU-only torch; call it before either.

    torchvision's Linux wheel is a CUDA build: its operators cannot load with a CPU torch, and its import then fails
    on the missing schemas. They are declared only if the real ones are missing; no network here calls them.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    package = importlib.util.find_spec("torchvision")
    folders = package.submodule_search_locations if package is not None else None
    extension = importlib.machinery.PathFinder.find_spec("_C", folders) if folders else None
    if extension is not None and extension.origin is not None:
        try:
            torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
        except OSError:
            pass
        else:
            return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return library  # the cache keeps it: a dropped library takes its schemas with it


def _models() -> Any:  # noqa: ANN401 - torchvision ships no types
    prepare_torchvision()
    with _compiler_deferred():
        return importlib.import_module("torchvision.models")


@contextmanager
def _compiler_deferred() -> Iterator[None]:
    """Let an import do without torch's compiler, whose own import takes about two seconds in every process.

    ``torchvision.ops`` imports it for one check in a function that no network here calls. The stand-in imports the
    compiler as soon as that check, or any other attribute, is used.
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
        if attribute.startswith("__"):  # what an import looks for
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
    """Build the network without its head and without memory for its tensors (on the ``meta`` device)."""
    check_name(name)
    with torch.device("meta"), _Undrawn():
        network = cast("nn.Module", _models().get_model(name, weights=None))
    network.set_submodule(head_name(name), nn.Identity())
    return network.eval()


class _Undrawn(TorchFunctionMode):
    """Draw no random numbers: for tensors without memory, that would only import torch's compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call ``func``, unless it draws."""
        return args[0] if func in {torch.Tensor.normal_, torch.Tensor.uniform_} else func(*args, **(kwargs or {}))
