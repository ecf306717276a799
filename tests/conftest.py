"""The world of the tests: one thread, nothing downloaded, a cache folder of their own, no connection that leaves the machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# before any test module imports torch or transformers; programs started by tests inherit it
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
CACHE = tempfile.mkdtemp(prefix="preftune-tests-")
os.environ["PREFTUNE_CACHE"] = CACHE

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background leaves it ignored

LOOPBACK = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", b"localhost", socket.gethostname()}
refused: list[str] = []  # connections that something tried to make


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: Python calls it before every connection and look-up, whichever library asks."""
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # a string is a local socket's path
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in LOOPBACK and not str(host).startswith("127."):
        refused.append(f"{event} {host}")
        raise ConnectionRefusedError(f"tests use no network, but something asked for {host} ({event})")


sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """A test fails if it tried to leave the machine, even where the library swallowed the refusal."""
    refused.clear()
    yield
    assert not refused, f"tests use no network, but this one asked for: {', '.join(refused)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pages of the documents first: they take longest, and whoever has them should not begin last."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_make_parametrize_id(val: object) -> str | None:
    """A function with some arguments set is named by them, not by where it lies in memory: all processes need the same names."""
    if not isinstance(val, partial):
        return None
    return ",".join([val.func.__name__, *map(str, val.args), *(f"{name}={value}" for name, value in val.keywords.items())])


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def preftune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in an empty folder: (exit code, stdout, stderr)."""
    from preftune.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def pytest_unconfigure() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
