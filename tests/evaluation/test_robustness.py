import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.tiny import random_images, tiny_backbone
from unigame.data import CorruptImage, SkipReport
from unigame.errors import UserError
from unigame.evaluation.base import DatasetInfo, Item, Loaded
from unigame.evaluation.examples import Example, from_items, from_records, vqa_match
from unigame.evaluation.pgd import PGDConfig
from unigame.evaluation.pope import POPE
from unigame.evaluation.robustness import Adversary, RobustnessConfig, measure_robustness
from unigame.evaluation.robustness_record import adversary_of, robustness_entry
from unigame.evaluation.unifiedbench import UnifiedBench
from unigame.game.setting import ChallengeConfig
from unigame.reports.metrics import from_json, value_of

WORDS = ("red", "blue", "two", "yes", "no")
SMALL = RobustnessConfig(
    adversary=Adversary(ChallengeConfig(anchor=4.0), steps=2, practice=3),
    pgd=(PGDConfig(steps=2),),
    corruptions=("noise", "contrast"),
    max_new_tokens=1,
    batch_size=3,
)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone().add_lora().eval()


def pictures(count):
    pixels = (random_images(count) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pixels]


def make_examples(count=5):
    return [
        Example(f"q{i}", lambda p=p: p, "what colour is the circle", WORDS[i % 5], cluster=f"p{i}")
        for i, p in enumerate(pictures(count))
    ]


def broken():
    raise CorruptImage("", "corrupt image", "truncated")


@pytest.fixture(scope="module")
def measured(backbone):
    asked = []

    def score(reply, example):
        asked.append(example.id)
        return float(len(asked) % 3 == 0)

    return measure_robustness(backbone, make_examples(), SMALL, score=score), asked


def test_every_condition_is_a_metric_in_order(measured):
    metrics, _ = measured
    parts = [f"{kind}_{s}" for kind in ("noise", "contrast") for s in range(1, 6)]
    assert list(metrics) == [
        *("clean", "redrawn", "adversary", "adversary_similarity", "pgd_8"),
        *("corruptions", "noise", "contrast", *parts),
    ]
    assert all([u.id for u in metrics[n].units] == [f"q{i}" for i in range(5)] for n in parts)
    assert [u.cluster for u in metrics["pgd_8"].units] == [f"p{i}" for i in range(5)]


def test_means_over_corruptions_are_means_of_their_parts(measured):
    metrics, _ = measured
    values = {name: value_of(metric) for name, metric in metrics.items()}
    noise = [values[f"noise_{s}"] for s in range(1, 6)]
    both = noise + [values[f"contrast_{s}"] for s in range(1, 6)]
    assert len(set(both)) > 1
    assert values["noise"] == pytest.approx(sum(noise) / 5)
    assert values["corruptions"] == pytest.approx(sum(both) / 10)


def test_the_scorer_judges_each_reply_once(measured):
    _, asked = measured
    assert {asked.count(f"q{i}") for i in range(5)} == {1 + 2 + 1 + 10}


def test_similarity_is_of_the_model_s_own_features(measured):
    similarity = measured[0]["adversary_similarity"]
    assert similarity.scale == 1
    assert all(-1 <= unit.counts[0] < 1 for unit in similarity.units)


def test_what_the_model_is_asked_gets_worse_step_by_step(backbone, monkeypatch):
    """The pictures behind the figures: 8 bits, and as far from the clean ones as they should be."""
    seen = []
    original = type(backbone).answer

    def spy(self, images, questions, **kwargs):
        seen.append(images.clone())
        return original(self, images, questions, **kwargs)

    monkeypatch.setattr(type(backbone), "answer", spy)
    strong = Adversary(steps=3, lr=0.05, eps_max=5.0, eps_init=4.0, eps_mode="relative", practice=5)
    config = replace(SMALL, batch_size=8, adversary=strong)
    measure_robustness(backbone, make_examples(), config)
    clean, redrawn, adversary, attacked, *corrupted = seen
    assert len(corrupted) == 10
    for images in seen:
        assert torch.equal(images, (images * 255).round() / 255)
    assert (attacked - clean).abs().max().item() == pytest.approx(8 / 255, abs=1e-6)
    moved = [(images - clean).abs().mean().item() for images in corrupted]
    assert moved[:5] == sorted(moved[:5]) and moved[5:] == sorted(moved[5:])
    assert (redrawn - clean).abs().mean() > 0.01  # a random tokenizer redraws badly
    assert not torch.equal(redrawn, adversary)


def test_the_model_is_left_as_it_is(backbone):
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    state = torch.random.get_rng_state()
    backbone.train()
    try:
        measure_robustness(backbone, make_examples(), SMALL)
        assert backbone.training
    finally:
        backbone.eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], w) for name, w in backbone.state_dict().items())
    assert all(weight.grad is None for weight in backbone.parameters())


def test_the_same_run_gives_the_same_figures(backbone):
    config = replace(SMALL, corruptions=())
    one, two = (measure_robustness(backbone, make_examples(), config) for _ in range(2))
    assert one == two


