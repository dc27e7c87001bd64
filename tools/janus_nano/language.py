"""Stage 3: one language model that answers and draws, trained from scratch.

Drawing is learned broadly (all combinations, every style under its word), answering narrowly (clean
scenes, held-out combinations left out), on frozen vision features and frozen codes; all weights of
the language model are trained on both. First it answers only, then both, then mostly draws: so that
answers keep room while drawing gets good.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor
from transformers import GenerationConfig, JanusForConditionalGeneration, JanusProcessor

from tools.common import vision
from tools.common.nano import Nano, Packed
from tools.common.pictures import PX, TOKENS, broad_scenes, busy_patches, pictures
from tools.common.progress import Log, Loop, chance, portion
from tools.common.reading import Answering, evaluate
from unigame.backbones.common.hub_model import LORA_TARGETS
from unigame.backbones.common.lora import language_model_lora
from unigame.backbones.folder import find_checkpoint
from unigame.backbones.janus.layout import JanusLayout, build_processor
from unigame.synthetic.questions import vocabulary
from unigame.synthetic.world import caption

from . import tokenizer
from .config import nano_config
from .vision import Tower

PHASES = ((200, 8, 0), (350, 3, 32), (400, 2, 36), (1500, 1, 40), (1500, 1, 40))
"""(steps, scenes asked about in a step, captions drawn in a step), in order."""
RESTARTS = (1.0, 1.0, 1.0, 0.8, 0.7)
"""The highest learning rate of each phase, as a share."""
EVALUATE_EVERY = 500


class JanusNano(Nano):
    """The whole model in the making, its processor, and its forward passes."""

    layout: JanusLayout

    def __init__(self, folder: Path) -> None:
        self.processor = build_processor(vocabulary(), PX, TOKENS)
        self.layout = JanusLayout(self.processor)
        config = nano_config(
            len(self.processor.tokenizer), self.layout.image_token_id, self.layout.pad_id
        )
        self.model = JanusForConditionalGeneration(config)
        self.core = self.model.model
        tower = Tower()
        vision.load(tower, folder)
        self.core.vision_model.load_state_dict(tower.vision_model.state_dict())
        self.core.aligner.load_state_dict(tower.aligner.state_dict())
        self.core.vqmodel.load_state_dict(tokenizer.new(folder).state_dict())
        for part in (self.core.vision_model, self.core.aligner, self.core.vqmodel):
            part.requires_grad_(False).eval()
        with torch.no_grad():
            self.core.generation_embeddings.weight.copy_(
                0.5 * self.core.vqmodel.quantize.embedding.weight
            )
        super().__init__()

    def _prefix_length(self, row: Sequence[int]) -> int:
        picture = list(row)[::-1].index(self.layout.image_token_id)
        return len(row) - picture + 1  # and the mark behind it

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """Frozen vision features through the aligner, (B, 81, H), of pictures in [0, 1]."""
        chunks = images.split(128)
        return torch.cat(
            [self.core.aligner(self.core.vision_model(c * 2 - 1).last_hidden_state) for c in chunks]
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Image codes (B, 81) of pictures in [0, 1]."""
        vq = self.core.vqmodel
        return torch.cat(
            [vq.encode(c * 2 - 1).image_tokens.view(-1, TOKENS) for c in images.split(96)]
        )

    def logits_at(self, packed: Packed, features: Tensor) -> Tensor:
        """See the base class."""
        mask = torch.zeros(packed.seen_BTT.shape)
        mask = mask.masked_fill(~packed.seen_BTT, torch.finfo(torch.float32).min)
        embeds = self.core.language_model.embed_tokens(packed.ids_BT)
        image = packed.ids_BT == self.layout.image_token_id
        embeds = embeds.masked_scatter(image[..., None], features)
        hidden = self.core.language_model(
            inputs_embeds=embeds,
            attention_mask=mask[:, None],
            position_ids=packed.positions_BT,
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden.flatten(0, 1)[packed.where])

    def redraw(self, images: Tensor) -> Tensor:
        """See the base class."""
        return tokenizer.redraw(self.core.vqmodel, images)

    def lora(self) -> LoraConfig:
        """See the base class."""
        return language_model_lora(None, LORA_TARGETS)

    def code_logits(self, captions: list[str], codes: Tensor, blank: Tensor) -> Tensor:
        """Teacher-forced image logits; see the function."""
        return code_logits(self.model, self.layout, captions, codes, blank)

    @torch.no_grad()
    def draw(self, captions: list[str], temperature: float, seed: int) -> Tensor:
        """Free-running pictures of captions in [0, 1], no guidance."""
        generator = torch.Generator().manual_seed(seed)
        tokens = self.layout.pad(
            [self.layout.prompt_ids(c) for c in captions], "left", self.model.device
        )
        language, cache = self.core.language_model, None
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
            logits = self.core.generation_head(out.last_hidden_state[:, -1])
            if temperature:
                weights = (logits / temperature).softmax(-1)
                code = torch.multinomial(weights, 1, generator=generator)
            else:
                code = logits.argmax(-1, keepdim=True)
            drawn.append(code)
            embeds = self.model.prepare_embeddings_for_image_generation(code)
            mask = torch.cat([mask, mask.new_ones(len(captions), 1)], 1)
            position = position[:, -1:] + 1
        return (self.core.vqmodel.decode(torch.cat(drawn, 1)) * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def start_from(self, checkpoint: str) -> None:
        """Take the words and layers of another Janus whose language model has this shape.

        Its picture tokens mean nothing here, but what a question asks does: the plateaus of
        existence and comparison are behind it.
        """
        other = JanusForConditionalGeneration.from_pretrained(find_checkpoint(checkpoint)).float()
        known = len(self.processor.tokenizer)
        state = other.model.language_model.state_dict()
        state["embed_tokens.weight"] = state["embed_tokens.weight"][:known]
        self.core.language_model.load_state_dict(state)
        self.model.lm_head.weight.copy_(other.lm_head.weight[:known])

    def save(self, folder: Path) -> None:
        """Write a checkpoint in the Hub format, weights in bfloat16."""
        save_checkpoint(self.model, self.processor, folder)


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


class Drawing:
    """The broad part: captions -> codes of pictures of every style, and its loss."""

    def __init__(self, nano: JanusNano, seed: int, scale: float) -> None:
        self.nano = nano
        scenes = broad_scenes(portion(14_000, scale), seed + 21, clean=0.65)
        self.captions = [caption(s) for s in scenes]
        blocks = [scenes[i : i + 960] for i in range(0, len(scenes), 960)]
        self.codes = torch.cat([nano.encode(pictures(block)) for block in blocks])
        self.busy = busy_patches(scenes)

    def loss(self, batch: int, rng: np.random.Generator) -> Tensor:
        """CE over image codes, patches that show an object weighing three times as much."""
        rows = torch.from_numpy(rng.integers(len(self.codes), size=batch))
        blank = torch.from_numpy(rng.random(batch) < 0.1)
        codes = self.codes[rows]
        logits = self.nano.code_logits([self.captions[i] for i in rows.tolist()], codes, blank)
        ce = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        weight = torch.where(self.busy[rows].flatten(), 3.0, 1.0)
        return (ce * weight).sum() / weight.sum()


def train(
    folder: Path, seed: int, scale: float = 1.0, rate: float = 1.5e-3, start: str | None = None
) -> None:
    """Train LM, image head and embeddings in the phases; writes ``janus_nano/``.

    ``start`` names a checkpoint whose language model is gone on with; None starts from scratch.
    """
    torch.manual_seed(seed + 1)
    log, nano = Log(folder, "language"), JanusNano(folder)
    if start is not None:
        nano.start_from(start)
    answering, drawing = Answering(nano, seed, scale), Drawing(nano, seed, scale)
    log(
        start=start or "scratch",
        parameters=sum(p.numel() for p in nano.model.parameters()),
        trained=sum(p.numel() for p in nano.model.parameters() if p.requires_grad),
        codes_used=len(drawing.codes.unique()),
    )
    ends = np.cumsum([portion(steps, scale) for steps, _, _ in PHASES]).tolist()
    weights = [p for p in nano.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.05)

    def schedule(step: int) -> float:
        """Warm-up, constant for two phases, then in each a cosine to almost nothing."""
        if step < 100:
            return rate * (step + 1) / 100
        if step < ends[1]:
            return rate
        phase = sum(step >= end for end in ends[:-1])
        left = (step - ends[phase - 1]) / max(1, ends[phase] - ends[phase - 1])
        return rate * RESTARTS[phase] * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * left)))

    loop = Loop(folder, "language", nano.model, optimizer, schedule, log)
    for step in loop.steps(ends[-1]):
        phase = sum(step >= end for end in ends[:-1])
        _, scenes, captions = PHASES[phase]
        rng, _ = chance(seed + 30, step)
        losses = {"answering": answering.loss(scenes, rng)}
        if captions:
            losses["drawing"] = drawing.loss(captions, rng)
        loop.descend(torch.stack(list(losses.values())).sum())
        if step % 25 == 24:
            log(step=step + 1, **{k: v.item() for k, v in losses.items()})
        if step % EVALUATE_EVERY == EVALUATE_EVERY - 1 or step + 1 in ends:
            evaluate(nano, seed, log, step + 1, bool(captions), scale)
    nano.save(folder / "janus_nano")
