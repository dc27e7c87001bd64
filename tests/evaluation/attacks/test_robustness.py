import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import random_images, tiny_backbone
from unigame.backbones import load_backbone
from unigame.data import CorruptImage, SkipReport
from unigame.errors import UserError
from unigame.evaluation import world
from unigame.evaluation.attacks.adversary import (
    adversary_for,
    own_features_check,
    practice_of,
    set_aside,
)
from unigame.evaluation.attacks.pgd import PGDConfig
from unigame.evaluation.attacks.robustness import (
    Adversary,
    RobustnessConfig,
    measure_robustness,
)
from unigame.evaluation.attacks.robustness_record import robustness_entry
from unigame.evaluation.base import DatasetInfo, Item, Loaded
from unigame.evaluation.examples import Example, from_items, from_records, own_match, vqa_match
from unigame.evaluation.tasks.mmbench.task import MMBench
from unigame.evaluation.tasks.pope.task import POPE
from unigame.evaluation.tasks.unifiedbench.task import UnifiedBench
from unigame.methods.rows import Rows
from unigame.methods.selfplay import NoPerturber
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.reports.metrics import from_json, value_of
from unigame.synthetic import SyntheticDataset
from unigame.training.recipe import load_recipe

NANO = load_recipe("janus_nano", here=False).settings_of("selfplay")
WORDS = ("red", "blue", "two", "yes", "no")
SMALL = RobustnessConfig(
    adversary=Adversary(SelfPlaySettings(anchor=4.0), steps=2, practice=3),
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


class Keeps:
    """A content check that keeps what it is told to, and writes down what it was shown."""

    name = "told"

    def __init__(self, keep=lambda example: True):
        self.keep, self.seen = keep, []

    def kept(self, drawn, clean, examples):
        assert drawn.shape == clean.shape == (len(examples), 3, 16, 16)
        self.seen.append([example.id for example in examples])
        return [self.keep(example) for example in examples]


def practice(count=3):
    """Examples that are about other pictures than those of ``make_examples``."""
    images = random_images(count, seed=9)
    shown = [Image.fromarray((i * 255).byte().permute(1, 2, 0).numpy()) for i in images]
    return practice_of(
        [Example(f"p{i}", lambda p=p: p, "what colour is it", "red") for i, p in enumerate(shown)]
    )


def broken():
    raise CorruptImage("", "corrupt image", "truncated")


@pytest.fixture(scope="module")
def measured(backbone):
    asked = []

    def score(reply, example):
        asked.append(example.id)
        return float(len(asked) % 3 == 0)

    metrics = measure_robustness(
        backbone, make_examples(), SMALL, score=score, practice=practice(), check=Keeps()
    ).metrics
    return metrics, asked


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
    measure_robustness(backbone, make_examples(), config, practice=practice())
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
    metrics = measure_robustness(backbone, examples, SMALL.only(["pgd"]), skips=skips).metrics
    assert skips.counts() == {"corrupt image": 1}
    assert [u.id for u in metrics["pgd_8"].units] == ["q0", "q2", "q3", "q4"]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "0 examples: robustness needs at least one"),
        (make_examples(1) * 2, "2 examples: .* every id only once"),
        ([replace(e, picture=broken) for e in make_examples(2)], "could be read: .*corrupt"),
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


def test_a_benchmark_judges_attacked_replies_by_its_own_parser():
    """VQA's match takes A for an article: an empty reply would be right wherever A is."""
    benchmark = MMBench()
    reference = {"answer": "A", "options": {"A": "cat", "B": "dog"}, "base": 1}
    item = Item("1", "What?", (pictures(1)[0].copy,), reference)
    (example,) = from_items([item], benchmark)
    assert [own_match(reply, example) for reply in ("A. cat", "", "B")] == [1, 0, 0]
    (bare,) = from_items([item])
    assert own_match("A", bare) == vqa_match("A", bare) == 1
    pope = POPE()
    said = Item("1", "Is it?", item.pictures, {"answer": "yes", "subset": "random"})
    (asked,) = from_items([said], pope)
    assert [own_match(reply, asked) for reply in ("Yes, there is.", "", "No.")] == [1, 0, 0]


