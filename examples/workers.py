"""Three workers: the smallest one, one that takes new parameters while it runs, and one that crashes.

    SKALDS_WORKERS=examples.workers faust -A skalds_streams worker

A worker names its parameters as a pydantic model and its methods with decorators. It is free to block, to spin or to
crash: it has a process of its own. Nobody needs to catch the stop: it interrupts main, and the release handler cleans
up.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from skalds_streams.worker import (
    BaseTaskWorker,
    release_handler,
    run_after_handler,
    run_before_handler,
    run_main_handler,
    update_event_handler,
)


class CounterParams(BaseModel):
    """What a Counter can be told."""

    start: int = 0
    until: int | None = Field(None, description="Finish at this number; without it, count for ever.")
    every_s: float = Field(1.0, gt=0, le=3600, description="Seconds between two numbers.")


class Counter(BaseTaskWorker[CounterParams]):
    """Counts, and logs what it counts. Restarted, moved or crashed, it goes on where it was."""

    def initialize(self, data: CounterParams) -> None:
        """Keep the parameters, and what the last run has left; nothing else is due yet."""
        self.params = data
        self.number = (self.state or {}).get("number", data.start)

    @run_main_handler
    def count(self) -> None:
        """Return at the end: the task is Finished then."""
        while self.params.until is None or self.number < self.params.until:
            self.number += 1
            self.logger.info("%d", self.number)
            self.save({"number": self.number})
            time.sleep(self.params.every_s)

    @run_after_handler
    def report(self) -> None:
        """Only after count() has returned."""
        self.logger.info("counted to the end: %d", self.number)


class CameraParams(BaseModel):
    """What a Camera can be told. Documents may say `rtspUrl` or `rtsp_url`."""

    model_config = ConfigDict(populate_by_name=True)

    rtsp_url: str = Field("rtsp://192.0.2.1/stream", alias="rtspUrl")
    fps: int = Field(10, ge=1, le=120, description="Frames per second.")
    resolution: Literal["480p", "720p", "1080p"] = "720p"


class Camera(BaseTaskWorker[CameraParams]):
    """Analyses a simulated camera, frame by frame. New parameters are taken between two frames."""

    def initialize(self, data: CameraParams) -> None:
        """Keep the parameters."""
        self.params = data
        self.frames = 0

    @run_before_handler
    async def connect(self) -> None:
        """Open what the job needs."""
        # The host only: an RTSP URL often carries a password.
        self.logger.info("connected to %s, %s", urlsplit(self.params.rtsp_url).hostname, self.params.resolution)

    @run_main_handler
    async def watch(self) -> None:
        """One frame after the other, until the task is stopped."""
        while True:
            await asyncio.sleep(1 / self.params.fps)
            self.frames += 1
            if self.frames % 100 == 0:
                self.logger.info("%d frames at %d fps", self.frames, self.params.fps)

    @update_event_handler
    async def change(self, data: CameraParams) -> None:
        """Take parameters that were already checked; raise to refuse them."""
        self.logger.info("fps %d -> %d", self.params.fps, data.fps)
        self.params = data

    @release_handler
    async def disconnect(self) -> None:
        """Close it again, however the run ended."""
        self.logger.info("disconnected after %d frames", self.frames)


class FlakyParams(BaseModel):
    """What a Flaky can be told."""

    mean_lifetime_s: float = Field(20.0, gt=0, description="Seconds that it lives on average.")


class Flaky(BaseTaskWorker[FlakyParams]):
    """Loses its sensor now and then: shows how crashes are retried."""

    def initialize(self, data: FlakyParams) -> None:
        """Draw how long it will go well this time."""
        self.lifetime_s = random.expovariate(1 / data.mean_lifetime_s)

    @run_main_handler
    def read_sensor(self) -> None:
        """What main raises is a crash: the task starts again after a pause."""
        self.logger.info("reading")
        time.sleep(self.lifetime_s)
        raise ConnectionError(f"the sensor went away after {self.lifetime_s:.1f} s")
