"""The examples: each runs in the terminal as its docstring says, and loads as a node loads it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from skalds_streams.worker import registry
from tests.unit.test_worker_standalone import run, started

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_they_load_together_and_are_short() -> None:
    names = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "__init__")
    found = registry.load([f"examples.{name}" for name in names])
    assert found.not_loadable == {}
    assert found.classes.keys() == {"Camera", "Counter", "Flaky", "MotionCamera", "Scraper", "Transcoder"}
    for name in ("camera", "scraper", "transcoder"):
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


def test_the_camera() -> None:
    code, _, err = run(EXAMPLES / "camera.py", "--fps", "100", "--frames", "3", "--threshold", "0")
    assert code == 0, err
    assert "closed after 3 frames" in err
    assert "metrics: frames 3" in err


async def test_the_scraper() -> None:
    tokens: list[str | None] = []

    async def page(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return web.Response(text="twelve bytes")

    app = web.Application()
    app.router.add_get("/page", page)
    async with TestServer(app) as server:
        urls = f'["{server.make_url("/page")}", "{server.make_url("/nothing")}"]'
        options = ("--urls", urls, "--rounds", "2", "--everyS", "0.01", "--token", "s3cret")
        code, _, err = await asyncio.to_thread(run, EXAMPLES / "scraper.py", *options)
    assert code == 0, err
    assert tokens == ["Bearer s3cret"] * 2
    assert "/page: 12 bytes" in err
    assert "/nothing: 404" in err
    assert "metrics: pages 2, errors 2" in err
    assert "s3cret" not in err


def test_the_transcoder_to_its_end() -> None:
    code, _, err = run(EXAMPLES / "transcoder.py", "--frames", "2")
    assert code == 0, err
    assert "metrics: frame 2" in err
    assert "the program ended with 0" in err


def test_the_transcoder_is_stopped_in_order() -> None:
    with started(EXAMPLES / "transcoder.py", "--frames", "100000") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "metrics: frame" in line:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "the program ended with -15" in err
