"""Evaluate recommendations on public sets of interactions, with every baseline.

    python benchmarks/ranker.py [--interactions FOLDER] [--ml-100k FOLDER] [--quick]
    python benchmarks/ranker.py --events 10000000 [--quick]

Each set becomes an index of own vectors and a history, for ``raypipe evaluate``; the table shows its rankers with the
metrics of publications on the set. A set whose files are missing is skipped with a sentence.

- Toys (Amazon, from the code of S3-Rec): leave one out. The vectors are a truncated SVD of the items' attributes.
- TikTok (from the code of DiffMM): the given split, unordered. The vectors are image features of the videos.
- MovieLens 100K: leave one out, and a split by time. The vectors are random: it has no content. The folder is
  ``recbole/dataset_example/ml-100k`` of the wheel of recbole 1.2.1.

With ``--events``, generated watch events are counted instead, in one process and on Ray.
"""

import argparse
import csv
import datetime as dt
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

import raypipe
from support import describe_machine, make_parser, print_table, scratch_folder
from support.watching import compare_counting, count_once

_SHARED = Path(__file__).parents[2] / "shared" / "assets" / "interactions"
_SVD_DIM = 128
_STORES = (4_000_000_000, 500_000_000)
PUBLISHED = {
    "Toys": "SASRec .0675/.0374, TIGER .0712/.0432, SASRec with sampled softmax .0970/.0580 (HR@10/NDCG@10)",
    "TikTok": "LightGCN .0653, BM3 .0957, DiffMM .1129 (recall@20)",
}


@dataclass(frozen=True)
class InteractionSet:
    """A public set: the vectors of its items, its events, and the settings of its evaluation."""

    name: str
    ids: Sequence[str]
    vectors: npt.NDArray[np.floating]
    history: pa.Table
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, str] = ("hr@10", "ndcg@10")


def toys(folder: Path) -> InteractionSet:
    """Read Toys; an item's attributes are a multi-hot vector, reduced by a truncated SVD."""
    lines = [line.split() for line in (folder / "Toys_and_Games.txt").read_text().splitlines()]
    ids = sorted({item for _, *items in lines for item in items}, key=int)
    attributes: dict[str, list[int]] = json.loads((folder / "Toys_and_Games_item2attributes.json").read_text())
    names = {name: at for at, name in enumerate(sorted({name for item in ids for name in attributes.get(item, [])}))}
    hot = np.zeros((len(ids), len(names)), np.float32)
    for row, item in zip(hot, ids, strict=True):
        row[[names[name] for name in attributes.get(item, [])]] = 1
    values, directions = np.linalg.eigh(hot.T @ hot)
    vectors = hot @ directions[:, np.argsort(-values)[:_SVD_DIM]]
    history = pa.table({"user_id": [user for user, *_ in lines], "history": [items for _, *items in lines]})
    return InteractionSet("Toys", ids, vectors, history, {"protocol": "leave_one_out"})


def tiktok(folder: Path) -> InteractionSet:
    """Read TikTok: three files of pairs, and an image feature of each video."""
    rows = [
        (user, item, part)
        for name, part in (("trn", "train"), ("val", "validation"), ("tst", "test"))
        for user, item in list(csv.reader((folder / f"{name}.csv").open()))[1:]
    ]
    users, items, parts = zip(*rows, strict=True)
    vectors = np.load(folder / "image_feat.npy").astype(np.float32)
    history = pa.table({"user_id": users, "video_id": items, "split": parts})
    settings = {"protocol": "given", "history_ordered": False, "k": [10, 20, 50]}
    ids = [str(number) for number in range(len(vectors))]
    return InteractionSet("TikTok", ids, vectors, history, settings, ("recall@20", "ndcg@20"))


def movielens(folder: Path, protocol: str) -> InteractionSet:
    """Read MovieLens 100K; without content, the vectors are random."""
    with (folder / "ml-100k.inter").open() as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    users, items, _, seconds = zip(*rows, strict=True)
    times = [dt.datetime.fromtimestamp(float(moment), dt.UTC) for moment in seconds]
    ids = sorted(set(items), key=int)
    vectors = np.random.default_rng(0).standard_normal((len(ids), 64))
    history = pa.table({"user_id": users, "video_id": items, "watched_at": times})
    return InteractionSet(f"ML-100K, {protocol}", ids, vectors, history, {"protocol": protocol})


def evaluate(data: InteractionSet, work: Path, *, max_users: int | None) -> None:
    """Index the vectors, evaluate the history, and print the table."""
    work.mkdir()
    kind = pa.list_(pa.float32())
    pq.write_table(
        pa.table({"video_id": data.ids, "embedding": pa.array(list(data.vectors), kind)}), work / "v.parquet"
    )
    pq.write_table(data.history, work / "history.parquet")
    start = time.monotonic()
    raypipe.index(work / "v.parquet", work / "index", console=Console(quiet=True))
    indexed = time.monotonic()
    result = raypipe.evaluate(
        work / "index", work / "history.parquet", work / "out", max_users=max_users, **data.settings
    )
    seconds = time.monotonic() - indexed
    found, first = result.record, data.metrics[0]
    ordered = sorted(found.rankers, key=lambda name: -found.rankers[name][first].value)
    k = found.metric.partition("@")[2]
    print(
        f"\n{data.name}: {found.facts['num_users']:,} users, {len(data.ids):,} videos; {PUBLISHED.get(data.name, '')}"
    )
    print_table(
        ["ranker", *data.metrics, "95 % interval", f"coverage@{k}"],
        [
            [
                name,
                *(f"{found.rankers[name][metric].value:.4f}" for metric in data.metrics),
                f"{found.rankers[name][first].low:.4f} to {found.rankers[name][first].high:.4f}",
                f"{found.rankers[name][f'coverage@{k}'].value:.3f}",
            ]
            for name in ordered
        ],
    )
    print(f"{found.verdict} Index: {indexed - start:.0f} s; evaluation: {seconds:.0f} s.")


def main() -> int:
    """Evaluate the sets that are there."""
    parser = make_parser(__doc__, quick="evaluate 1,000 users of each set")
    parser.add_argument("--interactions", type=Path, default=_SHARED, help="the folder with Toys and TikTok")
    parser.add_argument("--ml-100k", type=Path, help="the folder with ml-100k.inter")
    parser.add_argument("--events", type=int, help="count this number of generated events instead")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store-bytes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count is not None:
        count_once(options.count, options.store_bytes)
        return 0
    print(describe_machine())
    if options.events is not None:
        num_events = min(options.events, 1_000_000) if options.quick else options.events
        with scratch_folder() as work:
            compare_counting(num_events, work, script=__file__, stores=_STORES)
        return 0
    sets = [
        ("Toys", options.interactions / "Toys_and_Games.txt", partial(toys, options.interactions)),
        ("TikTok", options.interactions / "tiktok", partial(tiktok, options.interactions / "tiktok")),
    ]
    if options.ml_100k is None:
        print("ML-100K is skipped: give its folder with --ml-100k.")
    else:
        sets += [
            (f"ML-100K, {protocol}", options.ml_100k, partial(movielens, options.ml_100k, protocol))
            for protocol in ("leave_one_out", "time")
        ]
    with scratch_folder() as work:
        for number, (name, needed, read) in enumerate(sets):
            if needed.exists():
                evaluate(read(), work / str(number), max_users=1_000 if options.quick else None)
            else:
                print(f"{name} is skipped: there is no {needed}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
