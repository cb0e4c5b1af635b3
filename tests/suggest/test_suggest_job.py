"""``raypipe suggest`` on Ray: both lists, their files, and a command without labels."""

import csv
import io
import json
import secrets
from dataclasses import dataclass

import pytest

import raypipe
from raypipe.results import JobResult
from raypipe.storage import Folder
from support.train_runs import LABELS, embed_all, video_ids

IDS = video_ids(48)
WRONG, LABELLED, TEST = IDS[8], IDS[:36], IDS[36:40]


def rows_of(output: Folder, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output.read(name).decode(), newline="")))


@dataclass(frozen=True)
class Suggested:
    """What the command found with labels, one of them wrong, and without any."""

    labelled: JobResult
    labelled_output: Folder
    unlabelled: JobResult
    unlabelled_output: Folder


@pytest.fixture(scope="module")
def suggested(ray_address: str) -> Suggested:  # noqa: ARG001 - Ray must run
    bucket = f"s3://videos/{secrets.token_hex(8)}"
    embeddings = embed_all(Folder(f"{bucket}/embeddings"), IDS)
    labels = {video_id: video_id.partition("/")[0] for video_id in LABELLED} | {WRONG: "horse"}
    lines = [f"{video_id},{label},train" for video_id, label in labels.items()]
    lines += [f"{video_id},cat,test" for video_id in TEST]
    Folder(bucket).put("labels.csv", "\n".join(["video_id,label,split", *lines]).encode())
    found, cold = f"{bucket}/found", f"{bucket}/cold"
    return Suggested(
        labelled=raypipe.suggest(embeddings.uri, f"{bucket}/labels.csv", found, num_videos=5),
        labelled_output=Folder(found),
        unlabelled=raypipe.suggest(embeddings.uri, output=cold, num_videos=12),
        unlabelled_output=Folder(cold),
    )


def test_both_lists_with_few_labels(suggested: Suggested) -> None:
    result, output = suggested.labelled, suggested.labelled_output
    listed = rows_of(output, "to_label.csv")
    assert len(listed) == result.to_label == 5
    assert {row["video_id"] for row in listed} <= set(IDS[40:])
    assert {row["label_1"] for row in listed} <= set(LABELS)
    doubts = rows_of(output, "check_labels.csv")
    assert (doubts[0]["video_id"], doubts[0]["label"], doubts[0]["suggested_label"]) == (WRONG, "horse", "cat")
    assert {row["video_id"] for row in doubts} <= set(LABELLED)
    summary = json.loads(output.read("summary.json"))
    assert (summary["num_labelled"], summary["num_unlabelled"], summary["num_test"]) == (36, 8, 4)
    assert b"<img" in output.read("report.html")


def test_without_labels_every_class_is_listed(suggested: Suggested) -> None:
    assert (suggested.unlabelled.to_label, suggested.unlabelled.to_check) == (12, 0)
    chosen = [row["video_id"] for row in rows_of(suggested.unlabelled_output, "to_label.csv")]
    assert {video_id.partition("/")[0] for video_id in chosen} == set(LABELS)
