"""``raypipe suggest`` on Ray: both lists, their files, and a command without labels."""

import csv
import io
import json

import pytest

import raypipe
from raypipe.storage import Folder
from support.train_runs import LABELS, embed_all, video_ids

pytestmark = pytest.mark.usefixtures("ray_address")
IDS = video_ids(48)


def rows_of(output: Folder, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output.read(name).decode(), newline="")))


def test_both_lists_with_few_labels_and_without_any(bucket: str) -> None:
    embeddings = embed_all(Folder(f"{bucket}/embeddings"), IDS)
    wrong, labelled, test = IDS[8], IDS[:36], IDS[36:40]
    labels = {video_id: video_id.partition("/")[0] for video_id in labelled} | {wrong: "horse"}
    lines = [f"{video_id},{label},train" for video_id, label in labels.items()]
    lines += [f"{video_id},cat,test" for video_id in test]
    Folder(bucket).put("labels.csv", "\n".join(["video_id,label,split", *lines]).encode())

    result = raypipe.suggest(embeddings.uri, f"{bucket}/labels.csv", f"{bucket}/found", num_videos=5)
    output = Folder(f"{bucket}/found")
    listed = rows_of(output, "to_label.csv")
    assert len(listed) == result.to_label == 5
    assert {row["video_id"] for row in listed} <= set(IDS[40:])
    assert {row["label_1"] for row in listed} <= set(LABELS)
    doubts = rows_of(output, "check_labels.csv")
    assert (doubts[0]["video_id"], doubts[0]["label"], doubts[0]["suggested_label"]) == (wrong, "horse", "cat")
    assert {row["video_id"] for row in doubts} <= set(labelled)
    summary = json.loads(output.read("summary.json"))
    assert (summary["num_labelled"], summary["num_unlabelled"], summary["num_test"]) == (36, 8, 4)
    assert b"<img" in output.read("report.html")

    cold = raypipe.suggest(embeddings.uri, output=f"{bucket}/cold", num_videos=12)
    assert (cold.to_label, cold.to_check) == (12, 0)
    chosen = [row["video_id"] for row in rows_of(Folder(f"{bucket}/cold"), "to_label.csv")]
    assert {video_id.partition("/")[0] for video_id in chosen} == set(LABELS)
