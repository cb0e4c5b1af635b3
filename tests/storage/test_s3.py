import io
import secrets
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from raypipe.errors import (
    StorageError,
)
from raypipe.storage import Folder, read_object, s3, s3_client, s3_list
from support.folders import fill, keys


def test_put_new_in_parts_creates_an_object_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "SINGLE_PUT_BYTES", 1000)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = secrets.token_bytes(11 << 20)
    assert Folder(bucket).put_new("large", data)
    assert not Folder(bucket).put_new("large", bytes(11 << 20))
    assert Folder(bucket).read("large") == data


@pytest.mark.parametrize("large_subfolders", [0, 8, 100])
def test_a_listing_of_many_pages_finds_each_object_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch, large_subfolders: int
) -> None:
    monkeypatch.setattr(s3_list, "PAGE_KEYS", 3)
    monkeypatch.setattr(s3_list, "LARGE_SUBFOLDERS", large_subfolders)
    names = [f"{name}{number}" for name in ("", "a/", "a-", "b/c/", "b/d/", "e/f/g/") for number in range(7)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: Folder(bucket).put_new(name, b""), names))
    assert keys(Folder(bucket)) == sorted(names)


def test_a_listing_that_is_not_read_to_its_end_stops(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_list, "PAGE_KEYS", 1)
    fill(Folder(bucket), "a", "b", "c")
    listing = Folder(bucket).list()
    assert isinstance(listing, Generator)
    next(listing)
    listing.close()
    assert list(listing) == []


@pytest.mark.parametrize("call", [lambda f: list(f.list()), lambda f: f.check_writable(), lambda f: f.read("x")])
@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_a_storage_error(call: Callable[[Folder], object]) -> None:
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        call(Folder("s3://nobucket/x"))
    assert "'nobucket'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [  # the reason, and what to check
        ("AWS_SECRET_ACCESS_KEY", "wrong", ("SignatureDoesNotMatch", "AWS_ACCESS_KEY_ID")),
        ("AWS_ACCESS_KEY_ID", "wrong", ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID")),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", ("http://127.0.0.1:9", "AWS_ENDPOINT_URL")),
        ("AWS_PROFILE", "nobody", ("nobody", "AWS_PROFILE")),
        ("AWS_ACCESS_KEY_ID", None, ("Unable to locate credentials", "AWS_ACCESS_KEY_ID")),  # botocore's own message
    ],
)
def test_wrong_settings_are_a_storage_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, expected: tuple[str, str]
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(s3_client, "UNREACHABLE_SECONDS", 0)
    monkeypatch.setattr(s3_client, "MAX_ATTEMPTS", 1)
    for call in (
        lambda: list(Folder(bucket).list()),
        lambda: Folder(bucket).put_new("x", b""),
        lambda: read_object(f"{bucket}/x", etag="e", max_size_bytes=1, into=io.BytesIO()),
    ):
        with pytest.raises(StorageError, match=expected[0]) as caught:
            call()
        assert expected[1] in caught.value.remedy
        assert "\n" not in str(caught.value)
