"""A camera that is watched for motion: blocking code, parameters that change while it runs, metrics.

python examples/camera.py --fps 20 --threshold 40           # in the terminal, Ctrl-C ends it
SKALDS_WORKERS=examples.camera faust -A skalds_streams worker
skalds-streams assign door --class MotionCamera fps=20
skalds-streams update door threshold=60
"""

from __future__ import annotations

import random
import time

from pydantic import BaseModel, Field

from skalds_streams.worker import BaseTaskWorker, release_handler, run_main_handler, update_event_handler


class CameraParams(BaseModel):
    """What a MotionCamera can be told."""

    fps: float = Field(10, gt=0, le=120, description="Frames per second.")
    threshold: int = Field(50, ge=0, le=255, description="Change of brightness that counts as motion.")
    frames: int | None = Field(None, ge=1, description="Finish after so many; without it, go on for ever.")


class MotionCamera(BaseTaskWorker[CameraParams]):
    """Compares each frame with the one before."""

    def initialize(self, data: CameraParams) -> None:
        self.params, self.seen = data, 0

    @run_main_handler
    def watch(self) -> None:
        before = self.grab()
        while self.params.frames is None or self.seen < self.params.frames:
            time.sleep(1 / self.params.fps)
            frame = self.grab()
            self.seen += 1
            if abs(frame - before) > self.params.threshold:
                self.logger.info("motion in frame %d", self.seen)
            before = frame
            self.metric("frames", self.seen)

    def grab(self) -> int:
        """The mean brightness of a frame, 0 to 255; made up here, with OpenCV from `cv2.VideoCapture.read`."""
        return min(255, max(0, round(random.gauss(128, 30))))

    @update_event_handler
    def change(self, data: CameraParams) -> None:
        self.params = data

    @release_handler
    def close(self) -> None:
        self.logger.info("closed after %d frames", self.seen)


if __name__ == "__main__":
    MotionCamera.cli()
