"""Masking: parameters by name, texts by the values that were masked, schemas without the defaults of secret fields."""

from __future__ import annotations

from typing import Any

import pytest

from skalds_streams.core.row import Row
from skalds_streams.projections.masking import error_text, is_secret_name, mask_schema, masked_parameters, text_cleaner

WORDS = frozenset({"password", "api_key"})


def row(attachments: Any) -> Row:
    return Row("t", attachments=attachments)


@pytest.mark.parametrize("name", ["password", "db_password", "DbPassword", "api-key", "apiKey", "my_api_keys"])
def test_secret_names(name: str) -> None:
    assert is_secret_name(name, WORDS)
    assert not is_secret_name("fps", WORDS)


def test_values_of_secrets_leave_no_text() -> None:
    attachments = {
        "password": "hunter22",
        "api_key": {"id": "key-abc", "number": 123456, "on": True, "short": "ab"},
        "urls": ["rtsp://me:s3same@cam/1", "https://plain.example"],
        "fps": 30000,
    }
    clean = text_cleaner(row(attachments), WORDS)
    told = {
        "message": "hunter22 and key-abc",
        "traceback": ["s3same 123456 30000 True ab", "rtsp://me:s3same@cam/1"],
        "n": 1,
    }
    assert clean(told) == {"message": "*** and ***", "traceback": ["*** *** 30000 True ab", "rtsp://***@cam/1"], "n": 1}
    assert masked_parameters(row(attachments), WORDS)["password"] == "***"


def test_longer_secrets_go_first() -> None:
    clean = text_cleaner(row({"password": "abcd", "api_key": "abcdefgh"}), WORDS)
    assert clean("abcdefgh abcd") == "*** ***"


def test_a_row_without_parameters_is_left_alone() -> None:
    assert text_cleaner(row(None), WORDS)("hunter22 at rtsp://a:b@c") == "hunter22 at rtsp://***@c"
    assert masked_parameters(row(None), WORDS) is None


def test_schema_keeps_its_shape() -> None:
    secret = {"type": "string", "default": "hunter22", "examples": ["x"], "title": "Password"}
    schema = {
        "properties": {"password": secret, "fps": {"default": 30}, "nested": {"default": {"api_key": "k"}}},
        "$defs": {"Login": {"properties": {"password": secret}}},
    }
    hidden = {"type": "string", "default": "***", "examples": "***", "title": "Password"}
    assert mask_schema(schema, WORDS) == {
        "properties": {"password": hidden, "fps": {"default": 30}, "nested": {"default": {"api_key": "***"}}},
        "$defs": {"Login": {"properties": {"password": hidden}}},
    }


def test_error_as_a_sentence() -> None:
    assert error_text(None) == ""
    assert error_text({"type": "E", "message": "m", "field": "f"}) == "E: m (field f)"
    assert error_text({"message": "m"}) == "m"
    assert error_text({"traceback": []}) == "unknown error"
