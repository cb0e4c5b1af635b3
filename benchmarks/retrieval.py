"""Measure the speed of one core searching an index, with and without filters, and its recall against exact search.

    python benchmarks/retrieval.py [--videos 1000000] [--dim 256] [--spread 1.5] [--keep FOLDER] [--quick]

The vectors are synthetic: clusters of about 200 vectors, some far larger than others; every hundredth vector is nearly
the same as the one before it. ``--spread`` is the distance of vectors from the centre of their cluster, relative to the
centre's length; larger is harder. Half of the queries are vectors of the index, half are the mean of two to five. Every
query is searched alone and in one thread. QPS are per second of that thread's CPU time, so that other work on the
machine hardly matters. The filters keep vectors at random or whole clusters.

Plain faiss is the same faiss index (IndexIVFScalarQuantizer, 8 bits) with an IDSelectorBitmap and the least nprobe that
reaches the target recall. Blocks of 100 queries alternate between both searches.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from raypipe.config import IndexSettings
from raypipe.search.ann import Ann
from raypipe.search.build import duplicate_groups
from raypipe.search.filters import Eligible
from raypipe.search.trials import trial_queries
from raypipe.search.vectors import neighbors
from support import describe_machine, make_parser, print_table, scratch_folder, unit_rows
from support.processes import Stopwatch

TARGET = 0.95
ROWS = 50_000
IN_CLUSTER = 200
SEED = 7

BLOCK = 100  # queries

Vectors = npt.NDArray[np.float16]
Positions = npt.NDArray[np.int64]
Search = Callable[[npt.NDArray[np.float32]], Positions]  # from a query to the positions of its neighbors


def make_vectors(path: Path, count: int, *, dim: int, spread: float) -> tuple[Vectors, Positions]:
    """Return clustered vectors of length one and the cluster of each, from files that are written if missing."""
    clusters = path.with_suffix(".clusters.npy")
    if not clusters.exists():
        random = np.random.default_rng(SEED)
        centres = unit_rows(random.standard_normal((max(4, count // IN_CLUSTER), dim), dtype=np.float32))
        crowds = 1 / np.sqrt(np.arange(1, len(centres) + 1))
        written = np.lib.format.open_memmap(path, "w+", np.float16, (count, dim))
        cluster_of = np.empty(count, np.int64)
        for start in range(0, count, ROWS):
            rows = min(ROWS, count - start)
            chosen = random.choice(len(centres), rows, p=crowds / crowds.sum())
            distances = random.uniform(0.5, 1.5, (rows, 1)).astype(np.float32) * np.float32(spread / np.sqrt(dim))
            block = unit_rows(centres[chosen] + distances * random.standard_normal((rows, dim), dtype=np.float32))
            block[99::100] = unit_rows(block[98:-1:100] + 0.003 * random.standard_normal((rows // 100, dim)))
            chosen[99::100] = chosen[98:-1:100]
            written[start : start + rows], cluster_of[start : start + rows] = block, chosen
        written.flush()
        np.save(clusters, cluster_of)
    vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors, np.load(clusters)


def measure(searches: list[Search], queries: npt.NDArray[np.float32], truth: Positions) -> list[list[float]]:
    """Return recall@10, queries per second of CPU time, and the p99 of the wall time in milliseconds of each search."""
    hits = np.zeros(len(searches))
    cpu_seconds = np.zeros(len(searches))
    wall_seconds: list[list[float]] = [[] for _ in searches]
    for start in range(0, len(queries), BLOCK):
        for number, search in enumerate(searches):
            for query in queries[:10]:
                search(query)
            some = slice(start, start + BLOCK)
            found, watch = [], Stopwatch()
            for query in queries[some]:
                began = time.perf_counter()
                found.append(search(query))
                wall_seconds[number].append(time.perf_counter() - began)
            cpu_seconds[number] += watch.read().cpu
            hits[number] += sum(np.isin(one, other).sum() for one, other in zip(found, truth[some], strict=True))
    p99 = [1000 * float(np.quantile(seconds, 0.99)) for seconds in wall_seconds]
    return np.transpose([hits / truth.size, len(queries) / cpu_seconds, p99]).tolist()


def plain_search(index: faiss.IndexIVF, nprobe: int, eligible: Eligible | None) -> Search:
    selector = None if eligible is None else faiss.IDSelectorBitmap(eligible.bitmap)
    parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
    return lambda query: index.search(query[None], 10, params=parameters)[1][0]


def least_nprobe(recall: Callable[[int], float], *, nlist: int) -> int:
    """Return the least nprobe that reaches the target recall, to within 3 %."""
    low, high = 0, 1
    while high < nlist and recall(high) < TARGET:
        low, high = high, min(2 * high, nlist)
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= TARGET else (middle, high)
    return high


def selections(cluster_of: Positions) -> dict[str, Eligible | None]:
    """Return no filter, filters that keep a share of the vectors at random, and filters that keep whole clusters."""
    random = np.random.default_rng(SEED)
    found: dict[str, Eligible | None] = {"100 %": None}
    for share in (0.1, 0.01, 0.001):
        found[f"{100 * share:g} %"] = Eligible.of(random.random(len(cluster_of)) < share)
    clusters = random.permutation(cluster_of.max() + 1)
    for share in (0.1, 0.01):
        kept = np.isin(cluster_of, clusters[: math.ceil(share * len(clusters))])
        found[f"clusters, {100 * kept.mean():.1f} %"] = Eligible.of(kept)
    return found


def report(vectors: Vectors, cluster_of: Positions, options: argparse.Namespace) -> None:
    built, searched, missed = [], [], []
    queries = trial_queries(vectors, count=options.queries, seed=SEED)
    for compact in (False, True):
        settings = IndexSettings(compact=compact)
        watch = Stopwatch()
        ann = Ann.build(vectors, settings=settings)
        build_seconds = watch.read().wall
        watch = Stopwatch()
        groups = duplicate_groups(ann, vectors, cosine=settings.duplicate_cosine)
        group_seconds = watch.read().wall
        num_groups = len(np.unique(groups[groups >= 0]))
        with tempfile.NamedTemporaryFile() as file:
            ann.save(Path(file.name))
            bytes_per_vector = Path(file.name).stat().st_size / len(vectors)
            plain = faiss.read_index(file.name)
        sizes = (f"{ann.nlist:,}", f"{ann.recall_at_10:.3f}", f"{bytes_per_vector:.0f}")
        built.append((ann.kind, f"{build_seconds:.0f}", *sizes, f"{num_groups:,}", f"{group_seconds:.0f}"))
        for name, eligible in selections(cluster_of).items():
            rows = search_rows(ann, None if compact else plain, vectors, queries, eligible)
            searched += [
                (label, name, f"{recall:.3f}", f"{qps:,.0f}", f"{p99:.2f}") for label, recall, qps, p99 in rows
            ]
            if rows[0][1] < TARGET:
                missed.append(f"{ann.kind} at {name}")
    print(describe_machine())
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers, spread {options.spread}\n")
    print_table(("kind", "build s", "lists", "recall@10", "bytes/vector", "duplicate groups", "found in s"), built)
    print()
    print_table(("search", "eligible", "recall@10", "QPS per core", "p99 ms"), searched)
    print(f"\nThe target, recall@10 of {TARGET}, is {'MISSED: ' + ', '.join(missed) if missed else 'met'}.")


def search_rows(
    ann: Ann,
    plain: faiss.IndexIVF | None,
    vectors: Vectors,
    queries: npt.NDArray[np.float32],
    eligible: Eligible | None,
) -> list[tuple[str, float, float, float]]:
    """Return the name, recall, QPS and p99 of raypipe's search, and of plain faiss if given."""
    truth = neighbors(vectors, queries, top_k=10, positions=None if eligible is None else eligible.positions())
    names, searches = [ann.kind], [lambda query: ann.nearest(query, top_k=10, eligible=eligible)[1]]
    if plain is not None:

        def recall(nprobe: int) -> float:
            return measure([plain_search(plain, nprobe, eligible)], queries, truth)[0][0]

        nprobe = least_nprobe(recall, nlist=plain.nlist)
        names.append(f"plain faiss, nprobe {nprobe}")
        searches.append(plain_search(plain, nprobe, eligible))
    return [(name, *row) for name, row in zip(names, measure(searches, queries, truth), strict=True)]


def main() -> None:
    parser = make_parser(__doc__, quick="100,000 vectors, 100 queries")
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--spread", type=float, default=1.5)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--keep", type=Path, help="keeps the vectors for the next run")
    options = parser.parse_args()
    if options.quick:
        options.videos, options.queries = 100_000, 100
    with scratch_folder() as scratch:
        folder = options.keep or scratch
        folder.mkdir(parents=True, exist_ok=True)
        name = f"vectors-{options.videos}-{options.dim}-{options.spread}.npy"
        report(*make_vectors(folder / name, options.videos, dim=options.dim, spread=options.spread), options)


if __name__ == "__main__":
    main()
