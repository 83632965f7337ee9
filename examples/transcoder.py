"""A program under supervision: it is started with the task, read while it runs, and never outlives it.

    python examples/transcoder.py --frames 100
    SKALDS_WORKERS=examples.transcoder faust -A skalds_streams worker
    skalds-streams assign film --class Transcoder frames=1000

A few lines of Python stand in for ffmpeg; with it, the command would be `["ffmpeg", "-i", film, "-progress", "-", …]`.
Build commands from checked parameters as a list, never as a text for a shell.
"""

from __future__ import annotations

import subprocess
import sys

from pydantic import BaseModel, Field

from skalds_streams.worker import BaseTaskWorker, NonRetryableError, release_handler, run_main_handler

STAND_IN = """
import sys, time
for frame in range(1, int(sys.argv[1]) + 1):
    print(f"frame={frame}", flush=True)
    time.sleep(1 / 50)
"""
END_S = 3


class TranscoderParams(BaseModel):
    """What a Transcoder can be told. It has no update handler: it is restarted to take others."""

    frames: int = Field(500, ge=1, description="Length of the film.")


class Transcoder(BaseTaskWorker[TranscoderParams]):
    """Runs the program once; a crash of it is a crash of the task, which is tried again."""

    def initialize(self, data: TranscoderParams) -> None:
        command = [sys.executable, "-c", STAND_IN, str(data.frames)]
        try:
            self.program = self.spawn(command, stdout=subprocess.PIPE, text=True)
        except FileNotFoundError as error:
            raise NonRetryableError(f"{command[0]} is not installed on this node") from error

    @run_main_handler
    def follow(self) -> None:
        for line in self.program.stdout:
            self.metric("frame", int(line.removeprefix("frame=")))
        if code := self.program.wait():
            raise RuntimeError(f"the program ended with {code}")

    @release_handler
    def end(self) -> None:
        self.program.terminate()  # in order; what does not end by itself is killed after this handler
        self.logger.info("the program ended with %s", self.program.wait(END_S))


if __name__ == "__main__":
    Transcoder.cli()
