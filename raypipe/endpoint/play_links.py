"""Links that give access to the bytes of one video for ten minutes, without the token."""

import hmac
import json
import secrets
import time

from raypipe.endpoint.http import HttpError

LINK_SECONDS = 600
_KEY_BYTES = 32
_PURPOSE = b"raypipe: sign links to videos"


def new_play_key() -> bytes:
    """Return a random secret, for a server without a token."""
    return secrets.token_bytes(_KEY_BYTES)


class PlayLinks:
    """Signs links with HMAC-SHA256, and checks them.

    The key is derived from ``secret``, which all replicas share. A signature covers the id of the video, its URI, the
    tag of its content and the time at which the link expires.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _PURPOSE, "sha256")

    def sign(self, video_id: str, *, uri: str, tag: str, expires: str) -> str:
        fields = json.dumps([video_id, uri, tag, expires])
        return hmac.digest(self._key, fields.encode(), "sha256").hex()

    def check(self, video_id: str, *, uri: str, tag: str, expires: str, signature: str) -> None:
        """Raise HttpError 403 if the link was altered or has expired."""
        expected = self.sign(video_id, uri=uri, tag=tag, expires=expires)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise HttpError(403, "The signature of this link is missing or wrong.", "invalid_link")
        if int(expires) < time.time():
            message = "This link has expired. Request another one with POST /v1/videos/ID/play."
            raise HttpError(403, message, "expired_link")
