"""What is typed or kept in a file becomes the document that was meant, or one clear usage error."""

from __future__ import annotations

from typing import Any

import click
import pytest

from skalds_streams.cli.documents import load_file, parameters_of, parse_pairs, parse_value, tasks_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30", 30),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ("[1,2]", [1, 2]),
        ('{"a":1}', {"a": 1}),
        ('"30"', "30"),
        ("rtsp://camera1/stream", "rtsp://camera1/stream"),
        ("", ""),
        ("NaN", "NaN"),
        ("True", "True"),
        ("007", "007"),
        ("a=b", "a=b"),
        ("ü", "ü"),
    ],
)
def test_a_value_is_json_or_text(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert (type(parsed), parsed) == (type(value), value)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], {}),
        (["fps=30", "url=rtsp://a?x=1"], {"fps": 30, "url": "rtsp://a?x=1"}),
        (["a.b=1", "a.c.d=x"], {"a": {"b": 1, "c": {"d": "x"}}}),
        (['a={"b":1}', "a.c=2"], {"a": {"b": 1, "c": 2}}),
    ],
)
def test_pairs_nest(pairs: list[str], expected: dict[str, Any]) -> None:
    assert parse_pairs(pairs) == expected


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        (["fps"], "'fps' is not key=value"),
        (["=3"], "'=3' is not key=value"),
        (["a..b=3"], "is not key=value"),
        (["a=1", "a.b=2"], "'a' has a value already"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a.b=1", "a=2"], "'a' is given twice"),
    ],
)
def test_a_wrong_pair_is_named(pairs: list[str], complaint: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse_pairs(pairs)
    assert complaint in str(caught.value)


def test_task_documents_in_each_form() -> None:
    one = {"id": "t1", "className": "Cam", "attachments": {"fps": 1}}
    assert tasks_of("f", one) == [{**one, "source": "CLI"}]
    assert tasks_of("f", [one, {**one, "id": "t2", "source": "mine"}]) == [
        {**one, "source": "CLI"},
        {**one, "id": "t2", "source": "mine"},
    ]
    assert tasks_of("f", {"className": "Cam"}, "t9") == [{"id": "t9", "className": "Cam", "source": "CLI"}]
    upstream = load_file("tasks.yaml", b"TaskWorkers:\n  T1:\n    className: Cam\n    attachments: {fixFrame: 30}\n")
    assert tasks_of("f", upstream) == [
        {"id": "T1", "className": "Cam", "source": "YAML", "attachments": {"fixFrame": 30}}
    ]


@pytest.mark.parametrize(
    ("loaded", "task_id", "complaint"),
    [
        ([], None, "neither a Task document"),
        ("text", None, "neither a Task document"),
        ([1], None, "neither a Task document"),
        ({"className": "Cam"}, None, "task 1 has no id"),
        ([{"id": "a"}, {"id": "a"}], None, "'a' is there twice"),
        ([{"id": "a"}, {"id": "b"}], "c", "has 2 tasks"),
        ({"TaskWorkers": ["x"]}, None, "must map task ids to objects"),
    ],
)
def test_a_wrong_task_file_is_a_usage_error(loaded: Any, task_id: str | None, complaint: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        tasks_of("f", loaded, task_id)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b"{", "a.json is not JSON"),
        ("a.yaml", b"a: [", "neither JSON nor YAML"),
        ("a.yaml", b"1: x", "can't be written as JSON"),
        ("a.yaml", b"\x00", "neither JSON nor YAML"),
        ("a.yaml", b"!!python/object/apply:os.getcwd []", "neither JSON nor YAML"),
    ],
)
def test_a_file_that_can_not_be_read_is_a_usage_error(name: str, content: bytes, complaint: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        load_file(name, content)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parameters_stand_alone_or_under_attachments() -> None:
    assert parameters_of("f", {"fps": 1}) == {"fps": 1}
    assert parameters_of("f", {"attachments": {"fps": 1}}) == {"fps": 1}
    assert parameters_of("f", {"attachments": {"fps": 1}, "more": 2}) == {"attachments": {"fps": 1}, "more": 2}
    with pytest.raises(click.UsageError):
        parameters_of("f", [1])
