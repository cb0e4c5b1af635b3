"""Checks of ``raypipe doctor`` that need no cluster."""

from pathlib import Path

import pytest

from raypipe.doctor.checks import _auth_token, _s3_access


@pytest.mark.parametrize(("mode", "state"), [(0o600, "ok"), (0o644, "warning"), (0o640, "warning")])
def test_a_token_that_others_can_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, state: str) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert list(_auth_token()) == []
    token.write_text("secret")
    token.chmod(mode)
    [check] = _auth_token()
    assert check.state == state
    assert "secret" not in check.found + check.remedy
    assert (f"chmod 600 {token}" in check.remedy) == (state == "warning")


def test_how_s3_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(_s3_access()) == []
    monkeypatch.setenv("RAYPIPE_S3_ANONYMOUS", "open-data")
    monkeypatch.setenv("RAYPIPE_S3_REQUEST_PAYER", "requester")
    [check] = _s3_access()
    assert (check.state, "open-data" in check.found) == ("ok", True)
    monkeypatch.setenv("RAYPIPE_S3_REQUEST_PAYER", "me")
    [check] = _s3_access()
    assert (check.state, "RAYPIPE_S3_REQUEST_PAYER" in check.found) == ("error", True)
