"""What is logged, and what never is."""

import io
import json
import logging
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import structlog

from p2pfed.daemon.logs import KEPT_LINES, MAX_QUOTED_CHARACTERS, RecentLines, configure
from p2pfed.daemon.notify import notify, notify_reloading


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, RecentLines]:
    stream, recent = io.StringIO(), RecentLines()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("info", "json", recent)
    return stream, recent


def test_lines_are_json_and_remembered(captured: tuple[io.StringIO, RecentLines]) -> None:
    stream, recent = captured
    structlog.get_logger().info("round done", round=3)
    structlog.get_logger().debug("not at this level")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["round"] == 3
    assert json.loads(line)["event"] == "round done"
    assert list(recent.lines) == [line]


def test_weights_data_and_keys_are_withheld(captured: tuple[io.StringIO, RecentLines]) -> None:
    stream, _ = captured
    structlog.get_logger().warning(
        "oops",
        weights=np.ones(3),
        payload=b"x" * 100,
        digest=b"\xab\xcd",
        payload_key=b"k",
        seed=7,
        identity_secret="s3cret",
    )
    line = json.loads(stream.getvalue())
    assert line["digest"] == "abcd"
    for name in ("weights", "payload", "payload_key", "seed", "identity_secret"):
        assert line[name] == "(withheld)", name


def test_libraries_join_the_same_stream(captured: tuple[io.StringIO, RecentLines]) -> None:
    stream, _ = captured
    logging.getLogger("some.library").warning("careful %d", 5)
    logging.getLogger("some.library").info("chatter")
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert line["event"] == "careful 5"
    assert line["library"] == "some.library"


def test_what_a_library_quotes_of_a_stranger_is_one_plain_line(
    captured: tuple[io.StringIO, RecentLines],
) -> None:
    stream, _ = captured
    logging.getLogger("some.library").warning(
        "unknown protocol %s", "/x\x9b2J\u2028\n" + "y" * 10000
    )
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert line["event"].startswith("unknown protocol /x\\x9b2J\\u2028\\ny")
    assert len(line["event"]) == MAX_QUOTED_CHARACTERS


def test_memory_of_lines_is_bounded() -> None:
    recent = RecentLines()
    heard: list[str] = []
    recent.followers.add(heard.append)
    for number in range(KEPT_LINES + 10):
        recent.add(str(number))
    assert len(recent.lines) == KEPT_LINES
    assert len(heard) == KEPT_LINES + 10


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(short_tmp: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@p2pfed-{short_tmp.name}" if abstract else str(short_tmp / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=round 3")
        assert listener.recv(1000) == b"READY=1\nSTATUS=round 3"
        notify_reloading()
        assert listener.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notify("READY=1")