def test_the_entry_of_the_record(backbone):
    items = [
        Item(e.id, e.question, (e.picture,), {"answer": e.answer}, e.cluster)
        for e in make_examples(4)
    ]
    items[3] = replace(items[3], pictures=items[3].pictures * 2)
    loaded = Loaded(items, DatasetInfo("pope", "test", fingerprint="f00d"), SkipReport())
    entry = json.loads(json.dumps(robustness_entry(backbone, POPE(), loaded, SMALL)))
    assert entry["title"] == "Robustness on POPE"
    assert entry["counts"]["scored"] == 2, "the third is practised on"
    assert entry["counts"]["skipped"] == {
        "not one picture with one text answer": 1,
        "about a picture that the adversary practises on": 1,
    }
    assert "unparsed" not in entry["counts"], "nothing is parsed"
    assert entry["variant"]["pgd"]["pgd_8"]["steps"] == 2
    assert entry["variant"]["adversary"]["config"]["anchor"] == 4.0
    assert entry["scorer"]["content"] and len(entry["pictures"]) == 64
    assert entry["details"]["practised_on"] == entry["details"]["not_measured_for_practice"] == 1
    assert any("practised on 1 questions, not 3" in line for line in entry["warnings"])
    metrics = {name: from_json(name, metric) for name, metric in entry["metrics"].items()}
    assert [n for n, m in entry["metrics"].items() if m["headline"]] == ["clean"]
    assert entry["metrics"]["pgd_8"]["value"] == pytest.approx(value_of(metrics["pgd_8"]))


def test_each_item_is_scored_or_skipped_and_what_is_practised_on_counts_for_itself(backbone):
    """Of the practice one picture cannot be read; it is no item of those that are measured."""
    examples = make_examples(16)
    aside = [e.id for e in set_aside(examples, SMALL.adversary.practice).examples]
    measured = [e for e in examples if e.id not in aside][:5]
    part = {e.id for e in measured} | {aside[0]}  # what --limit leaves
    damaged = {aside[1], measured[0].id}
    items = [
        Item(
            e.id,
            e.question,
            (broken if e.id in damaged else e.picture,),
            {"answer": e.answer},
            e.cluster,
        )
        for e in examples
    ]
    loaded = Loaded([i for i in items if i.id in part], DatasetInfo("pope"), SkipReport())
    config = replace(SMALL, pgd=(), corruptions=())
    entry = robustness_entry(backbone, POPE(), loaded, config, whole=items, check=Keeps())
    counts = entry["counts"]
    assert counts["skipped"] == {
        "about a picture that the adversary practises on": 1,
        "corrupt image": 1,
    }
    assert counts["items"] == counts["scored"] + sum(counts["skipped"].values()) == 6
    details = entry["details"]
    assert details["practised_on"] == 2 and details["practice_skipped"] == {"corrupt image": 1}
    assert details["not_measured_for_practice"] == 1
    assert any("practised on 2 questions, not 3" in line for line in entry["warnings"])


def test_a_benchmark_that_draws_is_refused(backbone):
    loaded = Loaded([], DatasetInfo("x"), SkipReport())
    with pytest.raises(UserError, match="unifiedbench asks to draw"):
        robustness_entry(backbone, UnifiedBench(), loaded, SMALL)


def test_the_adversary_of_a_run_has_its_bounds():
    adversary = adversary_for(NANO)
    assert (adversary.eps_mode, adversary.eps_max) == ("relative", 2.0)
    assert adversary.eps_init == pytest.approx(4 / 3) and adversary.config.label_weight == 10.0
    assert (adversary.config.anchor, adversary.config.anchor_mode) == (8.0, "near")
    plain_c = replace(NANO, perturber_scope="token", perturber_depth=3, diversity_weight=0)
    assert adversary.strengths[0] == 1.0 and len(adversary.strengths) > 1
    assert adversary_for(plain_c).strengths == (1.0,)
    assert adversary.scope == "shared" and adversary.config.label_floor == 1.0
    plain = replace(NANO, label_similarity="cosine", label_floor=0.4, perturber_scope="heads")
    assert adversary_for(plain).config.label_floor == 0.4
    assert adversary.config.num_candidates == 1 and not adversary.config.sample_candidates
    with pytest.raises(UserError, match="perturb_space='tokens'"):
        adversary_for(SimpleNamespace(perturb_space="tokens"))


# ---- what it practises on is not measured --------------------------------------------------------


def groups(pictures, questions):
    """Several questions about each of some pictures, in the order of the pictures."""
    return [
        Example(f"{i}-{q}", lambda: None, f"question {q}", "yes", cluster=f"picture {i}")
        for i in range(pictures)
        for q in range(questions)
    ]


def test_practice_and_measured_questions_share_no_picture():
    examples = groups(100, 3)
    chosen = set_aside(examples, 16)
    pictures = {e.cluster for e in chosen.examples}
    assert len(chosen.examples) == len(pictures) == 16, "one question a picture"
    others = chosen.others(examples)
    assert len(others) == 300 - 3 * 16 and not pictures & {e.cluster for e in others}


