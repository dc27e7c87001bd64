"""Free-running decoding, cached and batched: text answers and image codes.

Both loops run the language model itself rather than transformers' ``generate``: the text head never
sees an image token, guidance of 1 is allowed, and sampling uses its own generator.

Shape suffixes: B samples, L prompt tokens, N image tokens, H width of the LM, V codes, R rows that
are still running, G shared prefixes of P tokens, T tokens fed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unigame.backbones.common.fast import cpu_llama, static_lm
from unigame.backbones.common.fast.cpu_llama import CpuLlama
from unigame.backbones.common.fast.prompt_cache import read_prompts
from unigame.backbones.common.fast.static_lm import StaticLM
from unigame.backbones.common.layout import PaddedTokens


@dataclass
class SharedPrefix:
    """The start that several prompts have in common: a picture and what stands before it.

    It goes through the language model once for each of the G pictures; its keys and values are
    then copied to the rows that ask about that picture. ``P`` is its number of tokens.

    Attributes:
        embeds_GPH: the prefixes, image features in place; no padding.
        source_B: which prefix each row goes on from.
    """

    embeds_GPH: Tensor
    source_B: Tensor


@dataclass(frozen=True)
class Sampling:
    """How image codes are chosen from their scores.

    Attributes:
        guidance_scale: of ``plain + guidance_scale * (conditional - plain)``; 1 means none.
        temperature: of the draws.
        uniform_BN: numbers (see ``uniform_numbers``) that choose the codes of each row; None takes
            the highest scores.
    """

    guidance_scale: float
    temperature: float
    uniform_BN: Tensor | None

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional branch."""
        return self.guidance_scale != 1.0

    def choose(self, logits_BV: Tensor, index: int) -> Tensor:
        """Code number ``index`` of each row; with guidance, of the first half of the rows."""
        if self.guided:
            conditional_BV, plain_BV = logits_BV.chunk(2)
            logits_BV = plain_BV + self.guidance_scale * (conditional_BV - plain_BV)
        if self.uniform_BN is None:
            return logits_BV.argmax(-1)
        probs_BV = (logits_BV / self.temperature).softmax(-1)
        return _inverse_cdf(probs_BV, self.uniform_BN[:, index])


class _CachedLM:
    """The language model with its cache: feed embeddings, get the newest hidden state."""

    def __init__(self, language_model: Any, tokens: PaddedTokens) -> None:
        self.language_model = language_model
        self.cache = DynamicCache(config=language_model.config)
        self.tokens = tokens
        self.mask_BL = tokens.mask_BL
        self.next_position_B1 = tokens.next_position_B1
        self.axes = 0 if tokens.axes_ABL is None else len(tokens.axes_ABL)
        self.behind = 0  # tokens of a shared prefix that stand before the prompts

    def share(self, prefix: SharedPrefix) -> None:
        """Run the prefixes and give every row its copy, before ``start``."""
        shape_GP = prefix.embeds_GPH.shape[:2]
        rows_mask_BL, self.mask_BL = self.mask_BL, self.mask_BL.new_ones(shape_GP)
        self._run(prefix.embeds_GPH, self.mask_BL.cumsum(-1) - 1)
        self.cache.batch_select_indices(prefix.source_B)
        self.mask_BL = torch.cat([self.mask_BL[prefix.source_B], rows_mask_BL], dim=-1)
        self.behind = shape_GP[1]
        self.next_position_B1 = self.next_position_B1 + self.behind

    def start(self, embeds_BLH: Tensor) -> Tensor:
        return self._run(embeds_BLH, self.tokens.positions + self.behind)

    def start_alike(self, embeds_BLH: Tensor) -> Tensor:
        """Start with prompts that are their tokens alone, each different one read once."""
        hidden_BH, self.cache = read_prompts(self.language_model, embeds_BLH, self.tokens)
        return hidden_BH

    def step(self, embeds_BTH: Tensor) -> Tensor:
        count = embeds_BTH.shape[1]
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(embeds_BTH), count)], -1)
        ahead_T = torch.arange(count, device=embeds_BTH.device)
        positions_BT = self.next_position_B1 + ahead_T
        axes = positions_BT.expand(self.axes, -1, -1) if self.axes else positions_BT
        hidden_BH = self._run(embeds_BTH, axes)
        self.next_position_B1 = self.next_position_B1 + count
        return hidden_BH

    def keep(self, rows_R: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows_R)
        self.mask_BL = self.mask_BL[rows_R]
        self.next_position_B1 = self.next_position_B1[rows_R]

    def _run(self, embeds: Tensor, positions: Tensor) -> Tensor:
        output = self.language_model(
            inputs_embeds=embeds,
            attention_mask=self.mask_BL,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]


