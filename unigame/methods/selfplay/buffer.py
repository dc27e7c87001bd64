"""B, the hard-sample buffer (Eq. 4 and F.2): the drawn pictures that beat U, ready for replay.

It keeps the hardest ``capacity`` of what it was given, and sampling takes nothing out: a sample
leaves when a harder one needs its place, when U has learned it, or when U could not learn it in
``max_replays`` replays (``refresh``). A picture is stored as its codes (about 1 kB), not as pixels
(440 kB), in int16 or int32 on the CPU; the backbone's ``render`` turns them into pixels again.
Random draws come from the buffer's own generator, so mining or replaying never moves the global
random state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.methods.rows import shrink
from unigame.methods.selfplay.recent import RecentHardness

STATE_VERSION = 3
READS = (2, STATE_VERSION)
"""2: replays were not counted, and count from 0; 1: hardness with the end mark, no ``recent``."""


@dataclass(frozen=True)
class HardSample:
    """One candidate that beat U, with the question and true answer of the image it redraws.

    Attributes:
        compact: what ``render`` takes, without batch dimension: codes (N,) or a latent; in token
            space the perturbed tokens z_til (N, H).
        question: as asked of the original image.
        answer: the original's true answer; accepted as still true of the candidate.
        hardness: H when mined; then the loss of the latest replay. An accepted candidate is above
            the similarity floor, so the bonus of H is 0 and the two are the same quantity.
        similarity: of the candidate to the original, when mined.
        source: identifies the original sample, for the cap per source; an empty id is not capped.
        step: training step of the mining.
        tokens: z (N, H), what U reads of the picture, where it is worth keeping: it spares drawing
            and encoding the picture again. Never part of a checkpoint.
        seen: training step of the latest replay, which gave ``hardness``; None: not replayed yet.
        replays: how often it was replayed.
    """

    compact: Tensor
    question: str
    answer: str
    hardness: float
    similarity: float
    source: str | int
    step: int
    tokens: Tensor | None = field(default=None, compare=False, repr=False)
    seen: int | None = None
    replays: int = 0


def stack_compact(samples: Sequence[HardSample], device: torch.device | str = "cpu") -> Tensor:
    """The samples' compact forms as one batch for ``render`` (or ``embeds`` in token space).

    Codes come back as int64, latents and tokens as float32.
    """
    stacked = torch.stack([sample.compact for sample in samples]).to(device)
    return stacked.float() if stacked.is_floating_point() else stacked.long()


class HardSampleBuffer:
    """The hardest ``capacity`` candidates seen so far.

    Args:
        capacity: how many to keep; the paper's best is 50.
        seed: of the buffer's own generator.
        per_source: at most this many from one original sample (None: no cap). The authors' later
            configuration has 2; without a cap one difficult image can fill the buffer.
        window: candidates among which a new one must be hard to enter; see ``recent``.
        max_replays: a sample leaves after as many replays (None: it stays until it is learned).
            What U cannot learn is the likeliest to be labelled wrongly, and without a limit it is
            what is left of an old buffer.

    Attributes:
        recent: how hard the latest candidates were, also those that were refused.

    Raises:
        UserError: a capacity, cap, window or limit below 1.
    """

    def __init__(
        self,
        capacity: int = 50,
        seed: int = 0,
        per_source: int | None = None,
        window: int = 256,
        max_replays: int | None = None,
    ) -> None:
        if capacity < 1:
            raise UserError(
                f"buffer capacity={capacity!r}: must be at least 1; to play without a buffer, "
                "turn the buffer off instead"
            )
        if per_source is not None and per_source < 1:
            raise UserError(f"buffer per_source={per_source!r}: must be at least 1, or None")
        if max_replays is not None and max_replays < 1:
            raise UserError(f"buffer max_replays={max_replays!r}: must be at least 1, or None")
        self.capacity = capacity
        self.max_replays = max_replays
        self.per_source = per_source
        self.generator = torch.Generator().manual_seed(seed)
        self.recent = RecentHardness(window)
        self._samples: list[HardSample] = []  # hardest first; among equals the newest first

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def samples(self) -> tuple[HardSample, ...]:
        """What is in the buffer, hardest first."""
        return tuple(self._samples)

    def push(self, samples: Iterable[HardSample]) -> int:
        """Offer candidates; keep the hardest. Returns how many of them were kept.

        Among equally hard ones the newest stay: they were drawn against the most recent model.
        """
        new = [replace(sample, compact=shrink(sample.compact)) for sample in samples]
        new.reverse()
        # Stable sort: equals keep this order, newest first, and samples are never compared.
        ranked = sorted(new + self._samples, key=lambda sample: -sample.hardness)
        self._samples = self._trim(ranked)
        kept = {id(sample) for sample in self._samples}
        return sum(id(sample) in kept for sample in new)

    def _trim(self, ranked: list[HardSample]) -> list[HardSample]:
        if self.per_source is None:
            return ranked[: self.capacity]
        count: dict[str | int, int] = {}
        kept = []
        for sample in ranked:
            count[sample.source] = count.get(sample.source, 0) + 1
            if sample.source == "" or count[sample.source] <= self.per_source:
                kept.append(sample)
        return kept[: self.capacity]

    def sample(self, n: int) -> list[HardSample]:
        """Draw n different samples, uniformly, and leave them in the buffer.

        Returns exactly n as soon as the buffer holds n; before that all it holds. How full it must
        be before replay starts is the trainer's decision.
        """
        if n < 0:
            raise ValueError(f"cannot sample {n} items: n must not be negative")
        order = torch.randperm(len(self._samples), generator=self.generator)[:n]
        return [self._samples[i] for i in order.tolist()]

    def refresh(
        self,
        samples: Sequence[HardSample],
        hardness: Sequence[float],
        learned: Sequence[bool],
        step: int,
    ) -> tuple[int, int]:
        """Write back what a replay found; what U has learned leaves, and what was replayed enough.

        Args:
            samples: as ``sample`` gave them.
            hardness: of each, now. One that is not finite changes nothing.
            learned: which of them leave.
            step: of the replay.

        Returns:
            How many left because U learned them, and how many because of ``max_replays``.
        """
        found = {
            id(sample): (value, gone)
            for sample, value, gone in zip(samples, hardness, learned, strict=True)
            if math.isfinite(value)
        }
        kept = []
        num_learned = given_up = 0
        for sample in self._samples:
            value, gone = found.get(id(sample), (None, False))
            if value is None:
                kept.append(sample)
            elif gone:
                num_learned += 1
            elif self.max_replays is not None and sample.replays + 1 >= self.max_replays:
                given_up += 1
            else:
                again = replace(sample, hardness=value, seen=step, replays=sample.replays + 1)
                kept.append(again)
        self._samples = sorted(kept, key=lambda sample: -sample.hardness)
        return num_learned, given_up

    def forget_tokens(self) -> None:
        """Drop all kept ``tokens``; who replays the samples draws and reads their pictures again.

        Done at every checkpoint: a resumed run starts without them, and the run that goes on must
        not differ from it in the last bits.
        """
        self._samples = [replace(sample, tokens=None) for sample in self._samples]

    def hardness_quantiles(
        self, quantiles: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    ) -> dict[str, float]:
        """Quantiles of the hardness of what is in the buffer, for logging; empty when it is empty.

        Keys are ``"q00"``, ``"q25"``, ``"q50"``, ``"q75"``, ``"q100"``.
        """
        return _quantiles([sample.hardness for sample in self._samples], quantiles)

    def age_quantiles(
        self, step: int, quantiles: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    ) -> dict[str, float]:
        """Likewise of the steps since each sample was mined."""
        return _quantiles([step - sample.step for sample in self._samples], quantiles)

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves, in plain types: loads under ``torch.load(weights_only=True)``."""
        return {
            "version": STATE_VERSION,
            "capacity": self.capacity,
            "samples": [_fields(sample) for sample in self._samples],
            "generator": self.generator.get_state(),
            "recent": self.recent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``'s content. This buffer's own sizes and cap stay in force.

        Raises:
            UserError: the state is empty, of another version, or not of a buffer.
        """
        if not {"version", "samples", "generator"} <= state.keys():
            raise UserError(
                f"not the state of a hard-sample buffer: it has the keys {sorted(state)}; give "
                "what HardSampleBuffer.state_dict() returned"
            )
        if state["version"] not in READS:
            raise UserError(
                f"buffer state of version {state['version']!r}, this code reads {READS}: "
                "resume with the version of unigame that wrote it, or start without the buffer"
            )
        self._samples = self._trim([HardSample(**fields) for fields in state["samples"]])
        self.generator.set_state(state["generator"].cpu())
        self.recent.load_state_dict(state["recent"])


def _quantiles(values: Sequence[float], quantiles: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = torch.tensor(values, dtype=torch.float64)
    at = torch.quantile(found, torch.tensor(quantiles, dtype=torch.float64)).tolist()
    return {f"q{round(100 * q):02d}": value for q, value in zip(quantiles, at, strict=True)}


def _fields(sample: HardSample) -> dict[str, Any]:
    """What a checkpoint holds, as a dict that shares its tensor (``asdict`` would copy it)."""
    names = (name for name in HardSample.__dataclass_fields__ if name != "tokens")
    return {name: getattr(sample, name) for name in names}
