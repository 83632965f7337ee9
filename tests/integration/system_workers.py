"""Worker classes for the tests of a whole node."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, SecretStr

from skalds_streams.worker import (
    BaseTaskWorker,
    NonRetryableError,
    release_handler,
    run_main_handler,
    update_event_handler,
)


class IdleParams(BaseModel):
    fps: int = Field(30, ge=1, le=120)
    password: str = ""
    trace: str = ""
    """File to which every run appends "start epoch" and every update "fps value"."""


class Idle(BaseTaskWorker[IdleParams]):
    """Runs until it is stopped and writes down what happens to it."""

    def initialize(self, data: IdleParams) -> None:
        self.trace = data.trace

    @run_main_handler
    def main(self) -> None:
        self._write(f"start {self.epoch}")
        while True:
            time.sleep(0.05)

    @update_event_handler
    def update(self, data: IdleParams) -> None:
        self._write(f"fps {data.fps}")

    def _write(self, line: str) -> None:
        if self.trace:
            with Path(self.trace).open("a") as file:
                file.write(line + "\n")


class Keeper(Idle):
    """Runs on without a lease."""

    on_disconnect = "keep"


class Talk(Idle):
    """Prints, lets a child print, and tells what it must not tell."""

    def initialize(self, data: IdleParams) -> None:
        super().initialize(data)
        print("pid", os.getpid())
        os.system(f"echo a child says {data.password}")


class Slow(Idle):
    """Takes its time to stop."""

    @release_handler
    def release(self) -> None:
        time.sleep(2)


class Deaf(Idle):
    """Does not obey: every run of it has to be killed."""

    release_s = 0.2
    terminate_s = 0.2

    @run_main_handler
    def main(self) -> None:
        while True:
            with suppress(BaseException):
                time.sleep(60)


class OneShotParams(BaseModel):
    pass


class OneShot(BaseTaskWorker[OneShotParams]):
    """Finishes at once."""

    def initialize(self, data: OneShotParams) -> None:
        pass

    @run_main_handler
    def main(self) -> None:
        pass


class Crash(BaseTaskWorker[OneShotParams]):
    """Crashes at once."""

    def initialize(self, data: OneShotParams) -> None:
        pass

    @run_main_handler
    def main(self) -> None:
        raise RuntimeError("boom {not a format}")


class Door(BaseModel):
    pin: SecretStr


class LockParams(BaseModel):
    doors: list[Door] = []
    fps: int = 1


class Lock(BaseTaskWorker[LockParams]):
    """Fails, quoting a parameter that only its model declares as secret."""

    def initialize(self, data: LockParams) -> None:
        self.doors = data.doors

    @run_main_handler
    def main(self) -> None:
        raise NonRetryableError(f"no door opens with {self.doors[0].pin.get_secret_value()}")


class TellerParams(BaseModel):
    pin: SecretStr
    api_token: str
    url: str
    db: str
    key: str
    fail: bool = False


class Teller(BaseTaskWorker[TellerParams]):
    """Tells all its secrets: in its log, when it refuses an update, and when it fails."""

    def initialize(self, data: TellerParams) -> None:
        self.told = self._secrets(data)
        self.fails = False

    @run_main_handler
    def main(self) -> None:
        self.logger.info("it begins with %s", self.told)
        print("it prints", *self.told, flush=True)
        while not self.fails:
            time.sleep(0.02)
        raise NonRetryableError(f"it fails with {self.told}")

    @update_event_handler
    def update(self, data: TellerParams) -> None:
        self.fails = data.fail
        if not data.fail:
            raise ValueError(f"it refuses {self._secrets(data)}")

    def _secrets(self, data: TellerParams) -> list[str]:
        return [data.pin.get_secret_value(), data.api_token, data.url, data.db, data.key]


class Stuck(BaseTaskWorker[OneShotParams]):
    """Makes no progress."""

    stall_s = 0.5

    def initialize(self, data: OneShotParams) -> None:
        pass

    @run_main_handler
    def main(self) -> None:
        self.wait_for_a_frame()

    def wait_for_a_frame(self) -> None:
        time.sleep(600)


class SaverParams(BaseModel):
    trace: str
    """File to which every run appends "epoch pid found"."""


class Saver(BaseTaskWorker[SaverParams]):
    """Counts its runs in what it saves, and saves once more when it is released."""

    def initialize(self, data: SaverParams) -> None:
        self.runs = (self.state or {}).get("runs", 0) + 1
        with Path(data.trace).open("a") as file:
            file.write(f"{self.epoch} {os.getpid()} {json.dumps(self.state)}\n")

    @run_main_handler
    async def main(self) -> None:
        await self.save({"runs": self.runs})
        await asyncio.Event().wait()

    @release_handler
    def release(self) -> None:
        self.save({"runs": self.runs, "released": True})
