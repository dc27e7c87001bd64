"""Stage 4: words for what things are known for, learned without changing anything learned before.

The tokenizer gets the words of ``synthetic/knowledge.py``, and only their embeddings are trained:
under a taught prompt the frozen model must predict a picture's codes as it does under the picture's
plain caption. Positions count by how much the caption matters there (at most of them it does not),
because the cross-entropy of codes is mostly about where in its cell an object happens to lie.

All old rows, and so all answers and drawings of old words, stay as they were, bit for bit. The text
head scores every new word as the mean of the special tokens that no answer holds, so that it is
never said.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from tools.common.knowing import drawn_right, scene_of, triple
from tools.common.progress import Log, portion, warm_cosine
from unigame.backbones.janus.layout import SPECIAL_TOKENS, JanusLayout, build_processor
from unigame.backbones.janus.load import from_pretrained
from unigame.backbones.janus.model import JanusBackbone
from unigame.synthetic.dataset import to_pil
from unigame.synthetic.knowledge import Fact, facts, knowledge_words
from unigame.synthetic.questions import vocabulary
from unigame.synthetic.reader import Triple
from unigame.synthetic.world import CELLS

from .language import code_logits, save_checkpoint

BATCH = 32
EVERYWHERE = 0.5
"""Weight in nats of a position where the caption does not matter: nothing is to be drawn there."""


def train(folder: Path, seed: int, scale: float = 1.0, rate: float = 1.5e-2) -> None:
    """Teach ``janus_nano/`` the words, in place."""
    torch.manual_seed(seed + 3)
    log = Log(folder, "knowledge")
    backbone = extend(from_pretrained(folder / "janus_nano"))
    taught = [f for f in facts() if f.taught]
    codes = pictures_of(backbone, sorted({triple(f) for f in taught}), seed, portion(4, scale))
    log(words=len(knowledge_words()), prompts=len(taught), combinations=len(codes))
    teach(backbone, taught, codes, seed, portion(400, scale), rate, log)
    for name, group in (("taught", True), ("unseen", False)):
        chosen = [f for f in facts() if f.taught == group]
        log(prompts=name, **drawn_right(backbone, chosen, portion(240, scale), seed))
    partial = folder / ".janus_nano.partial"
    if partial.exists():
        shutil.rmtree(partial)
    save_checkpoint(backbone.janus, backbone.processor, partial)
    shutil.rmtree(folder / "janus_nano")
    partial.replace(folder / "janus_nano")


def extend(backbone: JanusBackbone) -> JanusBackbone:
    """The same model with room for the knowledge words, which it does not know yet.

    A model that has them already starts them anew.
    """
    size = (
        int(backbone.janus.config.vision_config.image_size),
        int(backbone.processor.num_image_tokens),
    )
    processor = build_processor([*vocabulary(), *knowledge_words()], *size)
    old, new = len(build_processor(vocabulary(), *size).tokenizer), len(processor.tokenizer)
    model = backbone.janus
    language = model.model.language_model
    words = language.embed_tokens.weight.data[:old]
    head = model.lm_head.weight.data[:old]
    fresh = words.mean(0) + 0.3 * words.std(0) * torch.randn(new - old, words.shape[1])
    # A mean of scores is never above the highest of them, so no new word is ever said.
    unsaid = head[unsaid_ids(processor.tokenizer)].mean(0).expand(new - old, -1)
    language.embed_tokens = nn.Embedding.from_pretrained(
        torch.cat([words, fresh]), padding_idx=language.embed_tokens.padding_idx
    )
    model.lm_head = nn.Linear(head.shape[1], new, bias=False)
    model.lm_head.weight = nn.Parameter(torch.cat([head, unsaid]), requires_grad=False)
    model.config.text_config.vocab_size = language.config.vocab_size = new
    return JanusBackbone(model, processor)


def unsaid_ids(tokenizer: object) -> list[int]:
    """Special tokens that no answer holds: all but the end mark."""
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))  # type: ignore[attr-defined]
    return [int(i) for i in ids if i != tokenizer.eos_token_id]  # type: ignore[attr-defined]


@torch.no_grad()
def pictures_of(
    backbone: JanusBackbone, triples: list[Triple], seed: int, each: int
) -> dict[Triple, Tensor]:
    """Codes (each, N) of ``each`` pictures that show one object and nothing else."""
    rng = np.random.default_rng([seed, 42])
    scenes = [scene_of(t, rng) for t in triples for _ in range(each)]
    shown = backbone.preprocess([to_pil(s) for s in scenes])
    codes = [backbone.encode_images(images) for images in shown.split(128)]
    return dict(zip(triples, torch.cat(codes).split(each), strict=True))


def plain(wanted: Triple) -> str:
    """The caption in the words that the model knows."""
    return f"{CELLS[wanted[0]]} {wanted[1]} {wanted[2]}"


def teach(
    backbone: JanusBackbone,
    taught: list[Fact],
    codes_of: dict[Triple, Tensor],
    seed: int,
    steps: int,
    rate: float,
    log: Log,
) -> None:
    """Train the new embeddings; every other weight is frozen."""
    rng = np.random.default_rng([seed, 41])
    weight = backbone.janus.model.language_model.embed_tokens.weight
    before, old = weight.detach().clone(), len(weight) - len(knowledge_words())
    is_new = (torch.arange(len(weight)) >= old)[:, None]
    weight.requires_grad_(True)
    handle = weight.register_hook(lambda gradient: gradient * is_new)
    optimizer = torch.optim.Adam([weight], lr=rate)  # no weight decay: old rows must not move
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * warm_cosine(step, steps, 20)
        chosen = [taught[i] for i in rng.integers(len(taught), size=BATCH)]
        codes = [codes_of[triple(f)] for f in chosen]
        codes_BN = torch.stack([c[int(rng.integers(len(c)))] for c in codes])
        loss = distillation(backbone.janus, backbone.layout, chosen, codes_BN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 24:
            log(step=step + 1, loss=loss.item())
    handle.remove()
    weight.requires_grad_(False)
    assert torch.equal(weight[:old], before[:old])


def distillation(
    model: JanusForConditionalGeneration,
    layout: JanusLayout,
    chosen: list[Fact],
    codes_BN: Tensor,
) -> Tensor:
    """KL from the predictions under the plain caption to those under the prompt, weighted.

    The weight of a position is the KL from the caption's predictions to those under no caption.
    """
    captions, none = [plain(triple(f)) for f in chosen], torch.zeros(len(chosen), dtype=torch.bool)
    with torch.no_grad():
        teacher_BNV = code_logits(model, layout, captions, codes_BN, none).softmax(-1)
        blank_BNV = code_logits(model, layout, captions, codes_BN, ~none).log_softmax(-1)
        weight_BN = EVERYWHERE + divergence(teacher_BNV, blank_BNV)
    student_BNV = code_logits(model, layout, [f.prompt for f in chosen], codes_BN, none)
    return (weight_BN * divergence(teacher_BNV, student_BNV.log_softmax(-1))).sum() / (
        weight_BN.sum()
    )


def divergence(truth_BNV: Tensor, log_guess_BNV: Tensor) -> Tensor:
    """KL in nats at each position, (B, N)."""
    return F.kl_div(log_guess_BNV, truth_BNV, reduction="none").sum(-1)
