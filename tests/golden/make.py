"""Write a folder of golden files: small outputs of every job, made by this version of raypipe.

``python -m golden.make`` in ``tests/`` writes ``tests/golden/vVERSION/``, and refuses to replace one. Commit the folder
with the release. ``tests/test_golden.py`` reads every such folder with the current code.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml

import raypipe
from raypipe import schema
from raypipe.dataset.read import read_embeddings, read_rows
from raypipe.dataset.verify import Verification
from raypipe.demo.s3_server import local_s3
from raypipe.jobs.classify.verify import verify as verify_predictions
from raypipe.jobs.embed.verify import verify as verify_embeddings
from raypipe.jobs.train.checkpoints import Checkpoints
from raypipe.models.classifier_files import build_classifier, read_model
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder
from support import TESTS
from support.videos import make_video

EXPECTED = "expected.json"
PARTS = ("embed", "predictions", "model", "checkpoint", "index")
CATALOGUE = """video_id,title,category,published_at,popularity
cat/0.mp4,Cat zero,pets,2024-05-01,10
cat/1.mp4,Cat one,pets,2024-05-02,20
cat/2.mp4,Katze zwei,pets,2024-05-03,30
cat/3.mp4,Cat three,wild,2024-05-04,40
dog/0.mp4,Dog zero,pets,2024-05-05,50
dog/1.mp4,Dog one,wild,2024-05-06,60
dog/2.mp4,犬,wild,2024-05-07,
"""
QUERIES: Mapping[str, Mapping[str, Any]] = {
    "nearest": {"history": ("dog/0.mp4",), "top_k": 3},
    "filtered": {"history": ("cat/0.mp4", "cat/1.mp4"), "top_k": 3, "filters": {"category": "wild"}},
    "popular": {"top_k": 2},
}
_SHOWN_NUMBERS = 4
_LEFT_OUT = ("report.html", "/tensorboard/")  # large files for people, which no job reads


def jobs(place: str) -> dict[str, dict[str, Any]]:
    """Return the configuration of each job, in the order in which they run."""
    return {
        "embed": {
            "input": f"{place}/videos/",
            "output": f"{place}/embed",
            "sampling": {"num_frames": 2},
            "backbone": {"name": "resnet18", "weights": "random"},
            "shard": {"max_videos": 4},
            "resources": {"concurrency": 1},
        },
        "train": {
            "embeddings": f"{place}/embed",
            "output": f"{place}/model",
            "labels_from": "folder",
            "model": {"gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 4}, "max_frames": 8},
            "data": {"validation_fraction": 0.25},
            "optimizer": {
                "epochs": 2,
                "batch_size": 2,
                "early_stop_epochs": 0,
                "select_by": "loss",
                "learning_rate": 0.02,
            },
            "checkpoint": {"keep": 1},
            "resources": {"use_gpu": False},
        },
        "classify": {
            "embeddings": f"{place}/embed",
            "model": f"{place}/model",
            "output": f"{place}/predictions",
            "frame_scores": True,
            "resources": {"concurrency": 1},
        },
        "index": {
            "embeddings": f"{place}/embed",
            "output": f"{place}/index",
            "catalogue": f"{place}/catalogue.csv",
            "labels": f"{place}/predictions",
            "append": True,
            "index": {"dim": 8},
        },
    }


def put_first_videos(videos: Folder) -> None:
    """Put six good videos, a video with a damaged end, and a file that is not a video."""
    for number in range(3):
        assert videos.put_new(f"cat/{number}.mp4", make_video(shade=20 + 7 * number))
        assert videos.put_new(f"dog/{number}.mp4", make_video(shade=140 + 13 * number))
    assert videos.put_new("cat/damaged.mp4", _damage_end(make_video(shade=5)))
    assert videos.put_new("dog/no video.mp4", b"This is text. " * 8)


def put_later_videos(videos: Folder) -> None:
    """Put a new video and replace the content of an old one: a second plan, whose rows replace those of the first."""
    assert videos.put_new("cat/3.mp4", make_video(shade=77))
    videos.put("cat/0.mp4", make_video(shade=33))


def _damage_end(mp4: bytes) -> bytes:
    """Overwrite the last quarter of the frames with zeros."""
    start = mp4.index(b"mdat") + 4
    stop = start - 8 + struct.unpack(">I", mp4[start - 8 : start - 4])[0]
    damaged = start + (stop - start) * 3 // 4
    return mp4[:damaged] + bytes(stop - damaged) + mp4[stop:]


def run(job: str, config: Mapping[str, Any], work: Path) -> None:
    """Run one command in ``work``, with its configuration in ``JOB.yaml`` there."""
    (work / f"{job}.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    subprocess.run([sys.executable, "-m", "raypipe", job, f"{job}.yaml"], cwd=work, check=True)


def make(place: Folder, work: Path) -> None:
    """Run every job on the storage that the environment configures."""
    configs = jobs(place.uri)
    place.put("catalogue.csv", CATALOGUE.encode())
    videos = Folder(place.child("videos"))
    put_first_videos(videos)
    run("embed", configs["embed"], work)
    put_later_videos(videos)
    for job, config in configs.items():
        run(job, config, work)
        place.put(f"jobs/{job}.yaml", (work / f"{job}.yaml").read_bytes())


def read(name: str, place: Folder, cache: Path) -> dict[str, Any]:
    """Return what readers must find in one part of a golden folder; the parts are in ``PARTS``."""
    output = Folder(place.child("model" if name == "checkpoint" else name))
    match name:
        case "embed":
            return found_in_embed(output)
        case "predictions":
            return found_in_predictions(output)
        case "model":
            return found_in_model(output, Folder(place.child("embed")))
        case "checkpoint":
            return found_in_checkpoint(output)
        case "index":
            return found_in_index(output, cache)
    msg = f"{name!r} is not one of {', '.join(PARTS)}."
    raise ValueError(msg)


def found_in_embed(output: Folder) -> dict[str, Any]:
    """Return the rows of an embed output by video; vectors become a digest and their first numbers."""
    rows = {row[schema.VIDEO_ID]: row for table in read_embeddings(output) for row in table.to_pylist()}
    return {"rows": {video_id: _embed_row(rows[video_id]) for video_id in sorted(rows)}}


def _embed_row(row: Mapping[str, Any]) -> dict[str, Any]:
    names = (schema.VIDEO_URI, schema.ETAG, schema.STATUS, schema.GENERATION, schema.SHARD, schema.SIZE_BYTES)
    frames = np.array(row[schema.FRAME_EMBEDDINGS], np.float16)
    thumbnail, embedding = row[schema.THUMBNAIL], row[schema.EMBEDDING]
    return {
        **{name: row[name] for name in names if name in row},
        "has_error": bool(row[schema.ERROR]),
        "frame_pts_seconds": row[schema.FRAME_PTS_SECONDS],
        "frames_sha256": sha256(frames.tobytes()).hexdigest(),
        "embedding": None if embedding is None else embedding[:_SHOWN_NUMBERS],
        "thumbnail_sha256": None if thumbnail is None else sha256(thumbnail).hexdigest(),
    }


def found_in_predictions(output: Folder) -> dict[str, Any]:
    """Return the rows of a classify output by video."""
    names = (schema.STATUS, schema.GENERATION, schema.ETAG, schema.LABEL, schema.LABELS, schema.TOP_LABELS)
    numbers = (schema.SCORE, schema.TOP_SCORES, schema.FRAME_SCORES)
    rows = {row[schema.VIDEO_ID]: row for table in read_rows(output) for row in table.to_pylist()}
    return {"rows": {video_id: {name: rows[video_id][name] for name in names + numbers} for video_id in sorted(rows)}}


def frame_vectors(embed: Folder) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    """Yield the id and the vectors [T, D] of each video that has frames, sorted by id."""
    rows = [row for table in read_embeddings(embed) for row in table.to_pylist()]
    for row in sorted(rows, key=lambda row: str(row[schema.VIDEO_ID])):
        if row[schema.STATUS] in HAS_FRAMES:
            yield row[schema.VIDEO_ID], np.array(row[schema.FRAME_EMBEDDINGS], np.float16)


def found_in_model(output: Folder, embed: Folder) -> dict[str, Any]:
    """Return what the trained model predicts for each video."""
    files = read_model(output)
    model = build_classifier(files)
    ids, videos = zip(*frame_vectors(embed), strict=True)
    said = model.classify(list(videos)).probabilities
    return {
        "digest": files.digest,
        "label_names": list(model.config.label_names),
        "embedding_fingerprint": model.config.embedding_fingerprint,
        "probabilities": dict(zip(ids, said.tolist(), strict=True)),
    }


def found_in_checkpoint(output: Folder) -> dict[str, Any]:
    """Return the state of the newest checkpoint, and the sum of each of its tensors."""
    found = Checkpoints(output).latest()
    assert found is not None
    names = ("epoch", "step", "ended", "best_epoch", "best_checkpoint", "num_samples", "history")
    return {
        "number": found.number,
        "state": {name: found.state[name] for name in names},
        "seen": found.seen.tolist(),
        "model": {name: _total(tensor) for name, tensor in sorted(found.model.items())},
        "optimizer": {name: _total(tensor) for name, tensor in sorted(found.optimizer.items())},
    }


def _total(tensor: torch.Tensor) -> float:
    return float(tensor.double().sum())


def open_index(output: Folder, cache: Path) -> VideoIndex:
    """Open the current version like ``raypipe serve``."""
    versions = Versions(output)
    version = versions.require_current()
    return VideoIndex.load(versions.fetch(version, cache), versions.read_manifest(version))


def found_in_index(output: Folder, cache: Path) -> dict[str, Any]:
    """Return the items of the current version and its answers to ``QUERIES``."""
    index = open_index(output, cache)
    names = (schema.VIDEO_URI, schema.GENERATION, schema.LABEL, "title", "category", "popularity")
    rows = {row["video_id"]: row for row in map(index.items.row, range(len(index.items)))}
    thumbnails = {index.items.video_id(at): index.items.thumbnail(at) for at in range(len(index.items))}
    return {
        "version": index.version,
        "kind": index.manifest["kind"],
        "items": {
            video_id: {
                **{name: rows[video_id][name] for name in names},
                "thumbnail_sha256": sha256(thumbnails[video_id] or b"").hexdigest(),
            }
            for video_id in sorted(rows)
        },
        "answers": {name: _answer(index, Query(**query)) for name, query in QUERIES.items()},
    }


def _answer(index: VideoIndex, query: Query) -> list[list[Any]]:
    return [[result.video_id, result.score] for result in index.recommend(query).results]


def verified(found: Verification) -> dict[str, Any]:
    """Return what ``raypipe verify`` counts."""
    return {
        "num_plans": found.num_plans,
        "num_files": found.num_files,
        "num_rows": found.num_rows,
        "num_frames": found.num_frames,
        "statuses": dict(sorted(found.statuses.items())),
    }


def download(place: Folder, target: Path) -> None:
    """Copy every object below a URI into a folder, except the files that no job reads."""
    for stored in place.list():
        if not f"/{stored.key}".endswith(_LEFT_OUT[0]) and _LEFT_OUT[1] not in f"/{stored.key}":
            path = target / stored.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(place.read(stored.key))


def main() -> None:
    """Make the golden folder of this version."""
    import ray  # noqa: PLC0415 - tests import this module for its readers

    version = f"v{raypipe.__version__}"
    target = TESTS / "golden" / version
    if (target / EXPECTED).exists():
        sys.exit(f"{target} exists. Golden files of a released version never change.")
    with tempfile.TemporaryDirectory() as scratch, local_s3(Path(scratch, "s3")) as server:
        work = Path(scratch, "work")
        work.mkdir()
        os.environ |= server.environment()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        place = Folder(f"s3://videos/golden/{version}")
        make(place, work)
        ray.shutdown()
        found = {name: read(name, place, Path(scratch, "cache")) for name in PARTS}
        for job, verify in (("embed", verify_embeddings), ("predictions", verify_predictions)):
            checked = verify(Folder(place.child(job)))
            assert not checked.violations, checked.violations
            found[job]["verified"] = verified(checked)
        download(place, target)
    text = json.dumps({"place": place.uri, **found}, indent=1, ensure_ascii=False, allow_nan=False)
    (target / EXPECTED).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
