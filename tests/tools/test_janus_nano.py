"""The small parts of the bundled model's recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPModel, CLIPProcessor

from tools.common import gates, pictures, reader, reading
from tools.common import vision as eyes
from tools.common.pictures import PX, TOKENS
from tools.common.progress import Log, Loop, chance
from tools.common.reader import cell_targets
from tools.janus_nano import clip, language, tokenizer, vision
from tools.janus_nano.config import nano_config
from unigame.backbones import load_backbone
from unigame.backbones.janus.layout import JanusLayout, build_processor
from unigame.synthetic.dataset import to_pil
from unigame.synthetic.questions import vocabulary
from unigame.synthetic.reader import exact_match, read, truth
from unigame.synthetic.world import random_scene


def clean_scenes(count: int) -> list:  # type: ignore[type-arg]
    rng = np.random.default_rng(3)
    return [random_scene(rng, combinations="all") for _ in range(count)]


def test_pictures_are_what_the_processor_makes_of_a_scene() -> None:
    scenes = pictures.broad_scenes(8, 0, clean=0.2)
    processor = build_processor(vocabulary(), PX, TOKENS)
    made = processor.image_processor([to_pil(s) for s in scenes], return_tensors="pt")
    expected = made["pixel_values"] * 0.5 + 0.5
    torch.testing.assert_close(pictures.pictures(scenes), expected, atol=1e-5, rtol=0)


def test_every_object_is_read_at_the_models_size() -> None:
    scenes = clean_scenes(60)
    found = [read(i) for i in pictures.pictures(scenes).permute(0, 2, 3, 1).numpy()]
    assert exact_match(found, [truth(s) for s in scenes]) == 1.0


def test_busy_patches_lie_in_the_cells_that_hold_an_object() -> None:
    scenes = clean_scenes(20)
    cells, busy = pictures.patch_cells(), pictures.busy_patches(scenes)
    colour, _ = cell_targets(scenes)
    for row in range(len(scenes)):
        held = set(torch.nonzero(colour[row] < 6).flatten().tolist())
        assert set(cells[busy[row]].tolist()) >= held
        centre = cells.view(9, 9)[1::3, 1::3].flatten()  # the middle patch of each cell
        assert set(centre[busy[row].view(9, 9)[1::3, 1::3].flatten()].tolist()) == held


def test_every_style_is_made_and_named() -> None:
    rng = np.random.default_rng(0)
    for style in pictures.STYLES:
        assert pictures.style_of(pictures.styled(style, rng)) == style


def test_tokens_read_are_as_many_as_codes_drawn() -> None:
    processor = build_processor(vocabulary(), PX, TOKENS)
    layout = JanusLayout(processor)
    config = nano_config(len(processor.tokenizer), layout.image_token_id, layout.pad_id)
    assert config.vq_config.num_patches**2 == TOKENS == processor.num_image_tokens
    tower = vision.Tower()
    assert tower(torch.rand(2, 3, PX, PX)).shape == (2, TOKENS, pictures.WIDTH)


def test_a_stopped_loop_goes_on_as_if_it_had_not_been(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def run(folder, stops):  # type: ignore[no-untyped-def]
        for stop in stops:
            torch.manual_seed(0)
            model = nn.Linear(3, 1)
            optimizer = torch.optim.AdamW(model.parameters())
            rate = lambda s: 0.1 / np.sqrt(s + 1)  # noqa: E731  a numpy number, as cosines give
            loop = Loop(folder, "x", model, optimizer, rate, Log(folder, "x"))
            for step in loop.steps(stop):
                _, generator = chance(5, step)
                loop.descend(model(torch.rand(4, 3, generator=generator)).square().mean())
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight, halted = run(tmp_path / "a", [20]), run(tmp_path / "b", [7, 20])
    assert torch.equal(straight, halted)


@pytest.mark.parametrize("kind", [reader.CellReader, reader.Verifier])
def test_readers_score_every_cell(kind) -> None:  # type: ignore[no-untyped-def]
    colour, shape = kind()(torch.rand(2, 3, PX, PX))
    assert colour.shape == (2, 9, 7) and shape.shape == (2, 9, 5)


def test_certainty_is_that_of_the_worst_cell() -> None:
    judge, scenes = reader.Verifier().eval(), clean_scenes(3)
    images, (colour, shape) = pictures.pictures(scenes), cell_targets(scenes)
    certain = judge.certainty(images, colour, shape)
    scores = judge(images)
    for row in range(3):
        each = [
            scores[0][row, c].log_softmax(-1)[colour[row, c]]
            + scores[1][row, c].log_softmax(-1)[shape[row, c]]
            for c in range(9)
        ]
        assert certain[row].item() == pytest.approx(min(e.item() for e in each), abs=1e-5)


def test_a_changed_scene_differs_in_one_object_only() -> None:
    rng = np.random.default_rng(1)
    for scene in clean_scenes(100):
        before, after = truth(scene), truth(clip.changed(scene, rng))
        assert before != after
        assert len(before - after) <= 1 and len(after - before) <= 1


def test_auc_counts_pairs_in_the_right_order() -> None:
    assert clip.auc(np.asarray([3.0, 4.0]), np.asarray([1.0, 2.0])) == 1.0
    assert clip.auc(np.asarray([1.0, 4.0]), np.asarray([2.0, 3.0])) == 0.5


def test_a_score_that_sees_content_only_passes_and_one_that_sees_style_fails() -> None:
    def content(images, scenes):  # type: ignore[no-untyped-def]
        found = [read(i) for i in images.permute(0, 2, 3, 1).numpy()]
        pairs = [(f, truth(s)) for f, s in zip(found, scenes, strict=True)]
        return torch.tensor([len(f & t) / len(f | t) for f, t in pairs])

    def cleanness(images, scenes):  # type: ignore[no-untyped-def]
        clean = [replace(s, corruption="none", texture="plain") for s in scenes]
        return -(images - pictures.pictures(clean)).square().mean((1, 2, 3))

    good, bad = (clip.auc_figures(score, 0, 60) for score in (content, cleanness))
    assert good["auc_mild_clean"] > 0.6 > 0.5 > bad["auc_mild_clean"]
    assert set(good) >= {f"auc_strong_{s}" for s in (*clip.AGAINST, *pictures.STYLES[1:])}


def test_the_saved_verifier_scores_as_the_trained_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    judge, scenes = clip.Judge().eval(), clean_scenes(4)
    clip.save(judge, tmp_path)
    processor = CLIPProcessor.from_pretrained(tmp_path)
    texts = [clip.plain(s) for s in scenes]
    inputs = processor(
        text=texts, images=[to_pil(s) for s in scenes], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = CLIPModel.from_pretrained(tmp_path).float()(**inputs)
    expected = (out.image_embeds * out.text_embeds).sum(-1)
    kept = clip.load(tmp_path).similarity(pictures.pictures(scenes), scenes)
    torch.testing.assert_close(kept, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        kept, judge.similarity(pictures.pictures(scenes), scenes), atol=0.03, rtol=0
    )
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 2 * 2**20


def test_captions_fit_the_verifier_and_have_no_unknown_word() -> None:
    words = clip.words()
    for scene in pictures.broad_scenes(60, 1, clean=0.1):
        ids = words(clip.caption(scene)).input_ids
        assert len(ids) <= clip.CAPTION_TOKENS
        assert words.unk_token_id not in ids and ids[-1] == words.eos_token_id


def test_an_exam_keeps_questions_with_their_pictures() -> None:
    paper = gates.exam("ood_validation", 36, 0)
    assert sum(map(len, paper.asked)) == 36 == len(paper.condition) == len(paper.kind)
    right = np.asarray([c == "blur" for c in paper.condition], float)
    assert paper.by_condition(right)["blur"] == 1.0 and paper.by_condition(right)["noise"] == 0.0


def test_the_error_of_a_difference_takes_scenes_as_the_sample() -> None:
    paper = gates.Exam([], [], ["blur"] * 8, [], [0, 0, 1, 1, 2, 2, 3, 3])
    together = np.asarray([1, 1, 0, 0, 1, 1, 0, 0], float)
    assert paper.error(together, "blur") == pytest.approx(0.5 / np.sqrt(4))
    assert paper.error(np.ones(8), "blur") == 0.0


@pytest.fixture(scope="module")
def nano(tmp_path_factory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("nano")
    torch.manual_seed(0)
    eyes.save(vision.Tower(), folder)
    tokenizer.save(tokenizer.new(), folder)
    return language.JanusNano(folder)


def test_packed_questions_get_the_logits_of_single_ones(nano) -> None:  # type: ignore[no-untyped-def]
    scenes = clean_scenes(2)
    features, rng = nano.see(pictures.pictures(scenes)), np.random.default_rng(0)
    asked = [reading.questions(s, rng)[:3] for s in scenes]
    with torch.no_grad():
        packed, _, numbers = nano.answer_logits(features, asked)
        for number in range(6):
            row, which = divmod(number, 3)
            alone, _, _ = nano.answer_logits(features[row : row + 1], [[asked[row][which]]])
            torch.testing.assert_close(packed[numbers == number], alone, atol=1e-4, rtol=1e-4)


def test_the_saved_model_is_what_was_trained(nano, tmp_path) -> None:  # type: ignore[no-untyped-def]
    nano.save(tmp_path / "janus_nano")
    backbone = load_backbone(tmp_path / "janus_nano", dtype="float32").eval()
    scenes, rng = clean_scenes(2), np.random.default_rng(0)
    images = pictures.pictures(scenes)
    asked = [reading.questions(s, rng)[0] for s in scenes]
    with torch.no_grad():
        losses = backbone.answer_loss(images, [q for q, _ in asked], [a for _, a in asked])
        logits, targets, numbers = nano.answer_logits(nano.see(images), [[qa] for qa in asked])
        ce = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = torch.stack([ce[numbers == i].mean() for i in range(2)])
    torch.testing.assert_close(losses, expected, atol=0.05, rtol=0.05)  # bfloat16 weights
    assert (tmp_path / "janus_nano" / "model.safetensors").stat().st_size < 16 * 2**20
