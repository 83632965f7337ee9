"""The image's HEALTHCHECK: exit code 0 when /healthz of the skald in this container answers 200, else 1.

/healthz needs no token and says that the event loop turns. Whether the skald can work says /readyz, with a token.
"""

from __future__ import annotations

import http.client
import os
import sys
import urllib.request

TIMEOUT_S = 2.0
ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  # compared, not bound


def main() -> int:
    """Ask once. What went wrong is one line on stdout: `docker inspect` shows it."""
    bind, port = os.environ.get("SKALDS_WEB_BIND", ""), os.environ.get("SKALDS_WEB_PORT", "6066")
    host = "127.0.0.1" if bind in ANY_ADDRESS else f"[{bind}]" if ":" in bind else bind
    # An http_proxy is for the outside, not for ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}:{port}/healthz", timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.stdout.write(f"/healthz on {host}:{port}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
