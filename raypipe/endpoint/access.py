"""Who may send requests: whoever has the token; without a token, this machine, but no web page of another site."""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from raypipe.endpoint.http import HttpError
from raypipe.errors import ConfigError

TOKEN_VARIABLE = "RAYPIPE_API_TOKEN"  # noqa: S105 - the name of the variable
_OPEN = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json"})
_OPEN_FOLDER = "/page/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER = b"bearer "


@lru_cache  # a few microseconds, for the same few names
def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host of this name."""
    host = host.strip("[]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, token: str | None, *, is_known: bool = False) -> None:
    """Refuse a host that is open without a token; ``is_known``: the replicas do ask for one.

    Raises:
        ConfigError: there is no token and other machines can reach the host, or the token cannot be sent in a header.
    """
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        msg = f"{TOKEN_VARIABLE} is empty or cannot be sent in a header."
        raise ConfigError(msg, key=TOKEN_VARIABLE, remedy="Choose printable ASCII without spaces at its ends.")
    if token is None and not is_known and not is_loopback(host):
        msg = f"host={host!r} is open to other machines without a token."
        raise ConfigError(msg, key="host", value=host, remedy=f"Set {TOKEN_VARIABLE}, or host to 127.0.0.1.")


def digest_of(token: str | None) -> bytes | None:
    """Return what other processes know of a token: its SHA-256."""
    return None if token is None else hashlib.sha256(token.encode()).digest()


class Access:
    """Checks a request by its path and headers, before its body is read."""

    def __init__(self, token_digest: bytes | None) -> None:
        self._token_digest = token_digest

    def check(self, scope: Mapping[str, Any], path: str, headers: Mapping[bytes, bytes]) -> None:
        """Check one request.

        Raises:
            HttpError: 401 for a wrong token, 403 for a page of another site.
        """
        if self._token_digest is None:
            _check_site(scope, headers)
        elif path not in _OPEN and not path.startswith(_OPEN_FOLDER):
            given = headers.get(b"authorization", b"")
            token = given[len(_BEARER) :] if given[: len(_BEARER)].lower() == _BEARER else b""
            if not hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._token_digest):
                said = "is missing" if not given else "is wrong"
                message = f"The token {said}. Send the header Authorization: Bearer TOKEN, as {TOKEN_VARIABLE} has it."
                raise HttpError(401, message, headers={"WWW-Authenticate": "Bearer"})


def _check_site(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> None:
    """Refuse a browser on this machine that acts, or reads, for a page of another site."""
    host = headers.get(b"host", b"").decode("latin-1")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    if host and not is_loopback(name):  # a stranger's DNS may point its name here
        message = f"Host {host!r} is not this machine's. Without a token only loopback names are answered."
        raise HttpError(403, message, "forbidden_host")
    if scope["method"] in _SAFE_METHODS:
        return
    origin = headers.get(b"origin", b"").decode("latin-1")
    is_foreign = origin and origin.partition("://")[2] != host
    if is_foreign or headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
        message = "A page of another site may not change anything here."
        raise HttpError(403, message, "forbidden_origin")
