"""Which parameters of a model are secret, and that nothing of them is left where they are masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import orjson
import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, Field, RootModel, Secret, SecretBytes, SecretStr
from typing_extensions import TypedDict

from skalds_streams.core.redact import EVERYTHING, cleaner, redact
from skalds_streams.worker import secret_fields
from skalds_streams.worker.secret_fields import secret_paths


class Login(BaseModel):
    user: str = ""
    pin: SecretStr = SecretStr("")


@dataclass
class Key:
    name: str
    material: SecretBytes


class Wallet(TypedDict):
    owner: str
    seed: SecretStr


class Tree(BaseModel):
    leaf: SecretStr | None = None
    below: list[Tree] = []
    plain: int = 0


class Plain(BaseModel):
    fps: int = 1
    names: list[str] = []
    more: Plain | None = None


class Pins(RootModel[dict[str, SecretStr]]):
    pass


class Params(BaseModel):
    fps: int = 1
    stamp: SecretStr = Field(SecretStr(""), alias="stampAs")
    born: Secret[date] | None = None
    blob: SecretBytes | None = None
    login: Login = Login()
    spare: Annotated[Login | None, Field(description="x")] = None
    cameras: list[Login] = []
    by_name: dict[str, Login] = {}
    pairs: Sequence[Mapping[str, SecretStr]] = ()
    key: Key | None = None
    wallet: Wallet | None = None
    pins: Pins | None = None
    many: SecretStr | None = Field(
        None, validation_alias=AliasChoices("manyA", "many-b", AliasPath("outer", 0, "inner"), "dotted.name")
    )


def test_every_field_and_every_spelling() -> None:
    assert secret_paths(Params) == sorted(
        [
            *("*", "blob", "born", "by_name.*.pin", "cameras.*.pin", "key.material", "login.pin", "many", "many-b"),
            *("manyA", "outer.*.inner", "pairs.*.*", "pins.*", "spare.pin", "stamp", "stampAs", "wallet.seed"),
        ]
    )


def test_a_model_without_secrets_has_none() -> None:
    assert secret_paths(Plain) == []
    assert secret_paths(Pins) == ["*"]


def test_a_model_that_contains_itself_is_secret_as_a_whole_from_there() -> None:
    assert secret_paths(Tree) == ["below.*", "leaf"]
    masked = redact({"leaf": "s", "below": [{"plain": 1}], "plain": 2}, (), secret_paths(Tree))
    assert masked == {"leaf": "***", "below": ["***"], "plain": 2}


def test_too_many_paths_become_their_outermost_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_fields, "PATHS_MAX", 2)
    assert secret_paths(Login) == ["pin"]
    assert {"login", "cameras", "by_name", "stamp"} <= set(secret_paths(Params))


PATHS = ["cameras.*.pin", "login.pin", "by_name.*.pin", "stamp"]
GIVEN: dict[str, Any] = {
    "stamp": "canary-1",
    "fps": 3,
    "login": {"user": "u", "pin": "canary-2"},
    "cameras": [{"user": "v", "pin": "canary-3"}, {"pin": None}, "canary-4"],
    "by_name": {"door": {"pin": {"deep": "canary-5"}}},
}


def test_masked_at_its_paths_only() -> None:
    assert redact(GIVEN, (), PATHS) == {
        "stamp": "***",
        "fps": 3,
        "login": {"user": "u", "pin": "***"},
        "cameras": [{"user": "v", "pin": "***"}, {"pin": None}, "***"],
        "by_name": {"door": {"pin": "***"}},
    }
    assert redact(None, (), EVERYTHING) is None
    assert redact(GIVEN, (), EVERYTHING) == dict.fromkeys(GIVEN, "***")


@pytest.mark.parametrize("login", ["canary-6", ["canary-6"], [{"pin": "canary-6"}], {"pin": ["canary-6"]}])
def test_a_document_of_another_shape_hides_more_and_never_less(login: Any) -> None:
    assert b"canary" not in orjson.dumps(redact({"login": login}, (), PATHS))


def test_texts_lose_the_values_too() -> None:
    clean = cleaner(GIVEN, (), PATHS)
    assert clean({"message": "canary-2 is no pin", "traceback": ["canary-3 canary-4", "canary-5, not canary-1"]}) == {
        "message": "*** is no pin",
        "traceback": ["*** ***", "***, not ***"],
    }
