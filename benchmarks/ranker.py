"""Train a ranker on public sets of interactions, and evaluate the recommendations against every baseline.

    python benchmarks/ranker.py [--interactions FOLDER] [--ml-100k FOLDER] [--seeds 3] [--quick]
    python benchmarks/ranker.py --sasrec
    python benchmarks/ranker.py --events 10000000 [--quick]

Each set becomes an index of own vectors and a history, for ``raypipe train``, ``index`` and ``evaluate``. The table
shows the rankers of the first seed, with the metrics of publications on the set; ``served`` is what the endpoint would
answer. A set whose files are missing is skipped with a sentence.

- Toys (Amazon, from the code of S3-Rec): leave one out. The vectors are a truncated SVD of the items' attributes.
- TikTok (from the code of DiffMM): the given split, unordered. The vectors are image features of the videos.
- MovieLens 100K: leave one out, and a split by time. The vectors are random: it has no content. The folder is
  ``recbole/dataset_example/ml-100k`` of the wheel of recbole 1.2.1.

With ``--sasrec``, the ranker is trained as SASRec (Kang and McAuley 2018) on Toys: IDs alone, two blocks, one negative.
The exit code is 1 if its HR@10 is more than 10 % below the published one. With ``--events``, generated watch events are
counted instead, in one process and on Ray.
"""

import argparse
import csv
import datetime as dt
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

import raypipe
from raypipe.config import RankingConfig
from raypipe.evaluation.baselines import Popular, Random
from raypipe.evaluation.compare import Evaluation, Ranker, compare
from raypipe.evaluation.protocols import Split
from raypipe.evaluation.rankers import Served, TowerAlone
from raypipe.models.next_video import NO_ID, NextVideoModel
from raypipe.search.index import VideoIndex
from raypipe.search.watch_events import Events
from support import describe_machine, make_parser, print_table, scratch_folder
from support.watching import compare_counting, count_once

_SHARED = Path(__file__).parents[2] / "shared" / "assets" / "interactions"
_SVD_DIM = 128
_STORES = (4_000_000_000, 500_000_000)
SASREC: dict[str, Any] = {
    "content": False,
    "loss": "bce",
    "n_layer": 2,
    "n_head": 1,
    "n_embd": 64,
    "dropout": 0.5,
    "id_dropout": 0.0,
    "min_events": 1,
}
SASREC_HR, SASREC_TOLERANCE, SASREC_K = 0.0675, 0.1, 10
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


def put_inputs(data: InteractionSet, work: Path) -> dict[str, Path]:
    """Write the vectors and the history, and return the folders of a run."""
    work.mkdir()
    vectors = pa.array(list(data.vectors), pa.list_(pa.float32()))
    pq.write_table(pa.table({"video_id": data.ids, "embedding": vectors}), work / "v.parquet")
    pq.write_table(data.history, work / "history.parquet")
    return {name: work / name for name in ("v.parquet", "history.parquet", "index", "ranker", "out")}


def learn(data: InteractionSet, places: Mapping[str, Path], *, seed: int, epochs: int) -> tuple[float, float]:
    """Train a ranker and put it into an index; return the seconds of both."""
    quiet, start = Console(quiet=True), time.monotonic()
    holdout = data.settings["protocol"]
    ordered = data.settings.get("history_ordered", True)
    raypipe.train(
        output=places["ranker"],
        objective="next_video",
        index=str(places["index"]),
        history=str(places["history.parquet"]),
        ranker={"holdout": holdout, "history_ordered": ordered},
        optimizer={"epochs": epochs},
        seed=seed,
        console=quiet,
    )
    trained = time.monotonic()
    raypipe.index(
        places["v.parquet"],
        places["index"],
        history=str(places["history.parquet"]),
        ranker=str(places["ranker"]),
        events={"ordered": ordered},
        console=quiet,
    )
    return trained - start, time.monotonic() - trained


def evaluate(data: InteractionSet, work: Path, *, max_users: int | None, seeds: int, epochs: int) -> None:
    """Train, index and evaluate with each seed, and print the table of the first seed and the mean of all."""
    first, served = data.metrics[0], []
    for seed in range(seeds):
        places = put_inputs(data, work / str(seed))
        raypipe.index(places["v.parquet"], places["index"], console=Console(quiet=True))
        training, indexing = learn(data, places, seed=seed, epochs=epochs)
        start = time.monotonic()
        settings = {**data.settings, "max_users": max_users, "controls": seed == 0, "seed": seed}
        found = raypipe.evaluate(places["index"], places["history.parquet"], places["out"], **settings).record
        seconds = time.monotonic() - start
        if seed == 0:
            _print_rankers(data, found)
        served.append({metric: found.rankers["served"][metric].value for metric in data.metrics})
        blend = json.loads((places["ranker"] / "model" / "blend.json").read_text())
        best = found.best_baseline[found.metric]
        difference = found.against[found.metric][best]
        print(
            f"Seed {seed}: {', '.join(f'{name} {value:.4f}' for name, value in served[-1].items())}; minus {best}: "
            f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] {found.metric}; "
            f"{blend['counts']}, weight {blend['weight']}; training {training:.0f} s, index {indexing:.0f} s, "
            f"evaluation {seconds:.0f} s"
        )
    means = {metric: sum(one[metric] for one in served) / len(served) for metric in data.metrics}
    print(f"Mean of {seeds} seeds, {first} first: {', '.join(f'{name} {value:.4f}' for name, value in means.items())}")