def test_unreadable_pictures_are_counted_and_cost_only_themselves(backbone):
    examples = make_examples()
    examples[1] = replace(examples[1], picture=broken)
    skips = SkipReport()
    metrics = measure_robustness(backbone, examples, SMALL.only(["pgd"]), skips=skips)
    assert skips.counts() == {"corrupt image": 1}
    assert [u.id for u in metrics["pgd_8"].units] == ["q0", "q2", "q3", "q4"]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "0 examples: robustness needs at least one"),
        (make_examples(1) * 2, "2 examples: .* every id only once"),
        ([replace(make_examples(1)[0], picture=broken)], "no picture could be read: .*corrupt"),
    ],
)
def test_nothing_to_measure_is_named(backbone, examples, message):
    for config in (SMALL, SMALL.only(["pgd"])):
        with pytest.raises(UserError, match=message):
            measure_robustness(backbone, examples, config)


def test_attacks_can_be_chosen():
    assert SMALL.only(["pgd"]) == replace(SMALL, adversary=None, corruptions=())
    assert SMALL.only(["adversary", "pgd", "corruptions"]) == SMALL
    for attacks, message in (([], "no attack is named"), (["fog"], "unknown attack 'fog'")):
        with pytest.raises(UserError, match=f"{message}; choose from adversary, pgd"):
            SMALL.only(attacks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruptions": ("fog",)}, "unknown corruption 'fog'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pgd": (PGDConfig(steps=1), PGDConfig())}, "two PGD attacks have the same bound"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        RobustnessConfig(**settings)


def test_the_default_score_is_vqa_s():
    example = make_examples(1)[0]
    assert vqa_match(" Red. ", example) == 1
    assert vqa_match("reddish", example) == 0
    voted = replace(example, answers=("red",) * 2 + ("blue",) * 8)
    assert vqa_match("red", voted) == pytest.approx(0.6)


def test_records_and_items_become_examples():
    image = pictures(1)[0]
    record = {"image": image, "question": "q", "answer": "red", "caption": "c", "id": "r"}
    (example,) = from_records([record, {**record, "question": None}])
    assert (example.picture(), example.question, example.caption) == (image, "q", "c")

    def item(id, reference, count=1):
        return Item(id, "what ?\nAnswer.", (lambda: image,) * count, reference, cluster="p")

    votes = [{"answer": a, "answer_id": i} for i, a in enumerate(("blue", "red", "red"))]
    examples = from_items(
        [
            item("yes", {"answer": "yes"}),
            item("votes", {"answers": votes}),
            item("two pictures", {"answer": "A"}, 2),
            item("no answer", {}),
        ]
    )
    assert [(e.id, e.answer, e.answers) for e in examples] == [
        ("yes", "yes", ()),
        ("votes", "red", ("blue", "red", "red")),
    ]
    assert examples[0].question == "what ?\nAnswer." and examples[0].cluster == "p"


def test_the_entry_of_the_record(backbone):
    items = [
        Item(e.id, e.question, (e.picture,), {"answer": e.answer}, e.cluster)
        for e in make_examples(4)
    ]
    items[3] = replace(items[3], pictures=items[3].pictures * 2)
    loaded = Loaded(items, DatasetInfo("pope", "test", fingerprint="f00d"), SkipReport())
    entry = json.loads(json.dumps(robustness_entry(backbone, POPE(), loaded, SMALL)))
    assert entry["title"] == "Robustness on POPE"
    assert entry["counts"]["scored"] == 3
    assert entry["counts"]["skipped"] == {"not one picture with one text answer": 1}
    assert entry["variant"]["pgd"]["pgd_8"]["steps"] == 2
    assert entry["variant"]["adversary"]["config"]["anchor"] == 4.0
    metrics = {name: from_json(name, metric) for name, metric in entry["metrics"].items()}
    assert [n for n, m in entry["metrics"].items() if m["headline"]] == ["clean"]
    assert entry["metrics"]["pgd_8"]["value"] == pytest.approx(value_of(metrics["pgd_8"]))


def test_a_benchmark_that_draws_is_refused(backbone):
    loaded = Loaded([], DatasetInfo("x"), SkipReport())
    with pytest.raises(UserError, match="unifiedbench asks to draw"):
        robustness_entry(backbone, UnifiedBench(), loaded, SMALL)


def test_the_adversary_of_a_recipe_has_its_bounds(tmp_path):
    adversary = adversary_of("janus_nano")
    assert (adversary.eps_mode, adversary.eps_max, adversary.eps_init) == ("relative", 0.6, 0.3)
    assert adversary.config.anchor == 6.0
    assert adversary.config.num_candidates == 1 and not adversary.config.sample
    recipe = tmp_path / "tokens.yaml"
    recipe.write_text(
        "model: janus-nano\ndata: [{type: synthetic}]\ntraining: {perturb_space: tokens}\n"
    )
    with pytest.raises(UserError, match="tokens.yaml has perturb_space='tokens'"):
        adversary_of(recipe)
