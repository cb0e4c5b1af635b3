"""Measure the speed of one core searching an index, with and without filters, and its recall against exact search.

    python benchmarks/retrieval.py [--videos 1000000] [--dim 256] [--spread 1.5] [--keep FOLDER] [--quick]

The vectors are synthetic: clusters of about 200 vectors, some far larger than others; every hundredth vector is nearly
the same as the one before it. ``--spread`` is the distance of vectors from the centre of their cluster, relative to the
centre's length; larger is harder. Half of the queries are vectors of the index, half are the mean of two to five. Every
query is searched alone and in one thread. QPS are per second of that thread's CPU time, so that other work on the
machine hardly matters.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raypipe.config import IndexSettings
from raypipe.search.ann import Ann, trial_queries
from raypipe.search.build import duplicate_groups
from raypipe.search.filters import Eligible
from raypipe.search.vectors import neighbors
from support import describe_machine, make_parser, print_table, scratch_folder, unit_rows
from support.processes import Stopwatch

TARGET = 0.95
ROWS = 50_000
IN_CLUSTER = 200
SEED = 7

Vectors = npt.NDArray[np.float16]


def make_vectors(path: Path, count: int, *, dim: int, spread: float) -> Vectors:
    """Return clustered vectors of length one from a file, which is written if it does not exist."""
    if not path.exists():
        random = np.random.default_rng(SEED)
        centres = unit_rows(random.standard_normal((max(4, count // IN_CLUSTER), dim), dtype=np.float32))
        crowds = 1 / np.sqrt(np.arange(1, len(centres) + 1))
        written = np.lib.format.open_memmap(path, "w+", np.float16, (count, dim))
        for start in range(0, count, ROWS):
            rows = min(ROWS, count - start)
            chosen = random.choice(len(centres), rows, p=crowds / crowds.sum())
            distances = random.uniform(0.5, 1.5, (rows, 1)).astype(np.float32) * np.float32(spread / np.sqrt(dim))
            block = unit_rows(centres[chosen] + distances * random.standard_normal((rows, dim), dtype=np.float32))
            block[99::100] = unit_rows(block[98:-1:100] + 0.003 * random.standard_normal((rows // 100, dim)))
            written[start : start + rows] = block
        written.flush()
    vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def measure(ann: Ann, vectors: Vectors, *, eligible: Eligible | None, num_queries: int) -> tuple[float, float, float]:
    """Return recall@10, queries per second of CPU time, and the p99 of the wall time in milliseconds."""
    queries = trial_queries(vectors, count=num_queries, seed=SEED)
    allowed = np.arange(len(vectors)) if eligible is None else eligible.positions()
    truth = allowed[neighbors(vectors if eligible is None else vectors[allowed], queries, top_k=10)]
    for query in queries[:50]:
        ann.search(query[None], top_k=10, eligible=eligible)
    found, seconds = [], []
    watch = Stopwatch()
    for query in queries:
        start = time.perf_counter()
        found.append(ann.search(query[None], top_k=10, eligible=eligible)[1][0])
        seconds.append(time.perf_counter() - start)
    cpu_seconds = watch.read().cpu
    recall = np.mean([np.isin(one, other).sum() for one, other in zip(found, truth, strict=True)]) / 10
    return float(recall), num_queries / cpu_seconds, 1000 * float(np.quantile(seconds, 0.99))


def selections(count: int) -> dict[str, Eligible | None]:
    """Return no filter, and filters that keep a tenth, a hundredth and a thousandth at random."""
    random = np.random.default_rng(SEED)
    found: dict[str, Eligible | None] = {"100 %": None}
    for part in (0.1, 0.01, 0.001):
        mask = random.random(count) < part
        found[f"{100 * part:g} %"] = Eligible.of(mask)
    return found


def report(vectors: Vectors, options: argparse.Namespace) -> None:
    built, searched, missed = [], [], []
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
        sizes = (f"{ann.nlist:,}", str(ann.nprobe), f"{bytes_per_vector:.0f}")
        built.append((ann.kind, f"{build_seconds:.0f}", *sizes, f"{num_groups:,}", f"{group_seconds:.0f}"))
        for name, eligible in selections(len(vectors)).items():
            recall, qps, p99 = measure(ann, vectors, eligible=eligible, num_queries=options.queries)
            searched.append((ann.kind, name, f"{recall:.3f}", f"{qps:,.0f}", f"{p99:.2f}"))
            if recall < TARGET:
                missed.append(f"{ann.kind} at {name}")
    print(describe_machine())
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers, spread {options.spread}\n")
    print_table(("kind", "build s", "lists", "nprobe", "bytes/vector", "duplicate groups", "found in s"), built)
    print()
    print_table(("kind", "eligible", "recall@10", "QPS per core", "p99 ms"), searched)
    print(f"\nThe target, recall@10 of {TARGET}, is {'MISSED: ' + ', '.join(missed) if missed else 'met'}.")


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
        report(make_vectors(folder / name, options.videos, dim=options.dim, spread=options.spread), options)


if __name__ == "__main__":
    main()
