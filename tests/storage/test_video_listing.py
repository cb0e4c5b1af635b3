import pytest

from raypipe.errors import ConfigError, StorageError
from raypipe.storage import Folder, Listed, list_videos
from support.folders import fill


def videos(uri: str, exclude_under: str = "") -> list[str]:
    return sorted(stored.key for stored in list_videos(uri, exclude_under=exclude_under))


def test_videos_of_a_folder(folder: Folder) -> None:
    fill(folder, "a.mp4", "b/c.MOV", "b/no_extension", "a.json", "b/c.JPG", ".hidden.mp4", ".d/e.mp4", "_SUCCESS")
    fill(folder, "out/data/0.parquet", "out/f.mp4", "out2/g.mp4", "json")
    assert videos(folder.uri) == ["a.mp4", "b/c.MOV", "b/no_extension", "json", "out/f.mp4", "out2/g.mp4"]
    assert videos(folder.uri, f"{folder.uri}/out/") == ["a.mp4", "b/c.MOV", "b/no_extension", "json", "out2/g.mp4"]
    assert videos(f"{folder.uri}/out/", folder.uri) == ["f.mp4"]
    with pytest.raises(ConfigError) as caught:
        videos(folder.uri, f"{folder.uri}/")
    assert (caught.value.key, caught.value.value) == ("output", folder.uri)
    assert f"{folder.uri}/embeddings" in caught.value.remedy


def test_skipped_files_are_counted_by_reason(folder: Folder) -> None:
    fill(folder, "a.mp4", "a.json", "b/c.JPG", "d.jpg", "e.gif", ".hidden.mp4", ".d/e.mp4", "out/data/0.parquet")
    listed = Listed()
    assert [video.key for video in list_videos(folder.uri, exclude_under=folder.child("out"), listed=listed)] == [
        "a.mp4"
    ]
    assert listed.skipped == {".jpg": 2, ".json": 1, ".gif": 1, "hidden": 2}
    glob = Listed()
    assert [video.key for video in list_videos(folder.child("*.gif"), listed=glob)] == ["e.gif"]
    assert not glob.skipped


def test_one_video(folder: Folder) -> None:
    fill(folder, "b/c.mp4", "b/c.mp4.json")
    assert videos(f"{folder.uri}/b/c.mp4") == ["c.mp4"]
    assert videos(f"{folder.uri}/b/none.mp4") == []


def test_videos_of_a_glob(folder: Folder) -> None:
    fill(folder, "x/a.mp4", "x/y/b.mp4", "x/y/z/c.mp4", "x/y/d.json", "w/e.mp4")
    assert videos(f"{folder.uri}/x/*.mp4") == ["a.mp4"]
    assert videos(f"{folder.uri}/x/**/*.mp4") == ["a.mp4", "y/b.mp4", "y/z/c.mp4"]
    assert videos(f"{folder.uri}/x/y/?.*") == ["b.mp4", "d.json"]
    assert videos(f"{folder.uri}/[wx]/*.mp4") == ["w/e.mp4", "x/a.mp4"]
    assert videos(f"{folder.uri}/x/y*/b.mp4") == ["y/b.mp4"]
    with pytest.raises(ConfigError) as caught:
        videos(f"{folder.uri}/x/a**b")
    assert (caught.value.key, caught.value.value) == ("input", f"{folder.uri}/x/a**b")


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(folder: Folder) -> None:
    fill(folder, "films [2020]/a*.mp4", "films 2/b.mp4")
    assert videos(f"{folder.uri}/films [2020]") == ["a*.mp4"]


@pytest.mark.usefixtures("s3")
def test_a_wildcard_in_the_bucket_is_refused() -> None:
    with pytest.raises(StorageError, match=r"vid\*") as caught:
        videos("s3://vid*/x")
    assert "AWS_DEFAULT_REGION" in caught.value.remedy


@pytest.mark.parametrize("name", ["list.txt", "LIST.TSV", "videos.json", "videos.csv.gz", "videos.jsonl.zst"])
def test_a_list_in_a_format_that_is_not_read_is_refused(folder: Folder, name: str) -> None:
    assert folder.put_new(name, b"a.mp4\nb.mp4\n")
    with pytest.raises(ConfigError) as caught:
        list(list_videos(folder.child(name)))
    assert (caught.value.key, caught.value.value) == ("input", folder.child(name))
    assert ".csv" in caught.value.remedy
    assert [stored.key for stored in list_videos(folder.child("*"))] == [name]  # a glob yields exactly what it matches
