"""Drawing by replay: the plain way's codes, from operations and tensors that were fixed before.

``Tape`` stands in for a CUDA graph where there is no GPU. It keeps every operation with the tensors
it read and wrote, and repeats them: a number that Python carried, or memory that moved, would show.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from tests.backbones.conftest import FAMILIES
from tests.tiny import stir_lora, tiny_backbone
from unigame.backbones import load_backbone
from unigame.backbones.common import decoding
from unigame.backbones.common.decoding import _CachedLM
from unigame.backbones.common.fast import static_lm
from unigame.backbones.common.fast.static_lm import StaticLM, Work, has_fixed_shapes

PROMPTS = ["a red circle", "two small green squares left of a blue cross", "a red circle"]


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.done:
            for old, new in zip(
                tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(work: Work, device: torch.device) -> Work:
    work()
    with Tape() as tape:
        result = work()

    def replay() -> torch.Tensor:
        tape.replay()
        return result

    return replay


@pytest.fixture(params=["chameleon", "emu3", "janus"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return FAMILIES[request.param]()


@pytest.fixture(autouse=True)
def _none_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_lm, "_refused", set())


def statically(monkeypatch: pytest.MonkeyPatch, record: Any) -> list[StaticLM]:
    """From here on drawings go through ``StaticLM``, recorded so; returns those made."""
    made: list[StaticLM] = []

    def make(*args: Any, **kwargs: Any) -> StaticLM:
        made.append(StaticLM(*args, **kwargs, record=record))
        return made[-1]

    monkeypatch.setattr(static_lm, "supports", lambda *_: True)
    monkeypatch.setattr(decoding.cpu_llama, "supports", lambda *_: False)
    monkeypatch.setattr(decoding, "StaticLM", make)
    return made


def codes(backbone: Any, lean: bool, **settings: Any) -> torch.Tensor:
    backbone.lean_drawing = lean
    try:
        return backbone.generate_codes(PROMPTS, **settings)
    finally:
        backbone.lean_drawing = True


SETTINGS = [
    {"do_sample": False, "guidance_scale": 5.0},
    {"seeds": [1, 2, 3], "guidance_scale": 5.0},
    {"seeds": [1, 2, 3], "guidance_scale": 1.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "guided", "plain"])
def test_replayed_drawings_are_those_of_the_plain_way(backbone, settings, monkeypatch):
    expected = codes(backbone, False, **settings)
    made = statically(monkeypatch, taped)
    drawn = codes(backbone, True, **settings)
    assert len(made) == 1
    assert torch.equal(drawn, expected)
    assert len(expected.unique(dim=0)) > 1, "rows that are all alike could not be told apart"
    # What the last token left behind: every place up to there is filled and seen.
    fed = int(made[0].place_1) - made[0].begun
    assert fed <= backbone.layout.image_span <= made[0].room - made[0].begun
    assert made[0].mask_B11R[..., int(made[0].place_1) :].sum() == 0


def test_states_are_those_of_the_class_to_the_last_digits(backbone, monkeypatch):
    def states(lean: bool) -> torch.Tensor:
        found = []
        scores = backbone.code_scores
        monkeypatch.setattr(backbone, "code_scores", lambda s: found.append(s) or scores(s))
        codes(backbone, lean, do_sample=False)
        monkeypatch.setattr(backbone, "code_scores", scores)
        return torch.stack(found)

    expected = states(False)
    statically(monkeypatch, taped)
    assert torch.allclose(states(True), expected, atol=2e-5)


def test_what_cannot_be_recorded_is_drawn_all_the_same(backbone, monkeypatch):
    def refused(work: Work, device: torch.device) -> Work:
        work()
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        finally:
            raise RuntimeError("the recording was ended by an error")

    expected = codes(backbone, False, seeds=[1, 2, 3])
    statically(monkeypatch, refused)
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        drawn = codes(backbone, True, seeds=[1, 2, 3])
    assert torch.equal(drawn, expected)
    assert backbone.language_model in static_lm._refused


def fed_states(backbone: Any, record: Any = None) -> torch.Tensor:
    """Newest states (S, B, H) when the same embeddings are fed, replayed or the plain way."""
    tokens = backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=True)
    embeds_BLH = backbone.base.get_input_embeddings()(tokens.ids_BL)
    random = torch.Generator().manual_seed(0)
    fed_SB1H = torch.randn(4, len(embeds_BLH), 1, embeds_BLH.shape[-1], generator=random)
    fed_SB1H = fed_SB1H.to(embeds_BLH)
    lm = backbone.language_model
    model = _CachedLM(lm, tokens) if record is None else StaticLM(lm, tokens, 4, record)
    with torch.no_grad(), backbone._evaluating(), backbone._precision():
        found = [model.start(embeds_BLH), *map(model.step, fed_SB1H)]
    if record is not None:
        assert backbone.language_model not in static_lm._refused
    return torch.stack(found).float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_states_are_those_of_the_plain_way(checkpoint, dtype):
    """Keys and values differ in type here: norms and rotations leave autocast's bfloat16."""
    backbone = load_backbone(checkpoint, device="cpu", dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "float32"):
        expected, replayed = fed_states(backbone), fed_states(backbone, taped)
    assert expected.std() > 0.1
    assert (replayed - expected).abs().mean() < 0.02 * expected.std()


def test_no_memory_is_no_reason_to_go_on(backbone, monkeypatch):
    def full(work: Work, device: torch.device) -> Work:
        raise torch.OutOfMemoryError("no memory")

    statically(monkeypatch, full)
    with pytest.raises(torch.OutOfMemoryError):
        codes(backbone, True)


def test_lora_counts(monkeypatch):
    backbone = tiny_backbone()
    before = codes(backbone, False, seeds=[1, 2, 3])
    stir_lora(backbone.add_lora(), scale=0.3)
    expected = codes(backbone, False, seeds=[1, 2, 3])
    statically(monkeypatch, taped)
    assert torch.equal(codes(backbone, True, seeds=[1, 2, 3]), expected)
    assert not torch.equal(before, expected)


def test_where_it_applies(backbone):
    tokens = backbone.drawing_rows(backbone.prompt_tokens(PROMPTS), guided=True)
    assert not static_lm.supports(backbone.language_model, tokens), "no GPU here"
    assert has_fixed_shapes(backbone.language_model.config)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "eager"},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ],
    ids=["attention", "rope", "sliding"],
)
def test_where_it_does_not(settings):
    small = functools.partial(LlamaConfig, num_hidden_layers=2, hidden_size=32)
    assert has_fixed_shapes(small(attn_implementation="sdpa"))
    assert not has_fixed_shapes(small(**{"attn_implementation": "sdpa", **settings}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_graph(checkpoint, dtype, adapted):
    backbone = load_backbone(checkpoint, device="cuda", dtype=dtype)
    if adapted:
        stir_lora(backbone.add_lora(), scale=0.3)
    expected, replayed = fed_states(backbone), fed_states(backbone, static_lm.cuda_graph)
    bound = 0.001 if dtype == "float32" else 0.02
    assert (replayed - expected).abs().mean() < bound * expected.std()
    drawn = backbone.generate(PROMPTS, seeds=[1, 2, 3])
    assert drawn.device.type == "cuda" and drawn.std() > 0
