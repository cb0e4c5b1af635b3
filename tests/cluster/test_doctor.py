"""``raypipe doctor --address`` checks a cluster from outside and inside, and ``submit`` explains a refusal."""

import sys

import pytest

from raypipe.storage import Folder
from support.cluster.jobs import raypipe
from support.cluster.nodes import RayCluster
from support.videos import upload

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]


def test_every_node_is_checked(cluster: RayCluster, place: Folder) -> None:
    videos = Folder(place.child("in"))
    upload(videos, 1)
    places = ("--input", videos.uri, "--output", place.child("out"))
    done = raypipe(cluster, "doctor", "--address", cluster.address, *places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "401" in done.stdout
    nodes = " ".join(line for line in done.stdout.splitlines() if "nodes" in line)
    assert all(node.machine.address in nodes for node in (cluster.head, *cluster.workers)), done.stdout


def test_a_bucket_that_no_node_reaches(cluster: RayCluster) -> None:
    done = raypipe(cluster, "doctor", "--address", cluster.address, "--input", "s3://no-such-bucket/in")
    assert done.returncode == 1
    [nodes] = [line for line in done.stdout.splitlines() if line.startswith("nodes")]
    assert "error" in nodes
    assert "no-such-bucket" in done.stdout


def test_a_token_is_required(cluster: RayCluster) -> None:
    words = (sys.executable, "-m", "raypipe", "submit", "--address", cluster.address, "--status", "any")
    without = cluster.run_in("head", "env", "-u", "RAY_AUTH_MODE", "-u", "RAY_AUTH_TOKEN_PATH", "HOME=/nowhere", *words)
    assert without.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in without.stderr
    wrong = cluster.run_in("head", "env", "-u", "RAY_AUTH_TOKEN_PATH", f"RAY_AUTH_TOKEN={'f' * 64}", *words)
    assert wrong.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in wrong.stderr
    unknown = cluster.run_in("head", *words)
    assert unknown.returncode == 2
    assert "'any'" in unknown.stderr
