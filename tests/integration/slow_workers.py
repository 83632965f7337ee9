"""Worker classes that take long to import."""

from __future__ import annotations

import time

time.sleep(60)
