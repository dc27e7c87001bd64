"""`unigame data` and `--data FILE`: what is there, what is left out, and rows as a model reads."""

import pytest
from PIL import Image

from tests.data.files import BLUE, RED, png, write, write_jsonl
from unigame import cli
from unigame.training.recipe import load_recipe


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


# ---- what the first look could not be told -------------------------------------------------------


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A table of unusual columns, its pictures in another folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my photos/red.png", png(RED))
    rows = [{"picture": "red.png", "q": "what colour is it?", "a": "red", "n": 1}]
    return write_jsonl(tmp_path / "cols.jsonl", rows)


LISTED = "[{type: vqa, path: cols.jsonl, columns: {image: picture, question: q, answer: a}}]"


def test_columns_and_the_picture_folder_can_be_named(odd, tiny_path, capsys):
    look = ["--model", str(tiny_path)]
    assert cli.main(["data", "cols.jsonl", *look]) == 2
    assert f"--data '{LISTED}'" in capsys.readouterr().err
    assert cli.main(["data", LISTED, *look]) == 2
    said = capsys.readouterr().err
    assert "my photos" not in said and f"no file '{odd.parent}/red.png'" in said
    assert "unigame data --images FOLDER" in said
    assert cli.main(["data", LISTED, "--images", "my photos", *look]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 rows, 0 skipped" in said and "trained: red" in said
    assert f"unigame train RECIPE --data '{LISTED}' --data.0.images 'my photos'" in said


def test_a_folder_that_goes_with_nothing_is_refused(odd, tiny_path, capsys):
    for words, said in (
        ([LISTED, "--images", "gone"], "--images: gone does not exist"),
        (["[{type: synthetic}]", "--images", "my photos"], "leave --images out"),
        (["[{type: synthetic}, {type: synthetic}]", "--images", "my photos"], "of several"),
        (["{type: synthetic}"], "write [ and ] around it"),
        (["[x]", "--images", "my photos"], "source 0 needs a type"),
        (["[x"], "not valid YAML"),
        (["[xy]*.jsonl"], "[xy]*.jsonl does not exist"),  # a glob
    ):
        assert cli.main(["data", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_recipe_of_data_alone_is_read_by_the_bundled_model(odd, tiny_path, capsys):
    write(odd.parent / "own.yaml", f"data: {LISTED}\n")
    assert cli.main(["data", "own.yaml", "--images", "my photos"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "own.yaml names no model, so janus-nano reads its data: vqa" in said
    assert "unigame train own.yaml --model janus-nano --data.0.images 'my photos'" in said
    assert cli.main(["data", "own.yaml", "--images", "my photos", "--model", str(tiny_path)]) == 0
    assert f"--model {tiny_path}" in capsys.readouterr().out


def test_pictures_that_cannot_be_read_are_named_under_the_sheet(odd, tiny_path, capsys):
    write(odd.parent / "cut.png", png(BLUE)[:40])
    rows = [
        {"image": name, "caption": "x", "id": name} for name in ("my photos/red.png", "cut.png")
    ]
    write_jsonl(odd.parent / "c.jsonl", rows)
    assert cli.main(["data", "c.jsonl", "--model", str(tiny_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Contact sheet of 1 pictures" in said and "1 rows of the sheet" in said
    assert "cut.png: corrupt image (" in said and "verify: decode" in said


def test_data_that_is_named_twice_is_both(odd):
    write_jsonl(odd.parent / "a.jsonl", [{"image": "a.png", "caption": "red"}])
    write_jsonl(odd.parent / "b.jsonl", [{"image": "a.png", "question": "?", "answer": "red"}])
    words = ["--use_cpu", "--data", "a.jsonl", "--data.1.limit=3", "--data", "b.jsonl"]
    recipe = load_recipe("janus_nano", [*words, "--data", LISTED])
    assert [source["path"] for source in recipe.data] == ["a.jsonl", "b.jsonl", "cols.jsonl"]
    assert recipe.data[1] == {"type": "vqa", "path": "b.jsonl", "limit": 3}
    assert len(recipe.found) == 2 and len(recipe.eval_data) == 1
