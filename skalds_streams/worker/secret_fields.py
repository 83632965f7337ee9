"""Which parameters of a class are secret: the fields that its model declares as SecretStr, SecretBytes or Secret[…].

They are told as paths (`core.redact`), in every spelling that a document may use: field names and aliases. What a
model hides otherwise (a validator, a plain dict) nobody can know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

Path = tuple[str, ...]

PATHS_MAX = 100
"""Of one class; with more, each outermost field that has a secret in it is secret as a whole."""
DEPTH_MAX = 6
"""Deeper, and where a model contains itself, the field is secret as a whole if anything in it is."""

_SECRETS = (SecretStr, SecretBytes, Secret)


def secret_paths(model: type[BaseModel]) -> list[str]:
    """Paths of the secret fields, sorted."""
    paths = set(_of_type(model, (), ()))
    if len(paths) > PATHS_MAX:
        paths = {path[:1] for path in paths}
    return sorted(".".join(path) for path in paths)


def _of_type(kind: Any, path: Path, inside: tuple[Any, ...]) -> Iterator[Path]:
    kind = getattr(kind, "__value__", kind)  # of a `type` statement
    if _is_secret(kind):
        yield path or ("*",)
    elif get_origin(kind) is not None:
        yield from _of_generic(kind, path, inside)
    elif _has_fields(kind):
        if kind not in inside and len(inside) < DEPTH_MAX:
            for names, field in _fields(kind):
                for name in names:
                    yield from _of_type(field, (*path, *name), (*inside, kind))
        elif _is_secret_somewhere(kind, set()):
            yield path


def _of_generic(kind: Any, path: Path, inside: tuple[Any, ...]) -> Iterator[Path]:
    """A union, Annotated (whose other arguments are no types) or a container."""
    origin, arguments = get_origin(kind), get_args(kind)
    container = isinstance(origin, type) and hasattr(origin, "__iter__")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        arguments = arguments[1:]
    for argument in arguments:
        yield from _of_type(argument, (*path, "*") if container else path, inside)


def _has_fields(kind: Any) -> bool:
    """Whether it is a model, a dataclass or a TypedDict (typing's own does not know that of typing_extensions)."""
    return isinstance(kind, type) and (
        issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind) or hasattr(kind, "__required_keys__")
    )


def _fields(kind: Any) -> Iterator[tuple[list[Path], Any]]:
    """(the spellings of a field, each a path; its type)."""
    if issubclass(kind, RootModel):
        yield [()], kind.model_fields["root"].annotation
    elif issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            yield _spellings(name, info), info.annotation
    else:
        try:
            hints = get_type_hints(kind)
        except (NameError, TypeError):  # it names a type that can't be found from here
            hints = {"*": SecretStr}
        for name, annotation in hints.items():
            yield [(_safe(name),)], annotation


def _spellings(name: str, info: FieldInfo) -> list[Path]:
    alias = info.validation_alias
    spelled = [name, *(alias.choices if isinstance(alias, AliasChoices) else [alias])]
    found: list[Path] = []
    for item in spelled:
        if isinstance(item, AliasPath):
            found.append(tuple("*" if isinstance(part, int) else _safe(part) for part in item.path))
        elif item is not None:
            found.append((_safe(item),))
    return list(dict.fromkeys(found))


def _safe(name: str) -> str:
    """A name with a dot in it can't be said in a path: then everything beside it is masked, too."""
    return "*" if "." in name else name


def _is_secret_somewhere(kind: Any, seen: set[Any]) -> bool:
    kind = getattr(kind, "__value__", kind)
    if _is_secret(kind):
        return True
    if get_origin(kind) is not None:
        return any(_is_secret_somewhere(argument, seen) for argument in get_args(kind))
    if not _has_fields(kind) or kind in seen:
        return False
    seen.add(kind)
    return any(_is_secret_somewhere(field, seen) for _, field in _fields(kind))


def _is_secret(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, _SECRETS)
