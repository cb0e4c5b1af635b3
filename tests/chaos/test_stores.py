"""Servers that lack a feature of S3, and buckets that demand or allow other requests than usual."""

import json
from collections.abc import Callable

import pytest

from chaos.fault_proxy import Call, FaultProxy
from raypipe.errors import ConfigError, StorageError
from raypipe.runs.actors import _worker_environment
from raypipe.storage import Folder
from raypipe.storage.s3_access import ANONYMOUS, REQUEST_CHECKSUMS, REQUEST_PAYER, S3Access

PAYER_HEADER = "x-amz-request-payer"


def fails(fault: str, when: Callable[[Call], bool]) -> Callable[[Call], str]:
    return lambda call: fault if when(call) else ""


def sends_checksum(call: Call) -> bool:
    return any(name.startswith(("x-amz-checksum-", "x-amz-trailer")) for name in call.headers)


def test_a_server_that_refuses_conditions_is_explained(bucket: str, proxy: FaultProxy) -> None:
    output = Folder(f"{bucket}/out")
    proxy.tell(fails("not_implemented", lambda call: "if-none-match" in call.headers))
    with pytest.raises(StorageError, match="If-None-Match") as raised:
        output.check_writable()
    assert REQUEST_CHECKSUMS in str(raised.value)  # the reply names no header, so it may be the checksum
    assert all("if-none-match" in call.headers for call in proxy.calls if call.operation == "put")  # no plain put
    assert not output.exists(".raypipe")


@pytest.mark.parametrize("fault", ["sha256_mismatch", "not_implemented"])
def test_a_server_without_checksums_works_after_the_advice(
    bucket: str, proxy: FaultProxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Folder(f"{bucket}/out")
    proxy.tell(fails(fault, sends_checksum))
    with pytest.raises(StorageError, match=f"{REQUEST_CHECKSUMS}=when_required"):
        output.check_writable()
    monkeypatch.setenv(REQUEST_CHECKSUMS, "when_required")
    output.check_writable()
    assert output.exists(".raypipe")


def test_a_bucket_whose_requester_pays(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"{bucket}/in")
    assert folder.put_new("a.mp4", b"video")
    proxy.tell(fails("denied", lambda call: call.headers.get(PAYER_HEADER) != "requester"))
    for read in (lambda: list(folder.list()), lambda: folder.stat("a.mp4")):
        with pytest.raises(StorageError, match=f"{REQUEST_PAYER}=requester"):
            read()
    monkeypatch.setenv(REQUEST_PAYER, "requester")
    assert [stored.key for stored in folder.list()] == ["a.mp4"]
    assert folder.read("a.mp4") == b"video"
    assert {call.headers.get(PAYER_HEADER) for call in proxy.calls[-2:]} == {"requester"}


@pytest.mark.parametrize("value", ["1", "{bucket}", "other-bucket, {bucket}"])
def test_a_public_bucket_is_read_without_credentials(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    name = bucket.removeprefix("s3://").partition("/")[0]
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(StorageError, match=f"{ANONYMOUS}=BUCKET"):
        list(Folder(bucket).list())
    proxy.tell(lambda _: "denied")
    monkeypatch.setenv(ANONYMOUS, value.format(bucket=name))
    with pytest.raises(StorageError):  # the request is sent; the server allows no anonymous reader
        list(Folder(bucket).list())
    assert [call.headers.get("authorization") for call in proxy.calls] == [None] * len(proxy.calls)
    assert proxy.calls


def test_requests_to_other_buckets_are_signed(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ANONYMOUS, "another-bucket")
    Folder(f"{bucket}/out").check_writable()
    assert all("authorization" in call.headers for call in proxy.calls)


@pytest.mark.parametrize(
    ("name", "value"),
    [(REQUEST_PAYER, "me"), (REQUEST_PAYER, "1"), (ANONYMOUS, "s3://data/below"), (ANONYMOUS, "a,,b")],
)
def test_a_wrong_value_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        S3Access.of_environment({name: value})
    assert raised.value.key == name


def test_workers_get_the_variables_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses a variable that a submitted job and its driver both set."""
    assert _worker_environment() is None
    monkeypatch.setenv(ANONYMOUS, "data")
    monkeypatch.setenv(REQUEST_PAYER, "requester")
    assert _worker_environment() == {"env_vars": {ANONYMOUS: "data", REQUEST_PAYER: "requester"}}
    of_the_job = {"runtime_env": {"env_vars": {ANONYMOUS: "data"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(of_the_job))
    assert _worker_environment() == {"env_vars": {REQUEST_PAYER: "requester"}}