def _print_rankers(data: InteractionSet, found: Evaluation) -> None:
    first, k = data.metrics[0], found.metric.partition("@")[2]
    ordered = sorted(found.rankers, key=lambda name: -found.rankers[name][first].value)
    users, videos = f"{found.facts['num_users']:,} users", f"{len(data.ids):,} videos"
    print(f"\n{data.name}: {users}, {videos}; {PUBLISHED.get(data.name, '')}")
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
    print(found.verdict, *found.notes)


def evaluate_cold(data: InteractionSet, work: Path, *, epochs: int) -> None:
    """Hide a tenth of the videos from the training, and predict the users whose last video is one of them."""
    random = np.random.default_rng(0)
    hidden = {data.ids[at] for at in random.permutation(len(data.ids))[: len(data.ids) // 10].tolist()}
    whole: list[list[str]] = data.history["history"].to_pylist()
    seen = [[item for item in items if item not in hidden] for items in whole]
    history = pa.table({"user_id": data.history["user_id"], "history": pa.array(seen, pa.list_(pa.string()))})
    warm = replace(data, history=history)
    places = put_inputs(warm, work)
    raypipe.index(places["v.parquet"], places["index"], console=Console(quiet=True))
    learn(warm, places, seed=0, epochs=epochs)
    index = VideoIndex.open(places["index"])
    at = {video_id: index.items.position(video_id) or 0 for video_id in data.ids}
    known = Events.of_histories([[at[item] for item in items] for items in seen])
    is_cold = [items[-1] in hidden and len(rest) > 0 for items, rest in zip(whole, seen, strict=True)]
    targets = Events.of_histories([[at[items[-1]]] if cold else [] for items, cold in zip(whole, is_cold, strict=True)])
    split = Split(known, known, targets, np.flatnonzero(is_cold), {"protocol": "cold"})
    rankers: dict[str, Ranker] = {"served": Served(index, RankingConfig(top_k=200)), "random": Random(len(index))}
    if index.watched.tower is not None:
        rankers["tower"] = TowerAlone(index.watched.tower)
        rankers["popular"] = Popular(known, len(index))
    found = compare(split, rankers, num_items=len(index), ks=[10])
    print(f"\n{data.name}, cold: {len(hidden):,} hidden videos, {len(split.users):,} users whose last video is hidden")
    rows = [
        [name, f"{metrics['hr@10'].value:.4f}", f"{metrics['hr@10'].low:.4f} to {metrics['hr@10'].high:.4f}"]
        for name, metrics in found.rankers.items()
    ]
    print_table(["ranker", "hr@10", "95 % interval"], rows)
    print(f"Five times random: {50 / len(index):.4f}")


def reproduce_sasrec(data: InteractionSet, work: Path, *, epochs: int) -> bool:
    """Train at the settings of SASRec, and return whether HR@10 is at most 10 % below what others have published."""
    places, start = put_inputs(data, work), time.monotonic()
    raypipe.index(places["v.parquet"], places["index"], console=Console(quiet=True))
    raypipe.train(
        output=places["ranker"],
        objective="next_video",
        index=str(places["index"]),
        history=str(places["history.parquet"]),
        ranker=SASREC,
        optimizer={"epochs": epochs, "weight_decay": 0.0, "early_stop_epochs": 20},
        console=Console(quiet=True),
    )
    model = NextVideoModel.from_pretrained(places["ranker"] / "model").eval()
    names = pq.read_table(places["ranker"] / "model" / "videos.parquet")["video_id"].to_pylist()
    rows = {video_id: row for row, video_id in enumerate(names, start=1)}
    histories = [[rows[item] for item in items if item in rows] for items in data.history["history"].to_pylist()]
    hits, num_users = 0, 0
    with torch.no_grad():
        vectors = model.ids.weight
        for *known, target in (history for history in histories if len(history) > 2):  # noqa: PLR2004 - as in the protocol
            newest = torch.tensor(known[-model.config.max_events :])
            state = model.states(vectors[newest][None], torch.ones(1, len(newest), dtype=torch.long))[0, -1]
            scores = vectors @ state
            scores[[NO_ID, *known]] = -torch.inf
            hits += int((scores > scores[target]).sum() < SASREC_K)
            num_users += 1
    found = hits / num_users
    print(f"SASRec's settings on Toys: HR@10 {found:.4f}, published {SASREC_HR}; {time.monotonic() - start:.0f} s")
    return found / SASREC_HR >= 1 - SASREC_TOLERANCE


def main() -> int:
    """Evaluate the sets that are there."""
    parser = make_parser(__doc__, quick="train 5 epochs once, and evaluate 1,000 users of each set")
    parser.add_argument("--interactions", type=Path, default=_SHARED, help="the folder with Toys and TikTok")
    parser.add_argument("--ml-100k", type=Path, help="the folder with ml-100k.inter")
    parser.add_argument("--seeds", type=int, default=3, help="how often to train on each set")
    parser.add_argument("--sasrec", action="store_true", help="train at the settings of SASRec on Toys instead")
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
    if options.sasrec:
        with scratch_folder() as work:
            epochs = 2 if options.quick else 150
            return int(not reproduce_sasrec(toys(options.interactions), work / "0", epochs=epochs))
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
                data, folder, epochs = read(), work / str(number), 5 if options.quick else 60
                folder.mkdir()
                max_users, seeds = (1_000, 1) if options.quick else (None, options.seeds)
                evaluate(data, folder, max_users=max_users, seeds=seeds, epochs=epochs)
                if name == "Toys":
                    evaluate_cold(data, folder / "cold", epochs=epochs)
            else:
                print(f"{name} is skipped: there is no {needed}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
