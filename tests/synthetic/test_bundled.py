"""What ships keeps what its gates measured; small samples, so a little slack."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from tools.bagel_nano import gates as bagel_gates
from tools.common import gates as common
from tools.common.pictures import pictures, styled
from tools.janus_nano import clip, gates
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.bundled import bundled_folder
from unigame.evaluation.world import images_of, replies
from unigame.methods.semantics import ClipSimilarity
from unigame.seeds import derive_seed
from unigame.synthetic import SyntheticDataset, caption

FOLDERS = {name: bundled_folder(name) for name in ("janus-nano", "bagel-nano", "janus-nano-clip")}
TRANSFORMERS = {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}
BAGEL = {"ema.safetensors", "ae.safetensors", "llm_config.json", "vit_config.json"}
BANDS = {"janus-nano": gates.BANDS, "bagel-nano": bagel_gates.BANDS}


def loaded(name: str) -> Backbone:
    """A bundled model. Its tests are skipped where its extra is not installed."""
    if name == "bagel-nano":
        pytest.importorskip("diffusers")
    return load_backbone(name, dtype="float32").eval()


@pytest.fixture(scope="module", params=["janus-nano", "bagel-nano"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def nano(name: str) -> Backbone:
    return loaded(name)


@pytest.mark.parametrize(
    ("name", "megabytes", "wanted"),
    [
        ("janus-nano", 16, TRANSFORMERS),
        ("janus-nano-clip", 2, TRANSFORMERS),
        ("bagel-nano", 16, BAGEL | {"config.json", "tokenizer.json"}),
    ],
)
def test_it_is_small_and_in_the_hub_format(name: str, megabytes: int, wanted: set[str]) -> None:
    files = {file.name: file.stat().st_size for file in FOLDERS[name].iterdir()}
    assert sum(files.values()) <= megabytes * 2**20
    assert wanted <= {*files}


def test_no_other_name_is_bundled() -> None:
    assert bundled_folder("owner/janus-nano") is None


def test_janus_nano_draws_captions_with_room_left_and_without_collapse() -> None:
    figures = gates.drawing(FOLDERS["janus-nano"], seed=1, scale=0.15)
    assert figures["tokenizer"] >= 0.98
    low, high = gates.BANDS["drawing"]
    assert low - 0.1 <= figures["drawing"] <= high + 0.05
    assert figures["anchor"] >= 0.96
    assert figures["distinct_of_40"] == 40


def test_bagel_nano_draws_captions_and_redraws_pictures() -> None:
    backbone = loaded("bagel-nano")
    figures, scenes = common.redrawing(backbone, 1, 0.1, bagel_gates.ANCHORS)
    assert min(figures.values()) >= 0.98
    words = [caption(scene) for scene in scenes]
    images = backbone.generate(words, seed=1, guidance_scale=1.0)
    assert common.match(images, scenes) >= 0.95
    again = backbone.generate(words[:1] * 6, seed=1, guidance_scale=1.0)
    assert again.std(0).mean() > 0.01  # of one caption, pictures differ


def test_it_answers_every_kind_above_chance_and_worse_out_of_distribution(
    nano: Backbone, name: str
) -> None:
    shares = {}
    for split in ("validation", "ood_validation"):
        data = SyntheticDataset(split, 360, seed=derive_seed(1, split))
        images = images_of(data.scenes, nano)[torch.tensor([row[0] for row in data.rows])]
        said = replies(nano, images, [row[1] for row in data.rows])
        right = [word == row[2] for word, row in zip(said, data.rows, strict=True)]
        shares[split] = sum(right) / len(right)
        if split == "validation":
            of_kind = defaultdict(list)
            for is_right, row in zip(right, data.rows, strict=True):
                of_kind[row[3]].append(is_right)
            for kind, chance in common.CHANCE.items():
                assert sum(of_kind[kind]) / len(of_kind[kind]) > chance, kind
    low, high = BANDS[name]["understanding"]
    assert low - 0.05 <= shares["validation"] <= high + 0.05
    assert shares["ood_validation"] < shares["validation"] - 0.05


def test_at_eps_zero_without_an_anchor_the_drawing_is_its_own() -> None:
    """Teacher-forced redrawing differs from the codes: the reason why an anchor exists."""
    nano = loaded("janus-nano")
    scenes = SyntheticDataset("validation", 8, 2, questions_per_scene=1).scenes
    states = nano.visual_states(images_of(scenes, nano), [caption(s) for s in scenes])
    with torch.no_grad():
        free = nano.draw(states.states_BNH, states.codes).compact
        held = nano.draw(states.states_BNH, states.codes, anchor=common.ANCHOR).compact
    assert (free != states.codes).float().mean() > 0.1
    assert (held != states.codes).float().mean() < 0.1


def test_it_draws_what_is_named_by_what_one_knows_of_it(name: str, nano: Backbone) -> None:
    temperature = 0.7 if nano.facts.codebook_size else 1.0
    folder = FOLDERS[name]
    assert folder is not None
    assert common.knowing(folder, 1, 0.5, temperature=temperature)["knowledge"] > 0.45


def test_the_verifier_knows_content_from_style() -> None:
    judge = clip.load(FOLDERS["janus-nano-clip"])
    figures = clip.auc_figures(judge.similarity, seed=1, count=150)
    assert min(figures["auc_mild_clean"], figures["auc_mild_alike"]) >= 0.96
    assert min(figures["auc_strong_clean"], figures["auc_strong_alike"]) >= 0.93


def test_self_play_scores_pictures_as_the_recipe_does() -> None:
    rng = np.random.default_rng(0)
    scenes = [styled("contrast", rng) for _ in range(6)]
    images, texts = pictures(scenes), [clip.plain(scene) for scene in scenes]
    scorer = ClipSimilarity("janus-nano-clip", "image-text")
    expected = clip.load(FOLDERS["janus-nano-clip"]).similarity(images, scenes)
    torch.testing.assert_close(scorer(images, images, texts), expected, atol=2e-3, rtol=0)
