"""A link gives access to one version of one video, for ten minutes."""

import time
from typing import Any

import pytest

from raypipe.endpoint.http import HttpError
from raypipe.endpoint.play_links import LINK_SECONDS, PlayLinks

LINK = {"video_id": "a/1.mp4", "uri": "s3://videos/a/1.mp4", "tag": "t1"}


def later(seconds: float = LINK_SECONDS) -> str:
    return str(int(time.time() + seconds))


def code(links: PlayLinks, **link: Any) -> str:  # noqa: ANN401 - the fields of a link
    try:
        links.check(link.pop("video_id"), **link)
    except HttpError as error:
        return error.code
    return "ok"


def test_replicas_with_the_same_secret_agree() -> None:
    expires = later()
    signature = PlayLinks(b"secret").sign(**LINK, expires=expires)
    assert code(PlayLinks(b"secret"), **LINK, expires=expires, signature=signature) == "ok"
    assert code(PlayLinks(b"other"), **LINK, expires=expires, signature=signature) == "invalid_link"


@pytest.mark.parametrize(
    "changed",
    [
        {"video_id": "a/2.mp4"},
        {"uri": "s3://videos/a/2.mp4"},
        {"tag": "t2"},
        {"tag": "", "uri": "s3://videos/a/1.mp4t1"},
        {"expires": later(10 * LINK_SECONDS)},
        {"expires": ""},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "é\ud800"},
    ],
)
def test_an_altered_link_is_refused(changed: dict[str, str]) -> None:
    links, expires = PlayLinks(b"secret"), later()
    link = {**LINK, "expires": expires, "signature": links.sign(**LINK, expires=expires)}
    assert code(links, **link) == "ok"
    assert code(links, **link | changed) == "invalid_link"


def test_a_link_expires() -> None:
    links = PlayLinks(b"secret")
    for seconds, expected in ((60, "ok"), (-2, "expired_link")):
        expires = later(seconds)
        assert code(links, **LINK, expires=expires, signature=links.sign(**LINK, expires=expires)) == expected
