"""A manifest names an object that these credentials may not read: that is a row. Wrong credentials fail the command."""

import pytest

from chaos.fault_proxy import Call, Choose, FaultProxy
from raypipe.errors import StorageError
from raypipe.jobs.embed.inputs import find_videos
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.embed_outputs import PACK, content, finish, places, planner, upload


@pytest.fixture
def source(proxy: FaultProxy, bucket: str) -> Folder:  # noqa: ARG001 - uploads go through it
    source, _ = places(Folder(bucket))
    upload(source, {"a.mp4": content(), "b.mp4": content(seed=1)})
    assert source.put_new("all.csv", b"video_uri\na.mp4\nb.mp4\n")
    return source


def of_b(fault: str, *operations: str) -> Choose:
    """Choose the fault for these requests of ``b.mp4``."""

    def choose(call: Call) -> str:
        return fault if call.operation in operations and call.key.endswith("b.mp4") else ""

    return choose


def test_one_denied_object_is_a_row(source: Folder, proxy: FaultProxy, bucket: str) -> None:
    _, output = places(Folder(bucket))
    proxy.tell(of_b("denied", "head", "get"))
    planner(output).store(find_videos(source.child("all.csv"), output_uri=output.uri), pack=PACK)
    finish(output)
    assert verify(output).statuses == {"access_denied": 1, "ok": 1}


@pytest.mark.parametrize(
    ("fault", "code"),
    [("skewed", "RequestTimeTooSkewed"), ("expired", "ExpiredToken"), ("internal_error", "500")],
)
def test_an_error_of_every_object_ends_the_command(source: Folder, proxy: FaultProxy, fault: str, code: str) -> None:
    proxy.tell(of_b(fault, "head", "get"))
    with pytest.raises(StorageError, match=code):
        list(find_videos(source.child("all.csv"), output_uri=""))


def test_a_denied_head_alone_is_a_missing_permission(source: Folder, proxy: FaultProxy) -> None:
    proxy.tell(of_b("denied", "head"))
    with pytest.raises(StorageError, match=r"s3:GetObject.*s3:ListBucket"):
        list(find_videos(source.child("all.csv"), output_uri=""))
