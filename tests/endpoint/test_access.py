"""Who may send requests: holders of the token; without a token, only this machine, and no page of another site."""

from typing import Any

import pytest

from raypipe.endpoint.http import HttpError
from raypipe.endpoint.limits import Access, check_host, digest_of, is_loopback
from raypipe.errors import ConfigError


def refusal(access: Access, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    encoded = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    scope: dict[str, Any] = {"method": method}
    try:
        access.check(scope, path, encoded)
    except HttpError as error:
        return error.status, error.code
    return 200, ""


@pytest.mark.parametrize(
    "path", ["/v1/index", "/v1/admin/reload", "/v1", "/V1/index", "//v1/index", "/pages", "/x", "/v1/play/"]
)
def test_only_the_token_opens_what_is_not_open(path: str) -> None:
    access = Access(digest_of("s3cret"))
    assert refusal(access, path) == (401, "unauthorized")
    assert refusal(access, path, authorization="Bearer wrong") == (401, "unauthorized")
    assert refusal(access, path, authorization="Bearer ") == (401, "unauthorized")
    assert refusal(access, path, authorization="Basic s3cret") == (401, "unauthorized")
    assert refusal(access, path, authorization="s3cret") == (401, "unauthorized")
    assert refusal(access, path, authorization="bearer  s3cret") == (200, "")
    assert refusal(access, path, authorization="Bearer s3cret") == (200, "")


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/healthz", "/readyz", "/metrics", "/openapi.json"])
def test_the_page_and_the_probes_need_no_token(path: str) -> None:
    assert refusal(Access(digest_of("s3cret")), path) == (200, "")


def test_a_link_to_a_video_needs_a_signature_instead_of_the_token() -> None:
    access = Access(digest_of("s3cret"))
    assert refusal(access, "/v1/play") == (200, "")  # its route checks the signature
    assert refusal(access, "/v1/videos/a/play", "POST") == (401, "unauthorized")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "127.0.0.1:8000"}, (200, "")),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, (200, "")),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000", "sec_fetch_site": "same-origin"}, (200, "")),
        ({"host": "rebound.example:8000"}, (403, "forbidden_host")),
        ({"host": "127.0.0.1.example"}, (403, "forbidden_host")),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, (403, "forbidden_origin")),
        ({"host": "127.0.0.1:8000", "origin": "null"}, (403, "forbidden_origin")),
        ({"host": "127.0.0.1:8000", "sec_fetch_site": "cross-site"}, (403, "forbidden_origin")),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, (403, "forbidden_origin")),
    ],
)
def test_without_a_token_no_other_site_acts(headers: dict[str, str], expected: tuple[int, str]) -> None:
    assert refusal(Access(None), "/v1/admin/rollback", "POST", **headers) == expected


def test_without_a_token_any_page_may_be_linked_to() -> None:
    assert refusal(Access(None), "/", host="127.0.0.1:8000", sec_fetch_site="cross-site") == (200, "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    check_host(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", ""])  # noqa: S104 - refused
def test_other_hosts_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_host(host, None)
    assert (caught.value.key, caught.value.value) == ("host", host)
    assert "RAYPIPE_API_TOKEN" in caught.value.remedy
    check_host(host, "s3cret")
    check_host(host, None, is_known=True)


@pytest.mark.parametrize("token", ["", " ", "a b\n", " padded", "ключ"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_host("127.0.0.1", token)
    assert (caught.value.key, caught.value.value) == ("RAYPIPE_API_TOKEN", None)  # the error does not repeat the token
