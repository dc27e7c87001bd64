"""Stage 3: one language model that answers and draws, trained from scratch.

First it answers only (no tokenizer is needed, so this can run beside stage 1), then both at once.

Drawing is learned broadly (all combinations, degraded pictures under a style word), answering
narrowly (clean scenes, held-out combinations left out), on frozen vision features and frozen codes.
Many questions share one image prefix under a 4-D mask; every segment has exactly the tokens and
positions that inference gives a single question, so nothing has to be unlearned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, JanusForConditionalGeneration, JanusProcessor

from unigame.backbones.base import CAPTION_QUESTION
from unigame.backbones.janus.layout import JanusLayout, build_processor
from unigame.synthetic.questions import KINDS, ask, vocabulary
from unigame.synthetic.reader import object_match, read, truth
from unigame.synthetic.world import SIDE, Scene, caption, random_scene

from . import tokenizer, vision
from .common import (
    TOKENS,
    Log,
    broad_scenes,
    foreground,
    nano_config,
    pictures,
    portion,
    warm_cosine,
)

ASKED = (  # questions asked of every scene at every step; the hard kinds more often
    *("existence", "existence", "existence", "relation", "relation", "relation", "comparison"),
    *("comparison", "count", "colour", "shape", "position", "position"),
)
EVALUATE_EVERY = 200


class Nano:
    """The whole model in the making, its processor, and the packed forward passes."""

    def __init__(self, folder: Path, *, draws: bool = True) -> None:
        self.processor = build_processor(vocabulary(), SIDE, TOKENS)
        self.layout = JanusLayout(self.processor)
        config = nano_config(
            len(self.processor.tokenizer), self.layout.image_token_id, self.layout.pad_id
        )
        self.model = JanusForConditionalGeneration(config)
        self.core = self.model.model
        tower = vision.Tower()
        vision.load(tower, folder)
        self.core.vision_model.load_state_dict(tower.vision_model.state_dict())
        self.core.aligner.load_state_dict(tower.aligner.state_dict())
        if draws:
            tokenizer.load(self.core.vqmodel, folder)
        for part in (self.core.vision_model, self.core.aligner, self.core.vqmodel):
            part.requires_grad_(False).eval()
        with torch.no_grad():
            self.core.generation_embeddings.weight.copy_(
                0.5 * self.core.vqmodel.quantize.embedding.weight
            )
        self.segment = lru_cache(maxsize=50_000)(self._segment)
        first = self.layout.question_ids("?")
        self.prefix = first[: len(first) - first[::-1].index(self.layout.image_token_id) + 1]

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        save_checkpoint(self.model, self.processor, folder)

    def _segment(self, question: str, answer: str) -> tuple[tuple[int, ...], int]:
        ids = self.layout.question_ids(question)[len(self.prefix) :]
        reply = self.layout.answer_ids(question, answer)
        return (*ids, *reply), len(reply)

    @torch.no_grad()
    def see(self, scenes: list[Scene]) -> Tensor:
        """Frozen vision features through the aligner, (B, 36, H)."""
        chunks = [scenes[i : i + 128] for i in range(0, len(scenes), 128)]
        return torch.cat(
            [
                self.core.aligner(self.core.vision_model(pictures(c) * 2 - 1).last_hidden_state)
                for c in chunks
            ]
        )

    @torch.no_grad()
    def encode(self, scenes: list[Scene]) -> Tensor:
        """Image codes (B, 36)."""
        chunks = [scenes[i : i + 128] for i in range(0, len(scenes), 128)]
        return torch.cat(
            [
                self.core.vqmodel.encode(pictures(c) * 2 - 1).image_tokens.view(-1, TOKENS)
                for c in chunks
            ]
        )

    def answer_logits(
        self, features: Tensor, asked: list[list[tuple[str, str]]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at answer positions, their targets, and the row (b * Q + q) of each.

        All questions of scene b share its image prefix: token t may look at the prefix and at its
        own segment only, and positions restart behind the prefix for every segment.
        """
        batch, prefix = len(asked), len(self.prefix)
        packed = [[self.segment(*qa) for qa in qas] for qas in asked]
        length = prefix + max(sum(len(ids) for ids, _ in row) for row in packed)
        ids = torch.full((batch, length), self.layout.pad_id)
        owner = torch.full((batch, length), -1)
        position = torch.zeros(batch, length, dtype=torch.long)
        ids[:, :prefix], owner[:, :prefix] = torch.tensor(self.prefix), 0
        position[:, :prefix] = torch.arange(prefix)
        where, targets, rows = [], [], []
        for b, row in enumerate(packed):
            at = prefix
            for q, (tokens, replies) in enumerate(row):
                end = at + len(tokens)
                ids[b, at:end], owner[b, at:end] = torch.tensor(tokens), q + 1
                position[b, at:end] = torch.arange(prefix, prefix + len(tokens))
                for target in range(end - replies, end):
                    where.append(b * length + target - 1)
                    targets.append(tokens[target - at])
                    rows.append(b * len(row) + q)
                at = end
        allowed = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
        allowed &= torch.ones(length, length, dtype=torch.bool).tril() & (owner >= 0)[:, None]
        allowed |= torch.eye(length, dtype=torch.bool)
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        embeds = self.core.language_model.embed_tokens(ids)
        image = ids == self.layout.image_token_id
        embeds = embeds.masked_scatter(image[..., None], features)
        hidden = self.core.language_model(
            inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=position
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[torch.tensor(where)])
        return logits, torch.tensor(targets), torch.tensor(rows)

    def code_logits(self, captions: list[str], codes: Tensor, blank: Tensor) -> Tensor:
        """Teacher-forced image logits; see the function."""
        return code_logits(self.model, self.layout, captions, codes, blank)


