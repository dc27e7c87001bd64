"""`unigame data` and `--data FILE`: what is there, what is left out, and rows as a model reads."""

import pytest
from PIL import Image

from tests.data.files import BLUE, RED, png, write, write_jsonl
from unigame import cli


@pytest.fixture
def chat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "red ü.png", png(RED))
    write(tmp_path / "blue.png", png(BLUE))
    rows = [
        {"id": name, "image": image, "messages": asked("<image>what colour is it?", colour)}
        for name, image, colour in (
            ("a", "red ü.png", "red"),
            ("b", "blue.png", "blue"),
            ("c", "gone.png", "green"),
            ("d", "blue.png", "<|User|>"),
        )
    ]
    return write_jsonl(tmp_path / "chat.jsonl", rows)


def asked(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_data_set_is_shown_as_the_model_reads_it(chat, tiny_path, capsys):
    assert cli.main(["data", chat.name, "--model", str(tiny_path), "--rows", "9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "type: chat" in said
    assert "3 rows, 1 skipped: 1 missing image (c)" in said
    assert "1 that" in said and "d: cannot be used: '<|User|>' in its answer" in said
    assert "[picture, 16 tokens]<end_of_image> what colour is it ?" in said
    assert "trained: red <|end_of_text|>" in said
    assert "unigame train RECIPE --data chat.jsonl" in said
    with Image.open(chat.parent / "contact_sheet.png") as sheet:
        assert sheet.getpixel((110, 150)) == RED


def test_rows_of_text_alone_and_of_several_pictures(chat, tiny_path, capsys):
    rows = [
        {"id": "t", "messages": asked("is it big", "no")},
        {"id": "s", "images": ["red ü.png", "blue.png"], "messages": asked("how many", "two")},
        {"id": "m", "images": ["blue.png"] * 9, "messages": asked("how many", "two")},
    ]
    write_jsonl(chat.parent / "more.jsonl", rows)
    assert cli.main(["data", "more.jsonl", "--model", str(tiny_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 rows (1 of text alone, 2 of several pictures), 0 skipped" in said
    assert "reads: <|begin_of_text|> <|User|> : is it big <|Assistant|> :" in said
    assert said.count("[picture, 16 tokens]") == 2
    assert "m: cannot be used: more pictures than the model takes (8)" in said
    with Image.open(chat.parent / "contact_sheet.png") as sheet:  # side by side
        assert (sheet.getpixel((60, 190)), sheet.getpixel((160, 190))) == (RED, BLUE)


def test_a_recipe_and_a_data_set_that_is_not_there(tiny_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "r.yaml",
        f"model: {tiny_path}\ndata: [{{type: synthetic, size: 4}}]\ntraining: {{use_cpu: true}}\n",
    )
    assert cli.main(["data", "r.yaml", "--limit", "2", "--sheet", "s.png"]) == 0
    said = capsys.readouterr().out
    assert "synthetic" in said and "2 rows" in said and "unigame train r.yaml" in said
    assert (tmp_path / "s.png").is_file()
    assert cli.main(["data", "gone.json"]) == 2
    assert "gone.json" in capsys.readouterr().err
    assert cli.main(["data", "r.yaml", "--sheet", "new/folder/s.png"]) == 0
    assert (tmp_path / "new/folder/s.png").is_file()


def test_where_the_sheet_goes_is_checked_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", "x")
    table = write(tmp_path / "my.csv", "image,caption\n")
    for sheet in ("file/s.png", "my.csv", "."):
        assert cli.main(["data", "gone.json", "--sheet", sheet]) == 2
        said = capsys.readouterr().err
        assert "--sheet" in said and "gone.json" not in said
    assert table.read_text() == "image,caption\n"
