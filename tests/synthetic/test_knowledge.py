"""Knowledge prompts are true and fairly split; teaching their words changes nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import unigame
from tools.common.progress import Log
from tools.janus_nano import knowledge
from unigame.backbones import load_backbone
from unigame.backbones.janus.load import from_pretrained
from unigame.backbones.janus.model import JanusBackbone
from unigame.synthetic import SyntheticDataset
from unigame.synthetic.knowledge import (
    COLOUR_FACTS,
    PLACE_FACTS,
    SHAPE_FACTS,
    Fact,
    facts,
    knowledge_words,
)
from unigame.synthetic.questions import vocabulary
from unigame.synthetic.world import CELLS, COLOURS, SHAPES

NANO = "janus-nano"


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


# ---- the facts -----------------------------------------------------------------------------------
def test_every_phrase_has_one_meaning_and_every_meaning_a_phrase() -> None:
    colours = [item for known in COLOUR_FACTS.values() for item in known.items()]
    places = [item for known in PLACE_FACTS.values() for item in known.items()]
    for phrases, meanings in (
        (colours, COLOURS),
        (places, CELLS),
        (list(SHAPE_FACTS.items()), SHAPES),
    ):
        assert len({phrase for phrase, _ in phrases}) == len(phrases)
        assert {meaning for _, meaning in phrases} == set(meanings)


def test_no_prompt_gives_its_answer_away() -> None:
    named = {*CELLS, *COLOURS, *SHAPES}
    assert not any(named & set(words(fact.prompt)) for fact in facts())


def test_half_of_the_prompts_are_taught_and_they_hold_every_word() -> None:
    split: dict[bool, list[str]] = defaultdict(list)
    for fact in facts():
        split[fact.taught].append(fact.prompt)
    assert 0.45 < len(split[True]) / (len(split[True]) + len(split[False])) < 0.55
    assert not set(split[True]) & set(split[False])
    taught, unseen = ({w for p in split[group] for w in words(p)} for group in (True, False))
    assert unseen <= taught
    assert taught <= {*vocabulary(), *knowledge_words()}
    assert not set(knowledge_words()) & set(vocabulary())


# ---- teaching them -------------------------------------------------------------------------------
def outputs(backbone: JanusBackbone) -> tuple[list[str], list[str], torch.Tensor]:
    """Answers, captions and drawings of old words."""
    rows = [SyntheticDataset("test", 24, 0)[i] for i in range(24)]
    images = backbone.preprocess([row["image"] for row in rows])
    said = backbone.answer(images, [row["question"] for row in rows], max_new_tokens=20)
    told = backbone.caption(images[::6], max_new_tokens=24)
    prompts = [row["caption"] for row in rows[::6]]
    return said, told, backbone.generate_codes(prompts, seed=1, guidance_scale=3.0)


@pytest.fixture(scope="module")
def before() -> JanusBackbone:
    backbone = load_backbone(NANO)
    assert isinstance(backbone, JanusBackbone)
    return backbone


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[JanusBackbone, float, float]:
    """The bundled model after a dozen steps, and the loss before and after them."""
    torch.manual_seed(0)
    backbone = knowledge.extend(from_pretrained(_bundled()))
    chosen = [fact for fact in facts() if fact.taught][:40]
    triples = sorted({knowledge.triple(fact) for fact in chosen})
    codes = knowledge.pictures_of(backbone, triples, seed=0, each=2)
    first = _loss(backbone, chosen, codes)
    log = Log(tmp_path_factory.mktemp("log"), "knowledge")
    knowledge.teach(backbone, chosen, codes, seed=0, steps=12, rate=1.5e-2, log=log)
    return backbone, first, _loss(backbone, chosen, codes)


@pytest.fixture
def taught(lesson: tuple[JanusBackbone, float, float]) -> JanusBackbone:
    return lesson[0]


def _bundled() -> Path:
    return Path(unigame.__file__).parent / "synthetic" / "janus_nano"


def _loss(
    backbone: JanusBackbone, chosen: list[Fact], codes: dict[knowledge.Triple, torch.Tensor]
) -> float:
    with torch.no_grad():
        rows = torch.stack([codes[knowledge.triple(f)][0] for f in chosen])
        return float(knowledge.distillation(backbone.janus, backbone.layout, chosen, rows))


def test_the_words_are_being_learned(lesson: tuple[JanusBackbone, float, float]) -> None:
    _, first, last = lesson
    assert last < 0.8 * first


def test_everything_said_and_drawn_before_is_said_and_drawn_the_same(
    before: JanusBackbone, taught: JanusBackbone
) -> None:
    for ours, theirs in zip(outputs(before), outputs(taught), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_old_weights_are_bit_for_bit_the_same_and_new_ones_moved(
    before: JanusBackbone, taught: JanusBackbone
) -> None:
    old, count = len(vocabulary()) + 14, 0  # nine special tokens and five marks of punctuation
    state = taught.janus.state_dict()
    for name, weight in before.janus.state_dict().items():
        ours = state[name][:old] if "embed_tokens" in name or "lm_head" in name else state[name]
        assert torch.equal(ours, weight[:old] if ours.shape != weight.shape else weight), name
        count += 1
    assert count == len(state)
    fresh = state["model.language_model.embed_tokens.weight"][old:]
    assert len(fresh) == len(knowledge_words()) and len(torch.unique(fresh, dim=0)) == len(fresh)


def test_new_words_are_never_the_likeliest_whatever_the_state(taught: JanusBackbone) -> None:
    head = taught.janus.lm_head.weight
    old = len(head) - len(knowledge_words())
    states = 20 * torch.randn(2000, head.shape[1], generator=torch.Generator().manual_seed(0))
    scores = states @ head.T
    assert (scores[:, old:].max(1).values < scores[:, :old].max(1).values).all()


def test_in_answers_they_have_no_weight_at_all(
    before: JanusBackbone, taught: JanusBackbone
) -> None:
    """So that a loss, and with it training, is the same too."""
    rows = [SyntheticDataset("train", 24, 3)[i] for i in range(24)]
    images = before.preprocess([row["image"] for row in rows])
    asked = [row["question"] for row in rows], [row["answer"] for row in rows]
    with torch.no_grad():
        difference = before.answer_loss(images, *asked) - taught.answer_loss(images, *asked)
    assert difference.abs().max() < 1e-5