def code_logits(
    model: JanusForConditionalGeneration,
    layout: JanusLayout,
    captions: list[str],
    codes: Tensor,
    blank: Tensor,
) -> Tensor:
    """Teacher-forced image logits (B, N, V); rows in ``blank`` (B,) lose their caption."""
    tokens = layout.pad([layout.prompt_ids(c) for c in captions], "left", codes.device)
    ids = torch.where(blank[:, None], layout.unconditional(tokens.ids_BL), tokens.ids_BL)
    drawn = model.prepare_embeddings_for_image_generation(codes[:, :-1])
    language = model.model.language_model
    embeds = torch.cat([language.embed_tokens(ids), drawn], 1)
    mask = torch.cat([tokens.mask_BL, tokens.mask_BL.new_ones(drawn.shape[:2])], 1)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position
    ).last_hidden_state
    return model.model.generation_head(hidden[:, -codes.shape[1] :])


def save_checkpoint(
    model: JanusForConditionalGeneration, processor: JanusProcessor, folder: Path
) -> None:
    """Write a checkpoint in the Hub format, weights in bfloat16."""
    tokenizer_ = processor.tokenizer
    model = copy.deepcopy(model).to(torch.bfloat16)
    for part in (model.config.text_config, model.config.vision_config, model.config.vq_config):
        part.dtype = torch.bfloat16  # else that of a checkpoint that was loaded
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer_.bos_token_id,
        eos_token_id=tokenizer_.eos_token_id,
        pad_token_id=tokenizer_.pad_token_id,
        guidance_scale=3.0,
        generation_kwargs={
            "boi_token_id": tokenizer_.convert_tokens_to_ids(processor.image_start_token)
        },
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def understanding(nano: Nano, scenes: list[Scene], seed: int) -> dict[str, float]:
    """Share of questions of each kind answered exactly right (teacher-forced), and their mean."""
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = {k: [] for k in KINDS}
    features = nano.see(scenes)
    for start in range(0, len(scenes), 50):
        block, asked, kinds = scenes[start : start + 50], [], []
        for scene in block:
            found = [(k, qa) for k in KINDS if (qa := ask(scene, k, rng)) is not None]
            found += [("pad", found[0][1])] * (len(KINDS) - len(found))
            asked.append([qa for _, qa in found])
            kinds += [k for k, _ in found]
        logits, targets, rows = nano.answer_logits(features[start : start + 50], asked)
        correct = torch.ones(len(kinds), dtype=torch.bool)
        correct[rows[logits.argmax(-1) != targets]] = False
        for kind, ok in zip(kinds, correct.tolist(), strict=True):
            if kind != "pad":
                right[kind].append(ok)
    scores = {k: float(np.mean(v)) for k, v in right.items()}
    return {"mean": float(np.mean(list(scores.values()))), **scores}


