"""Measure `raypipe anomalies`: does it find videos of a new class, do its error rates hold, how fast does it calibrate?

    python benchmarks/anomalies.py --drone ../shared/assets/labelled/drone [--keep FOLDER] [--quick]
    python benchmarks/anomalies.py [--parts rates drift load] [--quick]

- ``--drone``: each class in turn is new. The catalogue holds the other classes without one of 5 blocks of consecutive
  clips; the clips of that block are scored. The figure is the area under the ROC curve (AUROC) for telling the new
  class from the others, with a 95 % bootstrap interval over the clips, and the difference to scikit-learn's isolation
  forest on the embeddings, if that is installed. Afterwards, a quarter of the frames of a known clip are replaced by
  frames of a clip of the new class: how often is the strangest moment one of them?
- ``rates``: generated catalogues whose videos are known to be alike: the p-values of more such videos, and how many of
  the marked videos are false.
- ``drift``: streams of p-values: how often is there a false alarm, and after how many videos is a shift noticed?
- ``load``: the time to calibrate, as the endpoint does when it loads a version and as the job does.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.config import IndexSettings
from raypipe.evaluation.discoveries import find_drift, q_values
from raypipe.models.backbones import mean_embedding
from raypipe.search.ann import Ann
from raypipe.search.build import EMBEDDINGS_BELOW
from raypipe.search.index import VideoIndex
from raypipe.search.items import Items
from raypipe.search.novelty import Novelty, fit_ellipsoid
from raypipe.search.projection import Moments, unit_length
from support import describe_machine, learning, make_parser, print_table, scratch_folder

Floats = npt.NDArray[np.float32]
Strangeness = Mapping[str, npt.NDArray[np.float64]]  # of each clip, by method: higher is stranger
BLOCKS, RATE, NUM_RESAMPLES = 5, 0.05, 1_000
_MAX_SCORES = 2_000  # videos of a generated catalogue that are compared
OURS, FOREST = "raypipe", "isolation forest"
_PARTS = ("rates", "drift", "load")
_SETTINGS = IndexSettings()


def index_of(embeddings: Floats) -> VideoIndex:
    """Return the index that ``raypipe index`` would build of embeddings ``[N, D]``, in memory."""
    moments = Moments()
    moments.add(embeddings)
    projection = moments.fit(_SETTINGS.dim, whitening=_SETTINGS.whitening)
    vectors = projection.apply(embeddings).astype(np.float16)
    has_embeddings = len(embeddings) < EMBEDDINGS_BELOW
    return VideoIndex(
        manifest={"id": "none", "settings": _SETTINGS.model_dump()},
        items=Items(pa.table({"video_id": [str(number) for number in range(len(embeddings))]}), None),
        vectors=vectors,
        projection=projection,
        ann=Ann.build(vectors, settings=_SETTINGS),
        embeddings=unit_length(embeddings).astype(np.float16) if has_embeddings else None,
    )


# --- a class that is new


class Fold(NamedTuple):
    """The scored clips of one block: which of them are of the new class, and how strange each is."""

    is_new: npt.NDArray[np.bool_]
    strangeness: Strangeness


def strangeness_of(catalogue: Floats, clips: Floats) -> dict[str, npt.NDArray[np.float64]]:
    """Return how strange clips ``[Q, D]`` are by each method."""
    novelty = Novelty.fit(index_of(catalogue), num_neighbors=1, max_scores=10_000)
    scores = novelty.score(clips)
    ellipsoid, _ = fit_ellipsoid(unit_length(catalogue), 0)
    found = {
        OURS: -novelty.calibration.p_values(scores) + 1e-3 * scores.distances,  # the order in the report
        "nearest neighbor": 1 - (unit_length(clips) @ unit_length(catalogue).T).max(axis=1).astype(np.float64),
        "Mahalanobis": ellipsoid.lengths(unit_length(clips)),
    }
    if (forest := isolation_forest()) is not None:
        found[FOREST] = -forest.fit(catalogue).score_samples(clips)
    return found


def isolation_forest() -> Any:  # noqa: ANN401 - scikit-learn need not be installed
    """Return an isolation forest, or None without scikit-learn."""
    try:
        from sklearn.ensemble import IsolationForest  # noqa: PLC0415
    except ImportError:
        return None
    return IsolationForest(n_estimators=300, random_state=0)


def drone_folds(frames: learning.Frames) -> dict[str, list[Fold]]:
    """Return the folds of each class in the role of the new one."""
    ids = sorted(frames)
    clips = np.stack([mean_embedding(frames[video_id]) for video_id in ids])
    classes, blocks = classes_and_blocks(ids)
    folds: dict[str, list[Fold]] = {}
    for name, block in itertools.product(sorted(set(classes)), range(BLOCKS)):
        is_tested, is_new = blocks == block, classes == name
        found = strangeness_of(clips[~is_new & ~is_tested], clips[is_tested])
        folds.setdefault(name, []).append(Fold(is_new[is_tested], found))
    return folds


def classes_and_blocks(ids: list[str]) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """Return the class of each clip (its folder), and its block of consecutive clips of the class."""
    classes = np.array([video_id.partition("/")[0] for video_id in ids])
    blocks = np.empty(len(ids), np.int64)
    for name in np.unique(classes):
        members = np.flatnonzero(classes == name)
        blocks[members] = np.arange(len(members)) * BLOCKS // len(members)
    return classes, blocks


def areas(folds: list[Fold], method: str) -> npt.NDArray[np.float64]:
    """Return the mean AUROC of the folds, and then that of each resample of their clips."""
    random = np.random.default_rng(0)
    found = []
    for fold in folds:
        scores = fold.strangeness[method]
        new, known = scores[fold.is_new], scores[~fold.is_new]
        wins = (new[:, None] > known) + 0.5 * (new[:, None] == known)
        left, right = (
            np.concatenate([np.ones((1, size)), random.multinomial(size, [1 / size] * size, NUM_RESAMPLES)])
            for size in wins.shape
        )
        found.append(np.einsum("ri,ij,rj->r", left, wins, right) / wins.size)
    return np.mean(found, axis=0)


def interval(values: npt.NDArray[np.float64], digits: int = 3, sign: str = "") -> str:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{values[0]:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def print_drone(options: argparse.Namespace, scratch: Path) -> None:
    embeddings = (options.keep or scratch) / f"emb-{options.drone.name}"
    learning.embed(options.drone, embeddings)
    frames = learning.read_frames(embeddings)
    folds = drone_folds(frames)
    everything = [fold for some in folds.values() for fold in some]
    methods = list(everything[0].strangeness)
    rows = [
        (name, str(len(some)), *(interval(areas(some, method)) for method in methods), _against_forest(some, methods))
        for name, some in [*folds.items(), ("all", everything)]
    ]
    print(f"\nAUROC: {len(frames)} clips, each class in turn is new\n")
    print_table(("new class", "folds", *methods, f"{OURS} - {FOREST}"), rows)
    if FOREST not in methods:
        print("\nscikit-learn is not installed: there is no isolation forest to compare with.")
    hits = list(spliced_hits(frames))
    error = 1.96 * np.std(hits) / np.sqrt(len(hits))
    print(
        f"\nStrangest moment among the foreign quarter of the frames: {np.mean(hits):.3f} ± {error:.3f}; chance: 0.250"
    )


def _against_forest(folds: list[Fold], methods: list[str]) -> str:
    return interval(areas(folds, OURS) - areas(folds, FOREST), sign="+") if FOREST in methods else ""


def spliced_hits(frames: learning.Frames) -> Iterator[bool]:
    """Yield whether the strangest frame of a clip is a foreign one, for each clip of each fold."""
    ids = sorted(frames)
    classes, blocks = classes_and_blocks(ids)
    clips = np.stack([mean_embedding(frames[video_id]) for video_id in ids])
    random = np.random.default_rng(0)
    for name, block in itertools.product(sorted(set(classes)), range(BLOCKS)):
        is_tested, is_new = blocks == block, classes == name
        novelty = Novelty.fit(index_of(clips[~is_new & ~is_tested]), num_neighbors=1, max_scores=10_000)
        foreign = np.flatnonzero(is_new & is_tested)
        for at in np.flatnonzero(~is_new & is_tested).tolist():
            own, other = frames[ids[at]], frames[ids[int(random.choice(foreign))]]
            count = len(own) // 4
            start = int(random.integers(len(own) - count + 1))
            spliced = own.copy()
            spliced[start : start + count] = other[:count]
            yield start <= int(np.nanargmax(novelty.frame_distances(spliced))) < start + count


# --- error rates


class Source:
    """A distribution of embeddings in clusters; ``strange`` videos are of other clusters."""

    def __init__(self, seed: int, *, dim: int) -> None:
        self._random = np.random.default_rng(seed)
        self._spread = np.arange(1, dim + 1) ** -0.7
        self._centres = self._random.standard_normal((16, dim)) * self._spread * 1.5

    def draw(self, count: int, *, strange: bool = False) -> Floats:
        which = self._random.integers(8, size=count) + 8 * strange
        noise = self._random.standard_normal((count, len(self._spread))) * self._spread
        return (self._centres[which] + noise + 0.5).astype(np.float32)


def print_rates(options: argparse.Namespace, _: Path) -> None:
    draws = 10 if options.quick else 200
    rows = [
        _rates_row(1_000, draws=draws, dim=128, num_known=180, num_strange=20),
        _rates_row(200, draws=draws, dim=128, num_known=9, num_strange=3),
    ]
    if not options.quick:
        rows.append(_rates_row(EMBEDDINGS_BELOW, draws=10, dim=512, num_known=450, num_strange=50))
    print(f"\nError rates: generated catalogues, marked at a false-discovery rate of {RATE}\n")
    heads = ("catalogue", "draws", "known + strange", "false among marked", "strange found", "known marked at all")
    print_table((*heads, "known with p ≤ .05, .1, .2, .5", "largest gap above uniform"), rows)


def _rates_row(size: int, *, draws: int, dim: int, num_known: int, num_strange: int) -> tuple[str, ...]:
    false, found, any_false, known_p = [], [], [], []
    for seed in range(draws):
        source = Source(seed, dim=dim)
        novelty = Novelty.fit(index_of(source.draw(size)), num_neighbors=1, max_scores=_MAX_SCORES)
        new = np.concatenate([source.draw(num_known), source.draw(num_strange, strange=True)])
        p_values = novelty.calibration.p_values(novelty.score(new))
        marked = q_values(p_values) <= RATE
        false.append(marked[:num_known].sum() / max(1, marked.sum()))
        found.append(marked[num_known:].mean())
        any_false.append(marked[:num_known].any())
        known_p.append(p_values[:num_known])
    error = 1.96 * np.std(false) / np.sqrt(draws)
    p = np.concatenate(known_p)
    levels = ", ".join(f"{np.mean(p <= level):.3f}" for level in (0.05, 0.1, 0.2, 0.5))
    grid = np.arange(1, 100) / 100
    gap = max(float(np.mean(p <= level) - level) for level in grid)
    known_and_strange = f"{num_known} + {num_strange}"
    rates = f"{np.mean(false):.3f} ± {error:.3f}", f"{np.mean(found):.3f}", f"{np.mean(any_false):.3f}"
    return (f"{size:,}", str(draws), known_and_strange, *rates, levels, f"{gap:+.3f}")


def print_drift(options: argparse.Namespace, _: Path) -> None:
    streams = 100 if options.quick else 1_000
    rows = []
    for size, shift in itertools.product((100, 1_000, 10_000), (0.5, 1.0, 2.0)):
        quiet = [_alarm(size, seed, shift=0.0) for seed in range(streams)]
        found = [_alarm(size, seed, shift=shift) for seed in range(streams)]
        delays = [alarm - _SHIFT_AT for alarm, _ in found if alarm is not None and alarm >= _SHIFT_AT]
        off = [abs(since - _SHIFT_AT) for alarm, since in found if since is not None and alarm >= _SHIFT_AT]
        early = np.mean([alarm is not None for alarm, _ in quiet])
        noticed = f"{len(delays) / streams:.3f}"
        delay = f"{np.median(delays) + 1:.0f}, {np.quantile(delays, 0.9) + 1:.0f}" if delays else ""
        rows.append((f"{size:,}", f"{early:.3f}", f"{shift:g}", noticed, delay, f"{np.median(off):.0f}" if off else ""))
    print(f"\nDrift: {streams} streams of {_STREAM} videos; the shift begins at video {_SHIFT_AT}\n")
    heads = ("calibration", "false alarm", "shift, sd", "noticed", "delay, median and p90", "error of since, median")
    print_table(heads, rows)


_STREAM, _SHIFT_AT = 1_000, 500


def _alarm(num_scores: int, seed: int, *, shift: float) -> tuple[int | None, int | None]:
    random = np.random.default_rng(seed)
    calibration = np.sort(random.standard_normal(num_scores))
    stream = random.standard_normal(_STREAM)
    stream[_SHIFT_AT:] += shift
    p_values = (1 + num_scores - np.searchsorted(calibration, stream, side="left")) / (num_scores + 1)
    drift = find_drift(p_values, num_scores=num_scores, false_alarm_rate=RATE)
    return drift.alarm, drift.since


def print_load(options: argparse.Namespace, _: Path) -> None:
    sizes = (1_000, EMBEDDINGS_BELOW - 1, *(() if options.quick else (100_000,)))
    rows = []
    for size in sizes:
        source = Source(0, dim=512)
        index = index_of(source.draw(size))
        new = source.draw(100)
        for max_scores in (1_000, 10_000):
            seconds, novelty = _timed(partial(Novelty.fit, index, num_neighbors=1, max_scores=max_scores))
            each, scores = _timed(partial(novelty.score, new))
            last, _ = _timed(partial(novelty.calibration.p_values, scores))
            of_frames, _ = _timed(partial(novelty.frame_distances, new[:16]))
            milliseconds = f"{10 * (each + last):.2f}", f"{1_000 * of_frames:.2f}"
            rows.append((f"{size:,}", f"{len(novelty.calibration):,}", f"{seconds:.2f}", *milliseconds))
    print("\nTime: 512 numbers per embedding\n")
    print_table(("catalogue", "calibration", "calibrate, s", "score a video, ms", "score 16 frames, ms"), rows)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = make_parser(__doc__, quick="few draws and streams: too few to be accurate")
    parser.add_argument("--drone", type=Path, help="a folder with CLASS/CLIP.mp4")
    parser.add_argument("--parts", nargs="+", choices=_PARTS)
    parser.add_argument("--keep", type=Path, help="keeps embeddings for the next run")
    options = parser.parse_args()
    parts = options.parts or ([] if options.drone else list(_PARTS))
    print(describe_machine())
    with scratch_folder() as scratch:
        if options.drone:
            print_drone(options, scratch)
        for part in parts:
            {"rates": print_rates, "drift": print_drift, "load": print_load}[part](options, scratch)


if __name__ == "__main__":
    main()
