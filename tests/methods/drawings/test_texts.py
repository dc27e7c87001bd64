"""Captions from files: what is read, and what is refused by name and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unigame.errors import UserError
from unigame.methods.drawings.texts import Text, digest, read_lines, read_texts

BALL = Text("a red ball", (("what colour is it?", "red"), ("how many?", "1")))


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def test_a_caption_a_line(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", "a red ball\n\n two cats \na red ball\n")
    assert read_texts(file) == [Text("a red ball"), Text("two cats")]


def test_a_separator_inside_a_sentence_ends_no_line(tmp_path: Path) -> None:
    """Unicode's separators and a form feed may stand in a caption, and raw in a JSON string."""
    odd = "a red ball\u2028on a\x85 table"
    assert read_texts(written(tmp_path / "a.txt", f"{odd}\ntwo cats")) == [
        Text(odd),
        Text("two cats"),
    ]
    row = json.dumps({"caption": odd}, ensure_ascii=False)
    assert read_texts(written(tmp_path / "a.jsonl", f"{row}\n{row}")) == [Text(odd)]
    assert read_lines(written(tmp_path / "b.txt", f"{odd}\rwhy?"), "old") == [odd, "why?"]


def test_rows_of_one_caption_are_put_together(tmp_path: Path) -> None:
    rows = [
        {"caption": "a red ball", "question": "what colour is it?", "answer": "red"},
        {"caption": "a red ball", "questions": [{"question": "how many?", "answer": 1}]},
    ]
    lines = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    whole = written(tmp_path / "a.json", json.dumps(rows))
    assert read_texts(lines) == read_texts(whole) == [BALL]
    assert digest([BALL]) != digest([Text("a red ball")])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", " \n", "no caption"),
        ("a.csv", "caption", r"\.jsonl"),
        ("a.json", "{}", "no list"),
        ("a.jsonl", '{"caption": "x"}\n{', "line 2"),
        ("a.jsonl", "[]", "line 1"),
        ("a.jsonl", '{"caption": " "}', "caption"),
        ("a.jsonl", '{"caption": "x", "question": "what?"}', "answer"),
        ("a.jsonl", '{"caption": "x", "questions": ["what?"]}', "questions"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_texts(written(tmp_path / name, text))


def test_a_missing_file_is_named_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"old_questions=.*nowhere"):
        read_lines(tmp_path / "nowhere.txt", "old_questions")
