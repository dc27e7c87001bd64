"""Questions have true answers, cannot be guessed, and stay inside the vocabulary."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from unigame.errors import UserError
from unigame.synthetic import SyntheticDataset
from unigame.synthetic.dataset import CONDITIONS, SPLITS
from unigame.synthetic.questions import ASK, KINDS, PLURALS, ask, groups, vocabulary
from unigame.synthetic.world import CELLS, HELD_OUT, Scene, Thing, caption, random_scene

SINGULAR = {plural: shape for shape, plural in PLURALS.items()}


def solve(scene: Scene, question: str) -> str:
    """Answer a question by reading its words: a second opinion, written apart from the asker."""
    words = re.findall(r"\w+", question)
    things = scene.things

    def matching(*names: str) -> list[Thing]:
        singular = [SINGULAR.get(n, n) for n in names if n not in ("shape", "shapes", "one")]
        return [t for t in things if all(n in (t.colour, t.shape) for n in singular)]

    def yes(condition: bool) -> str:
        return "yes" if condition else "no"

    if words[:2] == ["how", "many"]:
        return str(len(matching(*words[2:-2])))
    if words[0] == "what" and words[-2] == "at":
        (thing,) = [t for t in things if t.cell == CELLS.index(words[-1])]
        return thing.colour if words[1] == "colour" else thing.shape
    if words[0] == "what":
        (thing,) = matching(*words[4:])
        return thing.colour if words[1] == "colour" else thing.shape
    if words[:2] == ["is", "there"]:
        return yes(bool(matching(*words[3:])))
    if words[:2] == ["are", "there"]:
        middle = words.index("than")
        return yes(len(matching(*words[3:middle])) > len(matching(*words[middle + 1 :])))
    if words[0] == "which":
        (thing,) = matching(*words[4:-1])
        names = {"row": ("top", "middle", "bottom"), "column": ("left", "middle", "right")}
        return names[words[1]][thing.row if words[1] == "row" else thing.column]
    (a,), (b,) = matching(*words[2:4]), matching(*words[-2:])
    return yes(
        {
            "above": a.row < b.row,
            "below": a.row > b.row,
            "left": a.column < b.column,
            "right": a.column > b.column,
        }[words[4]]
    )


@pytest.mark.parametrize("kind", ASK)
def test_answers_are_true(kind: str) -> None:
    rng = np.random.default_rng(1)
    asked = 0
    for _ in range(400):
        scene = random_scene(rng, combinations="all")
        found = ask(scene, kind, rng)
        if found is not None:
            asked += 1
            assert solve(scene, found[0]) == found[1], (caption(scene), found)
    assert asked > 250


@pytest.mark.parametrize("kind", ["existence", "relation", "comparison"])
def test_yes_and_no_are_balanced(kind: str) -> None:
    rng = np.random.default_rng(2)
    found = [ask(random_scene(rng), kind, rng) for _ in range(2000)]
    yes = Counter(qa[1] for qa in found if qa)
    assert 0.45 < yes["yes"] / yes.total() < 0.55


def test_half_of_the_existence_negatives_swap_a_binding() -> None:
    rng, swapped, negatives = np.random.default_rng(3), 0, 0
    for _ in range(1500):
        scene = random_scene(rng, counts=(2, 3))
        question, answer = ask(scene, "existence", rng) or ("", "")
        words = re.findall(r"\w+", question)
        if answer == "no" and words[-1] != "shape" and len(words) == 5:
            negatives += 1
            swapped += any(t.colour == words[3] for t in scene.things) and any(
                t.shape == words[4] for t in scene.things
            )
    assert swapped / negatives > 0.5


def test_every_word_is_in_the_vocabulary() -> None:
    rng, words = np.random.default_rng(4), set(vocabulary())
    for _ in range(500):
        scene = random_scene(rng, texture="striped")
        texts = [caption(scene)] + [w for k in ASK for w in (ask(scene, k, rng) or ("", ""))]
        assert set(re.findall(r"\w+", " ".join(texts))) <= words


def test_groups_have_opposite_answers_that_are_true() -> None:
    for group in groups(60, seed=5):
        answers = [[solve(s, q) for q in group.questions] for s in group.scenes]
        assert answers == [["yes", "no"], ["no", "yes"]], group
        assert not any((t.colour, t.shape) in HELD_OUT for s in group.scenes for t in s.things)


@pytest.mark.parametrize("split", SPLITS)
def test_a_dataset_has_its_size_and_records_of_every_kind(split: str) -> None:
    data = SyntheticDataset(split, 72, seed=1)
    records = [data[i] for i in range(len(data))]
    assert len(records) == 72
    assert {r["kind"] for r in records} == set(KINDS)
    assert all(r["image"].size == (48, 48) and r["answer"] and r["caption"] for r in records)
    assert len({r["id"] for r in records}) == 72


def test_ood_covers_every_condition_and_training_none() -> None:
    ood = {r[4] for r in SyntheticDataset("ood", 72).rows}
    assert ood == set(CONDITIONS)
    assert {r[4] for r in SyntheticDataset("train", 72).rows} == {"clean"}


def test_splits_and_seeds_do_not_share_scenes_and_a_seed_repeats() -> None:
    def scenes(split: str, seed: int) -> list[Scene]:
        return SyntheticDataset(split, 60, seed).scenes

    assert scenes("train", 0) == scenes("train", 0)
    assert not set(scenes("train", 0)) & set(scenes("validation", 0))
    assert not set(scenes("train", 0)) & set(scenes("train", 1))


def test_bad_arguments_name_the_fix() -> None:
    with pytest.raises(UserError, match="unknown synthetic split 'dev'; choose one of train"):
        SyntheticDataset("dev")
    with pytest.raises(UserError, match="at least one"):
        SyntheticDataset("train", 0)
