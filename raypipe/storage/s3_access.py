"""How S3 requests are made, from environment variables: without a signature, at the requester's cost, with checksums.

====================================  ==================================================================================
``RAYPIPE_S3_ANONYMOUS``              ``1``: no request is signed. Or names of public buckets, separated by commas: only
                                      requests to them are not signed
``RAYPIPE_S3_REQUEST_PAYER``          ``requester``: pay for requests and transfer of buckets that demand it
``AWS_REQUEST_CHECKSUM_CALCULATION``  ``when_required``: for servers that reject the checksum headers of newer clients
``AWS_RESPONSE_CHECKSUM_VALIDATION``  ``when_required``: the same for replies
====================================  ==================================================================================

They contain no secrets. A driver passes them to its workers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore import UNSIGNED  # type: ignore[import-untyped]

from raypipe.errors import ConfigError

ANONYMOUS, REQUEST_PAYER = "RAYPIPE_S3_ANONYMOUS", "RAYPIPE_S3_REQUEST_PAYER"
REQUEST_CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
PASSED_TO_WORKERS = (ANONYMOUS, REQUEST_PAYER, REQUEST_CHECKSUMS, "AWS_RESPONSE_CHECKSUM_VALIDATION")
_REQUESTER = "requester"
_ALL, _NONE = frozenset({"1", "true"}), frozenset({"", "0", "false"})
_BUCKET = "raypipe_bucket"  # the key of botocore's request context under which a request's bucket is noted


@dataclass(frozen=True, slots=True)
class S3Access:
    """Which buckets get requests without a signature, and whether this account pays for requests."""

    anonymous_buckets: frozenset[str] = frozenset()
    all_anonymous: bool = False
    requester_pays: bool = False

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            ConfigError: a variable has an unknown value.
        """
        payer = environment.get(REQUEST_PAYER, "").strip().lower()
        if payer not in {"", _REQUESTER}:
            msg = f"{REQUEST_PAYER} is {payer!r}."
            raise ConfigError(msg, key=REQUEST_PAYER, value=payer, choices=(_REQUESTER,), remedy="Unset it otherwise.")
        anonymous = environment.get(ANONYMOUS, "").strip()
        if anonymous.lower() in _ALL | _NONE:
            return cls(all_anonymous=anonymous.lower() in _ALL, requester_pays=bool(payer))
        buckets = frozenset(name.strip().removeprefix("s3://").rstrip("/") for name in anonymous.split(","))
        if wrong := [name for name in buckets if not name or "/" in name or " " in name]:
            msg = f"{ANONYMOUS} is {anonymous!r}; {wrong[0]!r} is not the name of a bucket."
            raise ConfigError(msg, key=ANONYMOUS, value=anonymous, remedy="Give 1, or bucket names: open-data,other.")
        return cls(anonymous_buckets=buckets, requester_pays=bool(payer))

    def __str__(self) -> str:
        named = ", ".join(f"s3://{name}" for name in sorted(self.anonymous_buckets))
        facts = {
            "no request is signed": self.all_anonymous,
            f"requests to {named} are not signed": bool(named),
            "the requester pays": self.requester_pays,
        }
        return "; ".join(fact for fact, is_true in facts.items() if is_true)

    def apply_to(self, session: AioSession) -> None:
        """Make all S3 clients of a session send their requests in this way."""
        if self.requester_pays:
            session.register("before-call.s3", _pay)
        if self.all_anonymous or self.anonymous_buckets:
            session.register("before-parameter-build.s3", _note_bucket)
            session.register("choose-signer.s3", self._choose_signer)

    def _choose_signer(self, context: Mapping[str, Any], **_: object) -> Any:  # noqa: ANN401 - botocore's marker
        is_public = self.all_anonymous or context.get(_BUCKET) in self.anonymous_buckets
        return UNSIGNED if is_public else None


def worker_environment() -> dict[str, str]:
    """Return the variables that workers need, as they are set in this process."""
    return {name: os.environ[name] for name in PASSED_TO_WORKERS if os.environ.get(name)}


def _pay(params: dict[str, Any], **_: object) -> None:
    params["headers"]["x-amz-request-payer"] = _REQUESTER


def _note_bucket(params: Mapping[str, Any], context: dict[str, Any], **_: object) -> None:
    context[_BUCKET] = params.get("Bucket")
