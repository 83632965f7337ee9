"""skalds_streams: long-lived jobs on many machines, driven by a Kafka event queue.

`faust -A skalds_streams worker` looks for the attribute `app`. It is made on first use, so that importing any part of
the package neither reads settings nor imports Faust.
"""

from typing import Any

from skalds_streams.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name == "app":
        from skalds_streams.application import get_app

        return get_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
