"""The JSON schema of a class's parameters in words: what `--help` of a worker and `skalds-streams classes` show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
UNIONS = ("anyOf", "oneOf", "allOf")
WRITE_ONLY = "secret"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `key` is what documents call it: the alias if there is one."""

    key: str
    kind: str
    """"integer ≥ 1 ≤ 120", "480p | 720p", "list of string", "Place"."""
    required: bool
    default: str
    """As JSON; "" when it has none, or one that is made anew for each run."""
    about: str
    is_nested: bool
    """An object or a list may be given."""


def parameters(schema: Mapping[str, Any]) -> Iterator[Parameter]:
    """The parameters of a model by its JSON schema, in the order of its fields."""
    required, models = schema.get("required", ()), schema.get("$defs", {})
    for key, field in schema.get("properties", {}).items():
        yield Parameter(
            key=key,
            kind=_type_words(field, models),
            required=key in required,
            default=json.dumps(field["default"], ensure_ascii=False) if "default" in field else "",
            about=" ".join(str(field.get("description", "")).split()),
            is_nested=_is_nested(field, models),
        )


def _type_words(field: Any, models: Mapping[str, Any]) -> str:
    """The type of a field in words. A nested model is its name."""
    if not isinstance(field, Mapping):
        return "any"
    if "$ref" in field:
        name = str(field["$ref"]).rpartition("/")[2]
        return _type_words(models[name], models) if "enum" in models.get(name, {}) else name
    for many in UNIONS:
        if many in field:
            return " | ".join(dict.fromkeys(_type_words(item, models) for item in field[many]))
    if "enum" in field or "const" in field:
        return " | ".join(_plain(item) for item in field.get("enum", [field.get("const")]))
    if field.get("writeOnly"):
        return WRITE_ONLY
    kind = field.get("format") or field.get("type") or "any"
    if kind == "array":
        return f"list of {_type_words(field.get('items', {}), models)}"
    return " ".join([str(kind), *(f"{sign} {field[name]}" for name, sign in LIMITS.items() if name in field)])


def _is_nested(field: Any, models: Mapping[str, Any]) -> bool:
    if not isinstance(field, Mapping):
        return False
    if "$ref" in field:
        model = models.get(str(field["$ref"]).rpartition("/")[2], {})
        return "properties" in model or model.get("type") in ("object", "array")
    inner = [item for many in UNIONS for item in field.get(many, ())]
    return field.get("type") in ("object", "array") or any(_is_nested(item, models) for item in inner)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
