"""What is left out of the data is said, and too much of it stops the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import unigame.backbones
from tests.data.files import png
from tests.training.helpers import blocks
from unigame.data import build_dataset
from unigame.errors import UserError
from unigame.training.run import main
from unigame.training.skip_report import UnreadablePictures, report_skips


def table(folder: Path, name: str, present: int, rows: int, content: bytes | None = None) -> dict:
    """A source whose first ``present`` pictures are there; ``content`` for the others."""
    (folder / name).mkdir()
    for number in range(rows):
        if number < present:
            (folder / name / f"{number}.png").write_bytes(png())
        elif content is not None:
            (folder / name / f"{number}.png").write_bytes(content)
    file = folder / name / "t.json"
    questions = [
        {"image": f"{n}.png", "question": "is it red", "answer": "yes", "id": f"{name}{n}"}
        for n in range(rows)
    ]
    file.write_text(json.dumps(questions))
    return {"type": "vqa", "path": str(file)}


def recipe(folder: Path, model: Path, **tree: Any) -> Path:
    settings = {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "methods": ["sft"],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    path = folder / "recipe.yaml"
    content = {"model": str(model), "lora": {"r": 2}, **blocks(settings), **tree}
    path.write_text(yaml.safe_dump(content))
    return path


def test_what_was_left_out_of_every_source_is_printed(
    tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [table(tmp_path, "a", 6, 8), table(tmp_path, "b", 4, 4)]
    held_out = [table(tmp_path, "c", 2, 3)]
    main(recipe(tmp_path, tiny_path, data=data, eval_data=held_out))
    lines = capsys.readouterr().err.splitlines()
    assert any("data: source 0" in s and "6 rows, 2 skipped: 2 missing image" in s for s in lines)
    assert any("data: source 1" in s and "4 rows, 0 skipped" in s for s in lines)
    assert any("eval_data: source 0" in s and "2 rows, 1 skipped" in s for s in lines)
    assert any("a6" in s for s in lines), "an example is named"


@pytest.mark.parametrize("block", ["data", "eval_data"])
def test_a_source_that_lost_most_of_its_rows_stops_the_run_before_the_model(
    tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(unigame.backbones, "load_backbone", refuse)
    whole, bad = [table(tmp_path, "a", 4, 4)], [table(tmp_path, "b", 1, 100)]
    blocks = {"data": whole, "eval_data": whole, block: [*whole, *bad]}
    path = recipe(tmp_path, tiny_path, **blocks)
    said = rf"^{block}: source 1 .*: 99 of 100 rows .*max_skipped_share 0\.5.*99 missing image"
    with pytest.raises(UserError, match=said):
        main(path)


def test_the_share_is_a_setting(tmp_path: Path) -> None:
    data = build_dataset([table(tmp_path, "a", 1, 4)])
    report_skips(data, "data", max_share=0.75)
    with pytest.raises(UserError, match=r"3 of 4 rows .* max_skipped_share 0\.7 "):
        report_skips(data, "data", max_share=0.7)
    report_skips(None, "eval_data", max_share=0)


def test_pictures_that_turn_out_damaged_in_training_are_said(
    tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [table(tmp_path, "a", 1, 40, content=b"<html>404</html>")]
    path = recipe(tmp_path, tiny_path, data=data, eval_data=data)
    main(path, ["--per_device_train_batch_size", "16"])
    said = capsys.readouterr().err
    assert "warning: data: the pictures of" in said
    assert "data: the pictures of" in said.split("warning")[-1]
    assert "eval_data: the pictures of" in said


def test_a_few_damaged_pictures_are_counted_without_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = UnreadablePictures(max_share=0.5)
    count.count("data", read=1, unreadable=3)  # too few rows to judge by
    for _ in range(10):
        count.count("data", read=8, unreadable=0)
    assert capsys.readouterr().err == ""
    count.on_train_end()
    assert "3 of 84 rows" in capsys.readouterr().err
    UnreadablePictures(max_share=0.5, speaks=False).count("data", 0, 100)
    assert capsys.readouterr().err == ""