@torch.no_grad()
def drawing(nano: Nano, count: int, seed: int, temperature: float = 0.0) -> float:
    """Object match of free-running pictures of plain captions, no guidance."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, combinations="all") for _ in range(count)]
    prompts = [nano.layout.prompt_ids(caption(s)) for s in scenes]
    tokens = nano.layout.pad(prompts, "left", nano.model.device)
    language, cache = nano.core.language_model, None
    embeds = language.embed_tokens(tokens.ids_BL)
    mask, position = tokens.mask_BL, tokens.positions_BL
    drawn = []
    for _ in range(TOKENS):
        out = language(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        logits = nano.core.generation_head(out.last_hidden_state[:, -1])
        if temperature:
            code = torch.multinomial((logits / temperature).softmax(-1), 1)
        else:
            code = logits.argmax(-1, keepdim=True)
        drawn.append(code)
        embeds = nano.model.prepare_embeddings_for_image_generation(code)
        mask = torch.cat([mask, mask.new_ones(count, 1)], 1)
        position = position[:, -1:] + 1
    images = nano.core.vqmodel.decode(torch.cat(drawn, 1)) * 0.5 + 0.5
    found = [read(i) for i in images.clamp(0, 1).permute(0, 2, 3, 1).numpy()]
    return object_match(found, map(truth, scenes))


class Answering:
    """The narrow part: clean scenes of seen combinations, their features, and its loss."""

    def __init__(self, nano: Nano, seed: int, scale: float = 1.0, batch: int = 16) -> None:
        self.rng = np.random.default_rng(seed)
        self.nano, self.batch = nano, batch
        self.scenes = [random_scene(self.rng) for _ in range(portion(5000, scale))]
        self.features = nano.see(self.scenes)

    def loss(self) -> Tensor:
        """CE over the answers of 13 questions and a caption for each of a batch of scenes."""
        chosen = self.rng.integers(len(self.scenes), size=self.batch)
        asked = [questions(self.scenes[i], self.rng) for i in chosen]
        logits, targets, _ = self.nano.answer_logits(self.features[torch.from_numpy(chosen)], asked)
        return F.cross_entropy(logits, targets)


class Drawing:
    """The broad part: captions -> codes of pictures of every kind, and its loss."""

    def __init__(self, nano: Nano, seed: int, scale: float = 1.0, batch: int = 24) -> None:
        self.rng = np.random.default_rng(seed)
        self.nano, self.batch = nano, batch
        scenes = broad_scenes(portion(14_000, scale), seed, plain=0.7, noise=False)
        self.codes, self.captions = nano.encode(scenes), [caption(s) for s in scenes]
        self.busy = F.max_pool2d(foreground(scenes), 8).flatten(1) > 0

    def loss(self) -> Tensor:
        """CE over image codes, patches that show an object weighing three times as much."""
        rows = torch.from_numpy(self.rng.integers(len(self.codes), size=self.batch))
        blank = torch.from_numpy(self.rng.random(self.batch) < 0.1)
        captions, codes = [self.captions[i] for i in rows.tolist()], self.codes[rows]
        logits = self.nano.code_logits(captions, codes, blank)
        ce = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        weight = torch.where(self.busy[rows], 3.0, 1.0)
        return (ce * weight).sum() / weight.sum()


def warm_up(folder: Path, seed: int, scale: float = 1.0, rate: float = 1.5e-3) -> None:
    """Learn to answer only; writes ``language.safetensors`` to ``folder``."""
    torch.manual_seed(seed)
    log, nano = Log(folder, "language-warm-up"), Nano(folder, draws=False)
    _optimise(
        nano,
        log,
        [Answering(nano, seed + 20, scale)],
        portion(600, scale),
        lambda s: min(1.0, (s + 1) / 100),
        rate,
    )
    save_file(
        {k: v.contiguous() for k, v in nano.core.language_model.state_dict().items()}
        | {"lm_head.weight": nano.model.lm_head.weight.detach()},
        folder / "language.safetensors",
    )


def train(folder: Path, seed: int, scale: float = 1.0, rate: float = 1.5e-3) -> None:
    """Train LM, image head and embeddings on both; writes the checkpoint ``both/``."""
    torch.manual_seed(seed + 1)
    log, nano = Log(folder, "language"), Nano(folder)
    state = load_file(folder / "language.safetensors")
    nano.model.lm_head.weight.data.copy_(state.pop("lm_head.weight"))
    nano.core.language_model.load_state_dict(state)
    drawing_part = Drawing(nano, seed + 21, scale)
    log(
        parameters=sum(p.numel() for p in nano.model.parameters()),
        trained=sum(p.numel() for p in nano.model.parameters() if p.requires_grad),
        codes_used=len(drawing_part.codes.unique()),
    )
    parts: list[Answering | Drawing] = [Answering(nano, seed + 20, scale), drawing_part]
    horizon = portion(1500, scale)  # the schedule aims beyond the stop: the next stage goes on
    _optimise(nano, log, parts, portion(600, scale), lambda s: warm_cosine(s, horizon, 60), rate)
    nano.save(folder / "both")


def finish(folder: Path, seed: int, scale: float = 1.0, rate: float = 8e-4) -> None:
    """Mostly drawing, a little answering, so that answers keep room; writes ``janus_nano/``."""
    torch.manual_seed(seed + 2)
    log, nano = Log(folder, "drawing"), Nano(folder)
    trained = {k for k, p in nano.model.named_parameters() if p.requires_grad}
    state = load_file(folder / "both" / "model.safetensors")
    missing = nano.model.load_state_dict({k: state[k] for k in trained}, strict=False).missing_keys
    assert not trained & set(missing)
    parts: list[Answering | Drawing] = [
        Answering(nano, seed + 30, scale, batch=4),
        Drawing(nano, seed + 31, scale, batch=48),
    ]
    steps = portion(700, scale)
    _optimise(nano, log, parts, steps, lambda s: warm_cosine(s, steps, 30), rate)
    nano.save(folder / "janus_nano")


def _optimise(
    nano: Nano,
    log: Log,
    parts: Sequence[Answering | Drawing],
    steps: int,
    schedule: Callable[[int], float],
    rate: float,
) -> None:
    """AdamW on the sum of the parts' losses; looks at validation scenes every 200 steps."""
    weights = [p for p in nano.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    check = [random_scene(np.random.default_rng([77, i])) for i in range(250)]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step)
        losses = [part.loss() for part in parts]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 50 == 49:
            names = (type(part).__name__.lower() for part in parts)
            log(step=step + 1, **{n: v.item() for n, v in zip(names, losses, strict=True)})
        if step % EVALUATE_EVERY == EVALUATE_EVERY - 1:
            nano.model.eval()
            drawn = {"drawn": drawing(nano, 100, 5)} if len(parts) > 1 else {}
            log(step=step + 1, **understanding(nano, check, 6), **drawn)
            nano.model.train()


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The questions of one scene in one step, its caption among them; a fixed number."""
    asked = [ask(scene, kind, rng) or ask(scene, "existence", rng) for kind in ASKED]
    return [qa for qa in asked if qa is not None] + [(CAPTION_QUESTION, caption(scene))]
