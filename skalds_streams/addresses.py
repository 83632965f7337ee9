"""Where the brokers are: what a person writes as one text, as the list that clients want. Reads no setting."""

from __future__ import annotations

PORTS = range(1, 65536)


def addresses(hosts: str, port: int) -> tuple[str, ...]:
    """Every broker of `hosts` as `host:port`. There is one, or several with commas between, each with a port of its own
    or `port`.

    An IPv6 address stands in brackets when a port follows; the answer always has them. Raises ValueError, which quotes
    no part of the text, when none is named or a port is no number from 1 to 65535.
    """
    found = tuple(_address(host.strip(), port) for host in hosts.split(",") if host.strip())
    if not found:
        raise ValueError("names no host")
    return found


def _address(text: str, port: int) -> str:
    if text.count(":") > 1 and not text.startswith("["):
        return f"[{text}]:{port}"
    host, colon, own = text.rpartition(":")
    if not colon or text.endswith("]"):
        return f"{text}:{port}"
    if not host or not own.isdecimal() or int(own) not in PORTS:
        raise ValueError("must be host or host:port, or several of these with commas between")
    return f"{host}:{int(own)}"
