"""Secrets in a worker's process: what references stand for is read here and nowhere else, and leaves in no error.

Rules: an event may name only variables that the node's settings allow, and files that lie directly in an allowed
directory; so it can't read the node's own passwords, or any file of the machine, into a worker. What can't be read is
an error that names the field and the reference, never a value. A file's last line break is not a part of its value.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skalds_streams.core.redact import SECRET_MIN_CHARS, hider, secret_values
from skalds_streams.core.references import Reference, reference_of

VALUE_MAX_BYTES = 64 * 1024
HIDES_NOTHING = hider(())
VALUES_MOST = 10_000
"""Secret values that a run remembers, to keep them out of its errors; beyond, the oldest go."""


class UnresolvedSecretError(Exception):
    """A reference that can't be resolved. `field` is its place, dotted. retryable: it may be there later, or on another
    node.
    """

    def __init__(self, field: str, problem: str, *, retryable: bool) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.retryable = field, retryable


@dataclass(frozen=True, slots=True)
class SecretPolicy:
    """What a node lets events read, and which parameters are secret by their names.

    `env`: names of variables, or their beginnings with a `*`. `dirs`: absolute paths, or `*` for any. `words`: see
    `core.redact`.
    """

    env: Sequence[str] = ()
    dirs: Sequence[str] = ()
    words: Sequence[str] = ()

    def to_text(self) -> str:
        """For the zygote's command line. Inverse of `from_text`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> SecretPolicy:
        """ "" allows nothing."""
        return cls(**json.loads(text)) if text else cls()

    def allows_variable(self, name: str) -> bool:
        return any(name.startswith(item[:-1]) if item.endswith("*") else name == item for item in self.env)


EVERYTHING = SecretPolicy(("*",), ("*",))
"""In the terminal, where it is the person's own command line that names them."""


class Secrets:
    """The secret values of one run: those that references stand for, and those that stand in its parameters."""

    def __init__(self, policy: SecretPolicy, paths: Sequence[str] = ()) -> None:
        """paths: the parameters that the class declares as secret."""
        self._policy, self._paths = policy, paths
        self._values: dict[str, None] = {}
        self._hide: Callable[[str], str] = HIDES_NOTHING

    def resolve(self, parameters: Any) -> Any:
        """A copy of the parameters with the values in place of the references. Raises UnresolvedSecretError."""
        self._remember(secret_values(parameters, self._policy.words, self._paths))
        found: list[str] = []
        resolved = self._resolved(parameters, (), found)
        self._remember(found)
        return resolved

    def clean(self, text: str) -> str:
        """The text without any secret value that this run has seen."""
        return self._hide(text)

    def _remember(self, values: Sequence[str] | frozenset[str]) -> None:
        kept = {**self._values, **{value: None for value in values if len(value) >= SECRET_MIN_CHARS}}
        self._values = dict.fromkeys(list(kept)[-VALUES_MOST:])
        self._hide = hider(self._values) if kept else HIDES_NOTHING

    def _resolved(self, value: Any, path: tuple[str, ...], found: list[str]) -> Any:
        if isinstance(value, dict):
            return {key: self._resolved(item, (*path, str(key)), found) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item, (*path, str(at)), found) for at, item in enumerate(value)]
        field = ".".join(path) or "parameters"
        try:
            reference = reference_of(value)
        except ValueError as error:
            raise UnresolvedSecretError(field, str(error), retryable=False) from None
        if reference is None:
            return value
        try:
            text = self._read(reference)
        except LookupError as error:
            problem = f"{reference.text}: {error.args[0]}"
            raise UnresolvedSecretError(field, problem, retryable=True) from None
        # A multi-line value (a key) is quoted line by line in a traceback.
        found += [text, *_lines(text)]
        return text

    def _read(self, reference: Reference) -> str:
        """Raises LookupError that says why not."""
        value = self._variable(reference.name) if reference.kind == "env" else self._file(reference.name)
        if not value:
            raise LookupError("it is empty")
        return value

    def _variable(self, name: str) -> str:
        if not self._policy.allows_variable(name):
            raise LookupError(f"this node lets events read only {_listed(self._policy.env)} (SKALDS_SECRET_ENV)")
        value = os.environ.get(name)
        if value is None:
            raise LookupError("there is no such variable in this node's environment")
        if len(value.encode(errors="surrogateescape")) > VALUE_MAX_BYTES:
            raise LookupError(f"it has more than {VALUE_MAX_BYTES} bytes")
        return value

    def _file(self, name: str) -> str:
        path = Path(os.path.normpath(name))
        real = Path(os.path.realpath(path))
        if any(_lies_in(directory, path, real) for directory in self._policy.dirs):
            return _content(real)
        raise LookupError(
            f"this node lets events read only files in {_listed(self._policy.dirs)} (SKALDS_SECRETS_DIRS)"
        )


def _lies_in(directory: str, path: Path, real: Path) -> bool:
    """Directly: a mounted Kubernetes secret is a link to a folder beside it, its target lies further below."""
    return directory == "*" or (path.parent == Path(directory) and real.is_relative_to(os.path.realpath(directory)))


def _content(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        reasons = {errno.ENOENT: "there is no such file on this node", errno.EACCES: "it may not be read by this node"}
        raise LookupError(reasons.get(error.errno or 0, f"it can't be read: {os.strerror(error.errno or 0)}")) from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LookupError("it is no plain file")
        content = file.read(VALUE_MAX_BYTES + 1)
    if len(content) > VALUE_MAX_BYTES:
        raise LookupError(f"it has more than {VALUE_MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise LookupError("it is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _lines(text: str) -> Iterator[str]:
    lines = text.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= 2 * SECRET_MIN_CHARS)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
