"""The YAML file of tasks: what it says, and where it is wrong."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest

from skalds_streams.model.task_file import VALUES_MOST, TaskFile, TaskFileError, differences, parse_task_file


def parse(text: str) -> TaskFile:
    return parse_task_file("tasks.yaml", dedent(text).encode())


def told(text: str) -> list[str]:
    return [str(problem) for problem in parse(text).problems]


def test_upstreams_form() -> None:
    file = parse("""\
        TaskWorkers:
          cam 1:
            className: Cam
            isPersistent: false
            attachments: {fixFrame: 30, rtspUrl: "rtsp://192.168.1.1/camera1", key: secret("env:SECRET_A")}
          2:
            class_name: Other
            priority: 3
        """)
    assert not file.problems
    assert file.tasks["cam 1"].doc == {
        "id": "cam 1",
        "source": "YAML",
        "className": "Cam",
        "isPersistent": False,
        "attachments": {"fixFrame": 30, "rtspUrl": "rtsp://192.168.1.1/camera1", "key": 'secret("env:SECRET_A")'},
    }
    assert file.tasks["2"].doc == {"id": "2", "source": "YAML", "class_name": "Other", "priority": 3}


def test_keys_and_dates_are_texts() -> None:
    file = parse("TaskWorkers: {a: {className: A, attachments: {on: yes, 1: 2026-01-02, n: [1, 2.5, null]}}}")
    assert file.tasks["a"].doc["attachments"] == {"on": True, "1": "2026-01-02", "n": [1, 2.5, None]}


def test_each_mistake_has_its_line_and_field_and_the_other_tasks_are_read() -> None:
    text = """\
        TaskWorkers:
          good: {className: A}
          typo:
            classNam: A
          none:
            attachments: {}
          wrong:
            className: A
            priority: 11
            attachments: [1]
          odd:
            className: A
            attachments:
              rate: .inf
              when: !!binary aGVsbG8=
              twice: 1
              twice: 2
          text: here
          good2: {className: A, id: other}
          again: {className: A}
          again: {className: B}
        """
    file = parse(text)
    assert sorted(file.tasks) == ["good"]
    assert file.broken == {"typo", "none", "wrong", "odd", "text", "good2", "again"}
    assert told(text) == [
        "tasks.yaml:4: TaskWorkers.typo.classNam: no field of a task; className is one",
        "tasks.yaml:3: TaskWorkers.typo.className: it is missing",
        "tasks.yaml:5: TaskWorkers.none.className: it is missing",
        "tasks.yaml:9: TaskWorkers.wrong.priority: Input should be less than or equal to 10",
        "tasks.yaml:10: TaskWorkers.wrong.attachments: attachments must be a Pydantic BaseModel instance"
        " or a dict, not list",
        "tasks.yaml:17: TaskWorkers.odd.attachments.twice: it is there twice",
        "tasks.yaml:18: TaskWorkers.text: must be an object with className and attachments",
        "tasks.yaml:19: TaskWorkers.good2.id: another id than the task's name",
        "tasks.yaml:21: TaskWorkers.again: it is there twice, first in line 20",
    ]


def test_values_without_a_spelling_in_json() -> None:
    text = "TaskWorkers: {a: {className: A, attachments: {rate: .nan, ids: [1, 99999999999999999], raw: !!set {x}}}}"
    assert [problem.split(": ", 2)[1:] for problem in told(text)] == [
        ["TaskWorkers.a.attachments.rate", "neither infinity nor NaN can be a parameter"],
        ["TaskWorkers.a.attachments.ids.1", "a number above 2**53; put it in quotes"],
        ["TaskWorkers.a.attachments.raw", "set can't be written as JSON"],
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "tasks.yaml:1: it is empty"),
        ("[]", "tasks.yaml:1: there is no TaskWorkers"),
        ("\ntasks: {}", "tasks.yaml:2: there is no TaskWorkers"),
        ("TaskWorkers:", "tasks.yaml:1: TaskWorkers must map task ids"),
        ("TaskWorkers: {}\nTaskWorkers: {}", "tasks.yaml:2: TaskWorkers is there twice"),
        ("TaskWorkers:\n  a: {className: A\n  b: 3", "tasks.yaml:3: not YAML"),
        ("a: 1\n---\nb: 1", "tasks.yaml:2: not YAML: but found another document"),
        ("TaskWorkers: \n  a: &x\n    b: *nobody", "tasks.yaml:3: not YAML: found undefined alias"),
        ("TaskWorkers:\n  a: !!python/name:os.system", "tasks.yaml:2: not YAML: could not determine a constructor"),
        ("\x00", "tasks.yaml:1: not YAML"),
    ],
)
def test_what_is_no_task_file_says_where(text: str, problem: str) -> None:
    with pytest.raises(TaskFileError) as raised:
        parse_task_file("tasks.yaml", text.encode())
    assert str(raised.value).startswith(problem)


def test_aliases_can_neither_explode_nor_go_round() -> None:
    bomb = ["TaskWorkers:", "  a:", "    className: A", "    attachments:", "      x0: &x0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    bomb += [f"      x{at}: &x{at} [{', '.join([f'*x{at - 1}'] * 9)}]" for at in range(1, 10)]
    with pytest.raises(TaskFileError, match=f"more than {VALUES_MOST} values"):
        parse("\n".join(bomb))
    assert told("TaskWorkers:\n  a:\n    className: A\n    attachments: &r\n      again: *r") == [
        "tasks.yaml:4: TaskWorkers.a.attachments.again: an alias of something that it is itself a part of"
    ]


def test_the_line_of_a_field_is_found_by_name_and_alias_and_through_merges() -> None:
    file = parse("""\
        base: &base
          className: Cam
          attachments: {fixFrame: 1}
        TaskWorkers:
          a:
            <<: *base
            priority: 1
            attachments:
              fixFrame: 30
              doors:
                - {pin: 1}
                - {pin: 2}
          b:
            <<: *base
        """)
    task = file.tasks["a"]
    lines = [task.line_of("attachments", *path) for path in (("fix_frame",), ("doors", "1", "pin"), ("no", "such"), ())]
    assert lines == [9, 12, 8, 8]
    assert (task.line_of(), task.line_of("className"), file.tasks["b"].line_of("attachments", "fixFrame")) == (5, 2, 3)
    assert file.tasks["b"].doc["attachments"] == {"fixFrame": 1}


def test_differences_leave_what_is_broken_as_it_was() -> None:
    def tasks(**entries: Any) -> str:
        return "TaskWorkers:\n" + "".join(f"  {name}: {text}\n" for name, text in entries.items())

    before = parse(tasks(same="{className: A}", gone="{className: A}", broken="{className: A}", new="{className: A}"))
    after = parse(
        "# moved\n" + tasks(new="{className: B}", same="{className: A}", broken="{klass: A}", come="{className: A}")
    )
    changed, gone = differences(before.tasks, after)
    assert ([task.task_id for task in changed], list(gone)) == (["new", "come"], ["gone"])
    assert differences(before.tasks, before) == ([], [])
