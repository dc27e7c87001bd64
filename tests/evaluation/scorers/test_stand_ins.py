"""The stand-ins say what is in a picture, through the benchmarks' own rules and parsers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_backbone
from unigame.errors import UserError
from unigame.evaluation.scorers.judges import JudgeUnavailable, Rubric
from unigame.evaluation.scorers.stand_ins import (
    LayoutEncoder,
    ObjectEncoder,
    ReaderColours,
    SyntheticDetector,
    SyntheticJudge,
    stand_in_encoders,
)
from unigame.evaluation.tasks.geneval.rules import countable, judge, relative_position
from unigame.evaluation.tasks.unifiedbench.rules import cosine
from unigame.evaluation.tasks.wise.rules import read_official
from unigame.synthetic.dataset import to_pil
from unigame.synthetic.reader import look, read
from unigame.synthetic.world import CELLS, Scene, Thing, random_scene, render, shape_mask

RED_DISC, BLUE_CROSS = Thing(0, "red", "disc"), Thing(4, "blue", "cross")
BOTH = Scene((RED_DISC, BLUE_CROSS))


# ---- the reader's measurements -------------------------------------------------------------------
def test_looking_finds_what_reading_finds_and_where_it_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = render(random_scene(rng, combinations="all"))
        assert {each.triple for each in look(image)} == read(image)
    seen = look(render(Scene((Thing(5, "pink", "square", radius=6.05),))))[0]
    expected = np.zeros((48, 48), np.float32)
    expected[16:32, 32:48] = shape_mask("square", 6.05)
    assert np.abs(seen.mask - expected).max() < 0.01
    assert seen.fit > 0.98 and seen.amplitude == pytest.approx(1, abs=0.02)


def test_a_half_drawn_object_fits_as_well_but_is_faint_and_a_smeared_one_fits_badly() -> None:
    empty, full = render(Scene(())), render(Scene((BLUE_CROSS,)))
    faint = look(empty + 0.6 * (full - empty))[0]
    assert faint.amplitude == pytest.approx(0.6, abs=0.05) and faint.fit > 0.95
    smeared = full.copy()
    smeared[16:32, 24:32] = smeared[16:32, 16:24]
    assert all(each.fit < 0.85 for each in look(smeared))


# ---- GenEval -------------------------------------------------------------------------------------
def test_detections_have_tight_boxes_and_masks_in_the_right_cell() -> None:
    (found,) = SyntheticDetector().detect([to_pil(Scene((Thing(4, "red", "square", 6.0),)))])
    (one,) = found
    assert one.class_name == "square" and one.mask is not None and one.mask.dtype == bool
    x0, y0, x1, y1 = one.box
    assert (x0, y0, x1, y1) == (18, 18, 30, 30)  # half side 0.92 * 6 about the middle of 16..32
    assert one.mask[18:30, 18:30].any(0).all() and one.mask.sum() == one.mask[18:30, 18:30].sum()


def verdict(metadata: dict[str, object], scene: Scene) -> bool:
    image = to_pil(scene)
    objects = countable(SyntheticDetector().detect([image])[0], str(metadata["tag"]))
    return judge(
        metadata, objects, lambda name, some: ReaderColours().classify(image, some, name)
    ).correct


@pytest.mark.parametrize(
    ("metadata", "right"),
    [
        ({"tag": "colors", "include": [{"class": "disc", "count": 1, "color": "red"}]}, True),
        ({"tag": "colors", "include": [{"class": "disc", "count": 1, "color": "blue"}]}, False),
        ({"tag": "single_object", "include": [{"class": "square", "count": 1}]}, False),
        (
            {
                "tag": "counting",
                "include": [{"class": "disc", "count": 1}],
                "exclude": [{"class": "disc", "count": 2}],
            },
            True,
        ),
        ({"tag": "counting", "include": [{"class": "disc", "count": 2}]}, False),
    ],
)
def test_genevals_rules_see_what_was_drawn(metadata: dict[str, object], right: bool) -> None:
    assert verdict(metadata, BOTH) is right


def test_relations_of_cells_in_line_survive_the_margin_of_the_rules() -> None:
    for first in range(9):
        for second in range(9):
            if first == second or (first // 3 != second // 3 and first % 3 != second % 3):
                continue
            scene = Scene((Thing(first, "red", "disc", 6.8), Thing(second, "blue", "cross", 5.3)))
            boxes = {d.class_name: d.box for d in SyntheticDetector().detect([to_pil(scene)])[0]}
            expected = (
                ("left of" if first < second else "right of")
                if first // 3 == second // 3
                else ("above" if first < second else "below")
            )
            assert relative_position(boxes["disc"], boxes["cross"]) == [expected]


def test_colours_of_objects_that_are_not_there_are_none() -> None:
    (found,) = SyntheticDetector().detect([to_pil(BOTH)])
    assert ReaderColours().classify(to_pil(BOTH), found, "disc") == ["red", "blue"]
    assert ReaderColours().classify(to_pil(Scene(())), found, "disc") == ["none", "none"]


# ---- WISE ----------------------------------------------------------------------------------------
def judged(image: Image.Image, explanation: str, folder: Path) -> dict[str, float]:
    path = folder / "picture.png"
    image.save(path)
    return read_official(SyntheticJudge().reply("a prompt", explanation, path, Rubric()))


@pytest.mark.parametrize(
    ("drawn", "consistency"),
    [
        ((RED_DISC,), 2),
        ((Thing(0, "red", "square"),), 1),  # one of three is wrong
        ((Thing(8, "red", "disc"),), 1),
        ((RED_DISC, BLUE_CROSS), 1),  # and something else
        ((Thing(8, "red", "square"),), 0),
        ((), 0),
    ],
)
def test_consistency_is_agreement_with_the_explanation(
    drawn: tuple[Thing, ...], consistency: int, tmp_path: Path
) -> None:
    text = "This is one northwest red disc and no more."
    scores = judged(to_pil(Scene(drawn)), text, tmp_path)
    assert scores["consistency"] == consistency
    assert set(scores) == {"consistency", "realism", "aesthetic_quality"}


@pytest.mark.parametrize(
    ("question", "reply"),
    [
        ("is there a disc?", "yes"),
        ("is there a red disc?", "yes"),
        ("is there a blue disc?", "no"),
        ("is the red disc at northwest?", "yes"),
        ("is the red disc at centre?", "no"),
        ("is the red disc above the blue cross?", "yes"),
        ("is the blue cross left of the red disc?", "no"),
        ("are there 2 shapes?", "yes"),
        ("are there 3 shapes?", "no"),
    ],
)
def test_without_an_explanation_it_answers_a_question(
    question: str, reply: str, tmp_path: Path
) -> None:
    scene = Scene((RED_DISC, BLUE_CROSS))
    to_pil(scene).save(tmp_path / "picture.png")
    assert SyntheticJudge().reply(question, "", tmp_path / "picture.png", Rubric()) == reply


def test_realism_falls_with_smeared_objects_and_aesthetics_with_an_uneven_ground(
    tmp_path: Path,
) -> None:
    text = "northwest red disc, centre blue cross"
    clean = judged(to_pil(BOTH), text, tmp_path)
    assert clean == {"consistency": 2, "realism": 2, "aesthetic_quality": 2}
    pixels = np.asarray(to_pil(BOTH)).copy()
    pixels[16:32, 24:32] = pixels[16:32, 16:24]
    assert judged(Image.fromarray(pixels), text, tmp_path)["realism"] < 2
    noise = np.random.default_rng(0).normal(0, 60, (48, 48, 3))
    noisy = Image.fromarray((np.asarray(to_pil(BOTH)) + noise).clip(0, 255).astype(np.uint8))
    assert judged(noisy, text, tmp_path)["aesthetic_quality"] == 0


def test_what_cannot_be_judged_is_unavailable_for_good(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for picture, explanation in (("broken.png", "north red disc"), ("missing.png", "mooncakes")):
        with pytest.raises(JudgeUnavailable) as caught:
            SyntheticJudge().reply("a prompt", explanation, tmp_path / picture, Rubric())
        assert not caught.value.retryable


def test_pictures_as_the_bundled_model_draws_them_are_read_alike(tmp_path: Path) -> None:
    small = to_pil(BOTH).resize((36, 36), Image.Resampling.BICUBIC)
    large, found = (SyntheticDetector().detect([each])[0] for each in (to_pil(BOTH), small))
    assert [each.class_name for each in found] == ["disc", "cross"]
    for one, other in zip(large, found, strict=True):
        assert other.score > 0.9 and np.abs(np.subtract(one.box, other.box)).max() <= 1
    assert ReaderColours().classify(small, found, "disc") == ["red", "blue"]
    assert judged(small, "northwest red disc, centre blue cross", tmp_path)["consistency"] == 2
    small.save(tmp_path / "small.png")
    asked = ("is the red disc above the blue cross?", "", tmp_path / "small.png", Rubric())
    assert SyntheticJudge().reply(*asked) == "yes"


def test_pictures_of_another_size_are_not_of_this_world(tmp_path: Path) -> None:
    large = Image.new("RGB", (384, 384))
    large.save(tmp_path / "large.png")
    with pytest.raises(UserError, match="36 to 48 px, not 384 x 384"):
        SyntheticDetector().detect([large])
    with pytest.raises(UserError, match="choose a real"):
        SyntheticJudge().reply("", "north red disc", tmp_path / "large.png", Rubric())


# ---- UnifiedBench --------------------------------------------------------------------------------
@pytest.mark.parametrize("encoder", [ObjectEncoder(), LayoutEncoder()])
def test_encoders_put_equal_pictures_together_and_others_apart(
    encoder: ObjectEncoder | LayoutEncoder,
) -> None:
    scenes = [
        *(BOTH, BOTH),
        Scene((RED_DISC, Thing(4, "blue", "disc"))),  # another shape
        Scene((RED_DISC, Thing(4, "yellow", "cross"))),  # another colour
        Scene((Thing(8, "green", "cross"),)),
    ]
    vectors_ND = encoder.encode([to_pil(scene) for scene in scenes]).astype(np.float64)
    same, shape, colour, far = cosine(np.repeat(vectors_ND[:1], 4, axis=0), vectors_ND[1:])
    assert same == pytest.approx(1) and far < 0.3
    assert 0.2 < shape < 0.99 and 0.2 < colour < 0.99
    empty = encoder.encode([to_pil(Scene(()))])
    assert empty.shape[0] == 1


def test_the_backbones_tower_is_read_pooled_and_whole() -> None:
    backbone = tiny_backbone()
    images = [to_pil(BOTH), to_pil(Scene(()))]
    pooled, whole, *others = stand_in_encoders(backbone)
    features_BND = backbone.image_features(backbone.preprocess(images))
    assert torch.equal(torch.tensor(pooled.encode(images)), features_BND.mean(1))
    assert torch.equal(torch.tensor(whole.encode(images)), features_BND.flatten(1))
    names = [encoder.name for encoder in (pooled, whole, *others)]
    assert len(set(names)) == 4


def test_explanations_of_all_cells_are_understood(tmp_path: Path) -> None:
    for cell, name in enumerate(CELLS):
        scores = judged(
            to_pil(Scene((Thing(cell, "cyan", "triangle"),))),
            f"This is one {name} cyan triangle and no more.",
            tmp_path,
        )
        assert scores["consistency"] == 2