@torch.no_grad()
def decode_text(
    language_model: Any,
    embed: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    embeds_BLH: Tensor,
    tokens: PaddedTokens,
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
    prefix: SharedPrefix | None = None,
) -> list[list[int]]:
    """Greedy token ids of each row, up to and without its end mark; finished rows leave the batch.

    Args:
        language_model: without its head, in evaluation mode.
        embed: its input embedding.
        head: its output layer.
        embeds_BLH: left-padded prompts, image features in place; with a prefix, what follows it.
        tokens: their mask and positions.
        max_new_tokens: stop a row here at the latest.
        end_ids: token ids that end an answer.
        prefix: the start that the prompts share.
    """
    model = _CachedLM(language_model, tokens)
    if prefix is not None:
        model.share(prefix)
    answers: list[list[int]] = [[] for _ in range(len(embeds_BLH))]
    running = list(range(len(embeds_BLH)))  # row of the batch -> which answer
    hidden_RH = model.start(embeds_BLH)
    for length in range(1, max_new_tokens + 1):
        next_R = head(hidden_RH).argmax(-1)
        tokens_R = next_R.tolist()
        kept = [row for row, token in enumerate(tokens_R) if token not in end_ids]
        for row in kept:
            answers[running[row]].append(tokens_R[row])
        if not kept or length == max_new_tokens:
            break
        if len(kept) < len(running):
            rows_R = torch.tensor(kept, device=next_R.device)
            model.keep(rows_R)
            next_R, running = next_R[rows_R], [running[row] for row in kept]
        hidden_RH = model.step(embed(next_R[:, None]))
    return answers


@torch.no_grad()
def decode_codes(
    language_model: Any,
    embeds_BLH: Tensor,
    tokens: PaddedTokens,
    *,
    count: int,
    scores: Callable[[Tensor], Tensor],
    feed: Callable[[Tensor, int], Tensor],
    sampling: Sampling,
    room: int,
    lean: bool = True,
) -> Tensor:
    """Image codes (B, N) that follow left-padded prompts.

    Args:
        language_model: without its head, in evaluation mode.
        embeds_BLH: the prompts; with guidance, their unconditional twins behind them.
        tokens: their mask and positions.
        count: N.
        scores: hidden states (B, H) -> scores of the codes (B, V).
        feed: codes (B, 1) and how many there are by now -> what goes in next (B, T, H): their
            embeddings, and what the family puts behind a row of codes.
        sampling: how a code is chosen.
        room: tokens that ``feed`` makes of all codes, at most.
        lean: use ``CpuLlama`` or, on a GPU, ``StaticLM`` where they apply; False is the class's own
            forward pass everywhere.
    """
    model: _CachedLM | CpuLlama | StaticLM
    if lean and cpu_llama.supports(language_model):
        model = CpuLlama(language_model, tokens, room=room)
    elif lean and static_lm.supports(language_model, tokens):
        model = StaticLM(language_model, tokens, room=room)
    else:
        model = _CachedLM(language_model, tokens)
    if lean and isinstance(model, _CachedLM):
        hidden_BH = model.start_alike(embeds_BLH)
    else:
        hidden_BH = model.start(embeds_BLH)
    codes: list[Tensor] = []
    while True:
        codes.append(sampling.choose(scores(hidden_BH).float(), len(codes)))
        if len(codes) == count:
            return torch.stack(codes, dim=1)
        fed_B = codes[-1].repeat(2) if sampling.guided else codes[-1]
        hidden_BH = model.step(feed(fed_B[:, None], len(codes)))


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), (B, count), each row from its own seed: the same on every device."""
    generator = torch.Generator()
    return torch.stack([torch.rand(count, generator=generator.manual_seed(s)) for s in seeds])


def _inverse_cdf(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The code of each row at which its summed probabilities pass the row's number."""
    cdf_BV = probs_BV.cumsum(-1)
    # Scaled by the sum, which rounding leaves a little off 1; right: never a code without chance.
    targets_B1 = (uniform_B * cdf_BV[:, -1])[:, None]
    codes_B = torch.searchsorted(cdf_BV, targets_B1, right=True).squeeze(-1)
    return codes_B.clamp(max=probs_BV.shape[1] - 1)
