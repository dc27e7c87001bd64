"""COCO's pictures by number and name: the photo, never a mask, and no choice between two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unigame.errors import UserError
from unigame.evaluation.base import DataSource
from unigame.evaluation.coco_pictures import CocoPictures
from unigame.evaluation.tasks.vqav2.task import read_vqa_files

NUMBER = "000000000042"


def draw(root: Path, *names: str) -> None:
    """Pictures that differ: each one is wider than the one before."""
    for width, name in enumerate(names, start=4):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 8)).save(root / name)


def found(root: Path, subset: str | None = "val2014") -> str | None:
    path = CocoPictures(root, subset).by_id(42)
    return None if path is None else path.relative_to(root).as_posix()


@pytest.mark.parametrize(
    "mask",
    [
        f"annotations/panoptic_val2014/{NUMBER}.png",
        f"panoptic_val2014/{NUMBER}.png",
        f"stuffthingmaps/val2014/{NUMBER}.png",
        f"stuffthingmaps/val2014/COCO_val2014_{NUMBER}.png",
        f"Masks/{NUMBER}.jpg",
        f"annotations/{NUMBER}.jpg",
    ],
)
def test_a_mask_is_never_shown_for_the_photo(tmp_path, mask):
    draw(tmp_path, "other.jpg", mask)
    assert found(tmp_path) is None  # no photo is no photo
    draw(tmp_path, f"val2014/COCO_val2014_{NUMBER}.jpg")
    for subset in ("val2014", "val2017", None):
        assert found(tmp_path, subset) == f"val2014/COCO_val2014_{NUMBER}.jpg"


def test_the_exact_name_for_the_split_goes_first(tmp_path):
    exact = f"z/COCO_val2014_{NUMBER}.jpg"
    others = [f"a/{NUMBER}.jpg", "a/42.png", f"train2014/COCO_train2014_{NUMBER}.jpg"]
    draw(tmp_path, exact, *others)
    assert found(tmp_path) == exact
    assert found(tmp_path, "train2014") == others[2]
    draw(tmp_path, f"val2017/{NUMBER}.jpg")
    assert found(tmp_path, "val2017") == f"val2017/{NUMBER}.jpg"


def test_two_candidates_are_an_error_that_names_both(tmp_path):
    names = [f"train2014/COCO_train2014_{NUMBER}.jpg", f"val2014/COCO_val2014_{NUMBER}.jpg"]
    draw(tmp_path, *names)
    with pytest.raises(UserError, match=f"image id 42 .*{names[0]} or .*{names[1]}"):
        found(tmp_path, None)
    draw(tmp_path, f"a/{names[1]}", f"b/{names[1]}")
    name = Path(names[1]).name
    with pytest.raises(UserError, match=f"{name} .*a/{names[1]} or .*b/{names[1]}"):
        CocoPictures(tmp_path).by_name(name)
    with pytest.raises(UserError, match="image id 42"):
        found(tmp_path)


def test_links_and_copies_are_no_second_candidate(tmp_path):
    draw(tmp_path, f"images/COCO_val2014_{NUMBER}.jpg")
    (tmp_path / "val2014").symlink_to(tmp_path / "images")
    (tmp_path / "copy").mkdir()
    photo = (tmp_path / f"images/COCO_val2014_{NUMBER}.jpg").read_bytes()
    (tmp_path / f"copy/COCO_val2014_{NUMBER}.jpg").write_bytes(photo)
    (tmp_path / f"copy/._COCO_val2014_{NUMBER}.jpg").write_bytes(b"mac")
    assert found(tmp_path) == f"copy/COCO_val2014_{NUMBER}.jpg"
    pictures = CocoPictures(tmp_path)
    assert pictures.by_name(f"COCO_val2014_{NUMBER}.jpg") is not None
    assert pictures.by_name(f"COCO_val2014_{NUMBER}.png") is not None  # by its number


def test_vqas_questions_say_whose_pictures_they_mean(tmp_path):
    draw(
        tmp_path,
        f"annotations/panoptic_val2014/{NUMBER}.png",
        f"train2014/COCO_train2014_{NUMBER}.jpg",
        f"val2014/COCO_val2014_{NUMBER}.jpg",
    )
    question = {"question_id": 1, "image_id": 42, "question": "Q?"}
    annotation = {"question_id": 1, "image_id": 42, "answers": [{"answer": "a"}]}
    for what, entry in (("questions", question), ("annotations", annotation)):
        file = tmp_path / f"v2_mscoco_val2014_{what}.json"
        file.write_text(json.dumps({what: [entry]}))
    (row,) = read_vqa_files(tmp_path, "validation")
    assert row["image"] == tmp_path / f"val2014/COCO_val2014_{NUMBER}.jpg"


def test_popes_pictures_are_those_that_it_names(tmp_path):
    from unigame.evaluation.tasks.pope.task import read_pope

    draw(
        tmp_path,
        f"annotations/panoptic_val2014/{NUMBER}.png",
        f"val2014/{NUMBER}.jpg",
        f"train2014/COCO_train2014_{NUMBER}.jpg",
    )
    row = {"question_id": 1, "text": "Q?", "label": "no", "image": f"COCO_val2014_{NUMBER}.jpg"}
    (tmp_path / "coco_pope_popular.json").write_text(json.dumps(row) + "\n")
    (read,) = read_pope(DataSource(root=tmp_path), "x/y").rows
    assert read["image"] == tmp_path / f"val2014/{NUMBER}.jpg"
