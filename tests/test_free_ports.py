"""Free ports are distinct, usable, and outside the range from which outgoing connections get their ports."""

import socket
from pathlib import Path

import pytest

from raypipe import free_ports as module
from raypipe.free_ports import free_ports


def test_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_ports_are_outside_the_ephemeral_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "ip_local_port_range"
    settings.write_text("25000\t60999\n")
    monkeypatch.setattr(module, "_EPHEMERAL_RANGE", settings)
    assert all(20000 <= port < 25000 for port in free_ports(50))


def test_an_ephemeral_range_that_covers_everything_still_gives_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "ip_local_port_range"
    settings.write_text("1024\t65535\n")
    monkeypatch.setattr(module, "_EPHEMERAL_RANGE", settings)
    assert len(set(free_ports(5))) == 5


def test_a_taken_port_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "ip_local_port_range"
    settings.write_text("20002\t65535\n")
    monkeypatch.setattr(module, "_EPHEMERAL_RANGE", settings)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 20000))
        assert 20000 not in free_ports(2)
