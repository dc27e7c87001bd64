"""A seed of its own for every picture, sample and rank: hashed, never added to the run's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from PIL import Image

import unigame
from tests.tiny import shared_tiny_janus
from tests.tiny_composed import shared_vlm_unet
from unigame import cli
from unigame.backbones import load_backbone
from unigame.seeds import derive_seed, seeds_of_rows

PACKAGE = Path(unigame.__file__).parent
OPTIONS = {"guidance_scale": 1.0}


def test_neighbouring_seeds_share_nothing():
    found = [derive_seed(seed, row) for seed in range(50) for row in range(50)]
    assert len(set(found)) == 2_500
    assert all(0 <= seed < 2**63 for seed in found)
    assert derive_seed(1, "a", 0) == derive_seed(1, "a", 0)
    assert derive_seed(1, "ab", 0) != derive_seed(1, "a", "b0")


def test_a_name_that_is_no_unicode_has_a_seed_too():
    assert derive_seed(0, "pict\udcffure") != derive_seed(0, "picture")


def test_another_number_of_seeds_than_of_rows_is_a_fault():
    assert seeds_of_rows(2, 0, [5, 6]) == [5, 6]
    assert seeds_of_rows(1, 7) == seeds_of_rows(9, 7)[:1] == [7]
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        seeds_of_rows(2, 0, [5])


@pytest.fixture(scope="module", params=[shared_tiny_janus, shared_vlm_unet])
def backbone(request):
    return load_backbone(str(request.param()), dtype="float32").eval()


def test_a_picture_does_not_depend_on_how_many_are_drawn(backbone):
    four = backbone.generate(["red circle"] * 4, seed=3, **OPTIONS)
    one = backbone.generate(["red circle"], seed=3, **OPTIONS)
    torch.testing.assert_close(four[:1], one)


def test_the_pictures_of_one_seed_are_not_those_of_the_next(backbone):
    pictures = [
        tuple((image * 255).round().byte().flatten().tolist())
        for seed in range(5)
        for image in backbone.generate(["red circle"] * 5, seed=seed, **OPTIONS)
    ]
    assert len(set(pictures)) == 25


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """``unigame generate`` with some numbers of pictures and seeds: their pixels, in order."""
    model, folder = shared_tiny_janus(), tmp_path_factory.mktemp("drawn")

    def run(count: int, seed: int) -> list[bytes]:
        output = folder / f"{count}-{seed}.png"
        words = ["generate", "red circle", "--model", model, "--output", output, "--seed", seed]
        assert cli.main([str(word) for word in (*words, "--num-images", count)]) == 0
        names = [output] if count == 1 else [folder / f"{count}-{seed}-{i + 1}.png"
                                             for i in range(count)]  # fmt: skip
        return [Image.open(name).tobytes() for name in names]

    return run


def test_generate_draws_the_same_first_pictures_however_many_are_asked_for(drawn):
    six = drawn(6, 0)
    assert drawn(1, 0) == six[:1]
    assert drawn(4, 0) == six[:4]


def test_picture_5_of_seed_0_is_not_picture_1_of_seed_4(drawn):
    assert len(set(drawn(6, 0)) | set(drawn(6, 4))) == 12


def test_no_seed_is_made_by_adding_to_another():
    added = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
                sides = {ast.unparse(side).split(".")[-1] for side in (node.left, node.right)}
                if sides & {"seed", "seeds", "data_seed"}:
                    added.append(f"{file.relative_to(PACKAGE)}: {ast.unparse(node)}")
    assert added == []
