"""The int8 network of an output. The first run makes it from sample videos of the input; other runs read it."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from rich.console import Console

from raypipe import schema
from raypipe.dataset.plan import PlannedVideo, plan_numbers, read_plan
from raypipe.errors import ConfigError, FingerprintError, ObjectMissingError
from raypipe.jobs.embed.inputs import find_videos
from raypipe.jobs.embed.setup import EmbedSetup, unstored_shard
from raypipe.jobs.embed.shard import crops_of_videos, decode_shard
from raypipe.models.backbones import Pixels
from raypipe.models.int8_files import LEAST_AGREEMENT, Agreement, Int8Facts, Int8Network, int8_file, open_int8_file
from raypipe.storage import Folder
from raypipe.video.sandbox.parent import DecodeSandbox

_LISTED = 50_000  # videos of the input from which the sample is drawn
_CALIBRATION_VIDEOS, _HELD_OUT_VIDEOS = 64, 128
_FEWEST_VIDEOS = 30  # to quantize with and to measure; with fewer, one video is more than 5 % of the held-out ones
_FRAMES_PER_VIDEO = 4
_VIDEOS_AT_ONCE = 16


def with_int8_network(setup: EmbedSetup, *, store: bool = True, console: Console | None = None) -> EmbedSetup:
    """Add the int8 network of the output to ``setup``. If the output has no network yet, make one.

    A new network is stored in the output, unless ``store`` is False. Making it takes minutes, so this is printed to
    ``console``. If two runs start at the same time, both use the network that was stored first.

    Raises:
        ConfigError: the input has too few videos, the vectors would change too much, or the stored
            network was made from other weights.
        FingerprintError: the output has rows, but no network.
        WeightsError: the stored network is corrupt.
        StorageError: the input or the output cannot be read.
    """
    backbone, output = setup.config.backbone, setup.output
    try:
        data = output.read(schema.INT8_NETWORK)
    except ObjectMissingError:
        _check_unplanned(output)
        said = f"Quantizing {backbone.name} with sample videos of the input. This takes minutes, once per output."
        (console or Console()).print(said)
        data = _make_file(setup)
        if store and not output.put_new(schema.INT8_NETWORK, data):
            data = output.read(schema.INT8_NETWORK)
    network = open_int8_file(data, uri=output.child(schema.INT8_NETWORK))
    _check(network, setup)
    return replace(setup, int8=network)


def _check_unplanned(output: Folder) -> None:
    """Raise FingerprintError if the output has rows already, because no new network could have made them."""
    if numbers := plan_numbers(output):
        dtype = read_plan(output, numbers[0]).settings.get("dtype")
        msg = f"{output} was embedded with dtype {dtype}, and has no {schema.INT8_NETWORK}."
        remedy = "Choose another output." if dtype != "int8" else "Restore the file, or choose another output."
        raise FingerprintError(msg, key="backbone.dtype", value="int8", expected=dtype, remedy=remedy)


def _check(network: Int8Network, setup: EmbedSetup) -> None:
    found = network.facts.backbone, network.facts.weights
    expected = setup.config.backbone.name, setup.weights.digest
    if found != expected:
        uri = setup.output.child(schema.INT8_NETWORK)
        parts = (f"{name} with the weights {digest[:16]}…" for name, digest in (found, expected))
        msg = f"{uri} was made from {next(parts)}, not from {next(parts)}."
        raise ConfigError(msg, key="backbone", value=found, expected=expected, remedy="Choose another output.")


def _make_file(setup: EmbedSetup) -> bytes:
    from raypipe.models.openvino_backbone import OpenVinoBackbone, export  # noqa: PLC0415 - OpenVINO is optional
    from raypipe.models.quantization import FLOAT_LAYERS, quantize_layers, with_float_layers  # noqa: PLC0415

    name, weights = setup.config.backbone.name, setup.weights
    videos = _sample_frames(setup)
    split = len(videos) * _CALIBRATION_VIDEOS // (_CALIBRATION_VIDEOS + _HELD_OUT_VIDEOS)
    held_out = np.concatenate(videos[split:])
    stops = np.cumsum([0, *(len(frames) for frames in videos[split:])])
    exported = export(name, weights.state_dict)
    expected = OpenVinoBackbone(exported, name=name, dtype="float32").embed(held_out)
    layers = quantize_layers(name, weights.state_dict, np.concatenate(videos[:split]))
    tried = []
    for num_float_layers in FLOAT_LAYERS:
        network = with_float_layers(exported, layers, num_float_layers)
        vectors = OpenVinoBackbone(network, name=name, dtype="int8").embed(held_out)
        agreement = Agreement.of(vectors, expected, stops)
        if agreement.is_enough:
            return int8_file(network, Int8Facts(name, weights.digest, num_float_layers, agreement))
        tried.append(agreement)
    raise _refused(name, tried)


def _refused(name: str, tried: Sequence[Agreement]) -> ConfigError:
    best = max(tried, key=lambda one: one.same_neighbor)
    median, p01, same = LEAST_AGREEMENT
    numbers = f"the median {best.cosine_median:.4f} and the first percentile {best.cosine_p01:.4f}"
    msg = (
        f"int8 would change the vectors of {name} too much. On {best.num_videos} videos, the cosine to float32 has "
        f"{numbers}, and {best.same_neighbor:.0%} keep their nearest neighbor. "
        f"At least {median:g}, {p01:g} and {same:.0%} are needed."
    )
    return ConfigError(msg, key="backbone.dtype", value="int8", remedy="Set backbone.dtype=auto.")


def _sample_frames(setup: EmbedSetup) -> list[Pixels]:
    """Return a few frames [T, crop, crop, 3] of each video of a random sample of the input.

    The sample is drawn from the first 50,000 videos of the listing. Videos that cannot be decoded are left out.

    Raises:
        ConfigError: there are too few videos.
    """
    config = setup.config
    listed = islice(find_videos(config.input, output_uri=config.output), _LISTED)
    wanted = _CALIBRATION_VIDEOS + _HELD_OUT_VIDEOS
    chosen = heapq.nsmallest(2 * wanted, listed, key=lambda video: hashlib.sha256(video.video_id.encode()).digest())
    frames = list(islice(_frames_of_each(setup, chosen), wanted))
    if len(frames) < _FEWEST_VIDEOS:
        msg = f"int8 needs {_FEWEST_VIDEOS} videos to quantize with, but {config.input!r} has {len(frames)}."
        remedy = f"Set backbone.dtype=auto, or copy {schema.INT8_NETWORK} from an output of similar videos to this one."
        raise ConfigError(msg, key="backbone.dtype", value="int8", expected=_FEWEST_VIDEOS, remedy=remedy)
    return frames


def _frames_of_each(setup: EmbedSetup, videos: Sequence[PlannedVideo]) -> Iterator[Pixels]:
    decode, request = setup.config.decode, setup.decode_request
    with DecodeSandbox.start(request, decode) as sandbox:
        for start in range(0, len(videos), _VIDEOS_AT_ONCE):
            some = unstored_shard(videos[start : start + _VIDEOS_AT_ONCE])
            decoded = decode_shard(some, sandbox, max_size_bytes=decode.max_size_bytes)
            for frames in crops_of_videos(decoded, crop_size=request.crop_size):
                yield frames[:: -(-len(frames) // _FRAMES_PER_VIDEO)].copy()