def test_what_is_practised_on_hangs_neither_on_order_nor_on_what_is_measured():
    examples = groups(100, 3)
    chosen = set_aside(examples, 16)
    assert set_aside(examples[::-1], 16).pictures == chosen.pictures
    few = chosen.others(examples[:30])
    assert [e.id for e in few] == [e.id for e in chosen.others(examples) if e in examples[:30]]
    assert {e.cluster for e in chosen.examples} - {e.cluster for e in examples[:30]}


def test_questions_about_equal_pictures_without_a_cluster_are_one_picture():
    image, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    examples = [
        Example(f"{i}", (lambda: other) if i == 3 else (lambda: image.copy()), "q", "a")
        for i in range(4)
    ]
    chosen = set_aside(examples, 1)
    assert len(chosen.others(examples)) in (1, 3)


@pytest.mark.parametrize(("pictures", "questions", "got"), [(8, 6, 12), (8, 40, 64), (2, 1, 1)])
def test_few_pictures_give_more_questions_each_and_at_most_a_quarter_goes(pictures, questions, got):
    examples = groups(pictures, questions)
    chosen = set_aside(examples, 64)
    assert len(chosen.examples) == got
    assert len(chosen.pictures) == max(1, pictures // 4)


def test_one_picture_cannot_be_practised_on_and_measured(backbone):
    with pytest.raises(UserError, match="3 examples of 1 pictures"):
        set_aside(groups(1, 3), 4)
    with pytest.raises(UserError, match="none is left to be measured"):
        all_of_them = practice_of(make_examples(2))
        measure_robustness(backbone, make_examples(2), SMALL, practice=all_of_them)


def test_all_conditions_are_measured_on_the_same_questions(backbone):
    metrics = measure_robustness(backbone, make_examples(), SMALL, check=Keeps()).metrics
    asked = {tuple(u.id for u in metric.units) for name, metric in metrics.items()
             if name not in ("corruptions", "noise", "contrast")}  # fmt: skip
    assert len(asked) == 1 and len(asked.pop()) == 4


def test_the_adversary_never_sees_what_is_measured(backbone, monkeypatch):
    practised = []

    def spy(self, backbone, batches):
        practised.extend(image for batch in batches for image in batch.images)
        return NoPerturber()

    monkeypatch.setattr(Adversary, "trained", spy)
    measured, original = [], type(backbone).answer

    def listen(self, images, *rest, **options):
        measured.append(images.clone())
        return original(self, images, *rest, **options)

    monkeypatch.setattr(type(backbone), "answer", listen)
    measure_robustness(backbone, make_examples(8), replace(SMALL, pgd=(), corruptions=()))
    clean = torch.cat(measured[::3])
    assert len(practised) == 2 and len(clean) == 6
    assert not any(torch.equal(one, two) for one in practised for two in clean)


def test_a_limit_changes_how_many_are_measured_and_nothing_else(backbone):
    """Through the record's entry, as the command does it: the figures of shared questions agree."""
    items = [
        Item(e.id, e.question, (e.picture,), {"answer": e.answer}, e.cluster)
        for e in make_examples(12)
    ]
    entries = []
    for limit in (12, 5):
        loaded = Loaded(items[:limit], DatasetInfo("pope"), SkipReport())
        entries.append(robustness_entry(backbone, POPE(), loaded, SMALL, whole=items))
    whole, part = (
        {name: from_json(name, metric) for name, metric in entry["metrics"].items()}
        for entry in entries
    )
    assert entries[0]["details"]["content_floor"] == entries[1]["details"]["content_floor"]
    for name in ("clean", "adversary_similarity", "pgd_8", "noise_3"):
        units = {u.id: u.counts[0] for u in whole[name].units}
        assert 0 < len(part[name].units) < len(units)
        assert {u.id: u.counts[0] for u in part[name].units} == pytest.approx(
            {u.id: units[u.id] for u in part[name].units}, abs=1e-5
        )


# ---- pictures that show something else do not count ----------------------------------------------


def test_only_pictures_that_kept_their_content_count(backbone):
    check, skips = Keeps(lambda example: example.id in ("q1", "q3")), SkipReport()
    found = measure_robustness(
        backbone, make_examples(), SMALL, practice=practice(), check=check, skips=skips
    )
    for name in ("redrawn", "adversary"):
        assert [u.id for u in found.metrics[name].units] == ["q1", "q3"]
        assert found.changed[name] == 3
    assert len(found.metrics["clean"].units) == len(found.metrics["pgd_8"].units) == 5
    assert len(check.seen) == 4 and found.check == "told"


class Bears:
    """A content check that lets each picture go as far from its plain redrawing as it is told."""

    name = "distance"

    def __init__(self, bears):
        self.bears, self.shown = bears, []

    def kept(self, drawn, clean, examples):
        self.shown.append(drawn.clone())
        far = (drawn - self.shown[0]).abs().flatten(1).amax(1).tolist()  # the first is unperturbed
        return [distance <= most for distance, most in zip(far, self.bears, strict=True)]


def test_each_picture_is_attacked_as_hard_as_its_content_bears(backbone, monkeypatch):
    adversary = replace(SMALL.adversary, eps_max=40.0, eps_init=30.0, strengths=(1.0, 1e-6))
    config = replace(SMALL, adversary=adversary, pgd=(), corruptions=(), batch_size=8)
    asked, answer = [], backbone.answer

    def noted(images, *args, **kwargs):
        asked.append(images)
        return answer(images, *args, **kwargs)

    monkeypatch.setattr(backbone, "answer", noted)
    check = Bears([9.0, -1.0, 1e-3, 1e-3, 1e-3])  # everything, nothing, and next to nothing
    found = measure_robustness(backbone, make_examples(), config, practice=practice(), check=check)
    _, strong, weak = check.shown
    changed = [not a.equal(b) for a, b in zip(strong, weak, strict=True)]
    assert any(changed[2:])  # otherwise there is nothing to choose
    assert [u.id for u in found.metrics["adversary"].units] == ["q0", "q2", "q3", "q4"]
    assert found.changed["adversary"] == 1
    assert asked[-1][:2].equal(strong[:2]) and asked[-1][2:].equal(weak[2:])


@pytest.mark.parametrize("strengths", [(), (0.5, 1.0), (1.0, 1.0), (1.0, 0.0)])
def test_strengths_of_an_attack_fall(strengths):
    with pytest.raises(UserError, match="strengths="):
        replace(SMALL.adversary, strengths=strengths)


def test_an_adversary_that_changes_everything_has_no_figure_but_a_warning(backbone):
    items = [
        Item(e.id, e.question, (e.picture,), {"answer": e.answer}, e.cluster)
        for e in make_examples(8)
    ]
    loaded = Loaded(items, DatasetInfo("pope"), SkipReport())
    nothing = Keeps(lambda example: False)
    entry = robustness_entry(backbone, POPE(), loaded, SMALL.only(["adversary"]), check=nothing)
    assert list(entry["metrics"]) == ["clean", "adversary_similarity"]
    assert entry["details"]["content_changed"] == {"redrawn": 6, "adversary": 6}
    assert any("6 of 6 adversary pictures no longer show" in line for line in entry["warnings"])


class Eyes:
    """A model whose vision features are the pixels."""

    def image_features(self, images):
        return images.flatten(2).transpose(1, 2)


def test_by_its_own_features_a_picture_must_be_as_like_as_plain_redrawings_are():
    images = random_images(20)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    batch = Rows(images, ["q"] * 20, ["a"] * 20)
    check = own_features_check(Eyes(), [batch], lambda batch: batch.images + 0.1 * noise)
    examples = make_examples(20)
    assert sum(check.kept(images + 0.1 * noise, images, examples)) == 19, "all but a twentieth"
    assert all(check.kept(images + 0.05 * noise, images, examples))
    assert not any(check.kept(images + 0.4 * noise, images, examples))


def test_the_demo_and_the_command_have_one_adversary(monkeypatch):
    """Its practice, its content check and its bounds are the same code."""
    trained = []

    def spy(self, backbone, batches):
        trained.append((self, sum(len(batch) for batch in batches)))
        return NoPerturber()

    monkeypatch.setattr(Adversary, "trained", spy)
    nano = load_backbone("janus-nano", dtype="float32").eval()
    adversary = replace(adversary_for(NANO), practice=6)
    entry = world.attack_entry(nano, adversary, 12, seed=0)
    records = SyntheticDataset("test", 40)
    examples = from_records(records[i] for i in range(40))
    config = RobustnessConfig(adversary, pgd=(), corruptions=(), max_new_tokens=3)
    found = measure_robustness(nano, examples, config, check=world.ReaderCheck())
    assert [each for each, _ in trained] == [adversary, adversary] and trained[0][1] == 6
    assert list(entry["metrics"]) == ["accuracy", "clean", "redrawn"]
    assert entry["counts"]["scored"] == entry["metrics"]["redrawn"]["n"]
    assert found.check == world.ReaderCheck.name


def test_the_reader_tells_another_picture_from_the_same():
    """Without the true scene it goes by what it reads in the clean picture."""
    data = SyntheticDataset("test", 24, questions_per_scene=1)
    examples = from_records(data[i] for i in range(24))
    images = torch.stack(
        [torch.from_numpy(np.array(e.picture())).permute(2, 0, 1) / 255 for e in examples]
    )
    check = world.ReaderCheck()
    assert check.kept(images, images, examples) == [True] * 24
    assert sum(check.kept(images.roll(1, 0), images, examples)) == 0
