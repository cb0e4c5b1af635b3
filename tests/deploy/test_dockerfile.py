"""The Dockerfile of the manifests follows the rules of hadolint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCKERFILE = Path(__file__).parents[2] / "jobs" / "kubernetes" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


def problems(dockerfile: Path) -> list[str]:
    """Return the rules that a Dockerfile breaks."""
    arguments = [str(HADOLINT), "--no-color", "--format", "json", "--no-fail", str(dockerfile)]
    found: list[dict[str, Any]] = json.loads(subprocess.run(arguments, capture_output=True, check=True).stdout)
    return [f"{one['code']} in line {one['line']}: {one['message']}" for one in found]


def test_the_dockerfile_breaks_no_rule() -> None:
    assert problems(DOCKERFILE) == []


def test_a_broken_rule_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.read_text("utf-8").replace("# hadolint ignore=DL3013\n", ""), encoding="utf-8")
    assert [problem.partition(" ")[0] for problem in problems(broken)] == ["DL3013"]


def test_the_image_runs_without_root_from_a_pinned_base() -> None:
    lines = DOCKERFILE.read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith(("ARG BASE", "FROM"))] == ["ARG BASE", "FROM ${BASE}"]
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000"]
    assert "@sha256:DIGEST" in DOCKERFILE.read_text("utf-8")
