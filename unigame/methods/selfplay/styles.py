"""C in the space of prompts: in which style G is to draw, so that U reads the drawing wrong.

    B  samples in the batch    K  candidates drawn per sample    M  styles
    N  image tokens            H  width of the language model    E  B*K rows, row b*K+k

A nudge of states that are computed in one teacher-forced pass cannot draw a texture: the clean
codes before a place outvote it (docs/notebook.md). Drawn *freely*, one code after another, the same
model draws every style that it knows a word for. So here G draws the captions of the batch anew,
each in a style that C chooses, and the rest is the game as it is: the verifier says which drawings
show their caption, U answers, and hard drawings enter the buffer.

C is a distribution over M styles. A drawing is worth to it how likely U misreads it, if it is
verified, else nothing. C answers best to what its drawings were worth of late, with a price on
lost entropy, so that no style dies out: with mean worths v the distribution that maximises the
expected worth plus lambda times the entropy is softmax(v / lambda), the logit response of game
theory (McKelvey and Palfrey 1995). Worths differ by a few hundredths, and a policy gradient on
so few drawings walked at random for a third of a run. The drawings need no gradient and no
teacher-forced pass.

G draws as it was before training, LoRA off: what U learns is not to change what G can draw. The
true answer must follow from the caption, because nothing else holds the content here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigame.backbones.base import Drawing
from unigame.errors import UserError
from unigame.methods.base import Run
from unigame.methods.rows import Rows
from unigame.methods.selfplay.candidates import ChallengeResult, judged
from unigame.methods.selfplay.objectives import hardness
from unigame.methods.selfplay.settings import CAPTION, SelfPlaySettings
from unigame.seeds import derive_seed

if TYPE_CHECKING:
    from unigame.methods.semantics import SimilarityScorer


PRIOR = 32
"""Drawings of the mean worth that each style begins with, and goes back to unless it is drawn."""


class StylePolicy:
    """C: how often each style is chosen.

    Args:
        count: M.
        entropy_weight: lambda, price of a nat of lost entropy.
        memory: steps over which worths are remembered; 0: all styles are equally likely, for good.
    """

    def __init__(self, count: int, entropy_weight: float, memory: float) -> None:
        self.entropy_weight, self.memory = entropy_weight, memory
        self.drawn_M = torch.zeros(count, dtype=torch.float64)
        self.worth_M = torch.zeros(count, dtype=torch.float64)

    def chances(self) -> Tensor:
        """Of each style, (M,), float64."""
        mean = self.worth_M.sum() / self.drawn_M.sum().clamp(min=1)
        value_M = (self.worth_M + PRIOR * mean) / (self.drawn_M + PRIOR)
        return (value_M / self.entropy_weight).softmax(dim=0)

    def choose(self, samples: int, candidates: int, generator: torch.Generator) -> Tensor:
        """A style for each candidate, (B, K), on the CPU."""
        drawn_E = torch.multinomial(
            self.chances(), samples * candidates, replacement=True, generator=generator
        )
        return drawn_E.view(samples, candidates)

    def see(self, seen_2M: Tensor) -> None:
        """What became of a step's drawings.

        Args:
            seen_2M: drawings of each style, and the sum of their worths.
        """
        if self.memory == 0:
            return
        kept = 1 - 1 / max(self.memory, 1.0)
        drawn_M, worth_M = seen_2M.double().cpu()
        self.drawn_M = kept * self.drawn_M + drawn_M
        self.worth_M = kept * self.worth_M + worth_M

    def state_dict(self) -> dict[str, list[float]]:
        """What it remembers."""
        return {"drawn": self.drawn_M.tolist(), "worth": self.worth_M.tolist()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restore what ``state_dict`` gave."""
        self.drawn_M = torch.tensor(state["drawn"], dtype=torch.float64)
        self.worth_M = torch.tensor(state["worth"], dtype=torch.float64)


def worth(ce_BK: Tensor, verified_BK: Tensor) -> Tensor:
    """How likely U misreads each drawing, 1 - exp(-CE); 0 where it is not verified, (B, K)."""
    return -torch.expm1(-ce_BK.clamp(min=0)) * verified_BK


def prompts_of(settings: SelfPlaySettings, seed: int) -> list[str]:
    """What stands around a caption in each style.

    ``perturbation="random"`` is the control of directions that mean nothing: the letters of each
    style in random order, by the seed. ``"none"`` draws every caption as it is.
    """
    if settings.perturbation == "none":
        return [CAPTION]
    if settings.perturbation == "random":
        return [_shuffled(style, derive_seed(seed, "style", style)) for style in settings.styles]
    return list(settings.styles)


def _shuffled(style: str, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return CAPTION.join(_shuffled_words(part, generator) for part in style.split(CAPTION))


def _shuffled_words(text: str, generator: torch.Generator) -> str:
    letters = [letter for letter in text if letter.isalpha()]
    order = iter(torch.randperm(len(letters), generator=generator).tolist())
    return "".join(letters[next(order)] if letter.isalpha() else letter for letter in text)


@dataclass
class StyleCounts:
    """What became of the drawings of each style, over a run."""

    drawn: list[int]
    verified: list[int]
    misread: list[int]

    @classmethod
    def of(cls, count: int) -> StyleCounts:
        """Nothing yet."""
        return cls([0] * count, [0] * count, [0] * count)

    def add(self, counts_3M: Tensor) -> None:
        """More of each."""
        for kept, more in zip(vars(self).values(), counts_3M.tolist(), strict=True):
            kept[:] = [before + int(new) for before, new in zip(kept, more, strict=True)]


class Styles:
    """The player: draws, judges, learns.

    Args:
        settings: of self-play, with styles.
        run: that it takes part in.
        scorer: the verifier, which reads captions.
    """

    def __init__(self, settings: SelfPlaySettings, run: Run, scorer: SimilarityScorer) -> None:
        self.settings, self.run, self.scorer = settings, run, scorer
        self.prompts = prompts_of(settings, run.args.seed)
        learns = settings.perturbation == "learned"
        self.policy = StylePolicy(
            len(self.prompts), settings.style_entropy, settings.style_memory if learns else 0
        )
        seed = derive_seed(run.args.seed, "styles", run.rank)
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = 0  # drawings so far: each has a seed of its own
        self.counts = StyleCounts.of(len(self.prompts))
        self._seen_2M: Tensor | None = None  # of this step so far

    def play_by(self, settings: SelfPlaySettings) -> None:
        """Other settings from now on; the styles, and what C remembers of them, stay."""
        self.settings = settings
        self.policy.entropy_weight = settings.style_entropy
        learns = settings.perturbation == "learned"
        self.policy.memory = settings.style_memory if learns else 0

    @staticmethod
    def figures(settings: SelfPlaySettings) -> tuple[str, ...]:
        """Names of what ``play`` logs."""
        of_styles = [
            f"style_{style}_{what}"
            for style in range(len(prompts_of(settings, 0)))
            for what in ("used", "verified", "misread")
        ]
        return ("styled_ce", "styled_similarity", "styled_verified", "styled_misread", *of_styles)

    def rows(self, rows: Rows) -> Rows:
        """What is drawn anew: the last rows, because the challenge takes the first."""
        count = math.ceil(self.settings.styled_share * len(rows))
        return rows if count == len(rows) else rows.pick(range(len(rows) - count, len(rows)))

    @staticmethod
    def drawable(rows: Rows) -> Rows:
        """Those with a caption, given or made: by a question alone no true answer can be drawn."""
        chosen = [row for row, caption in enumerate(rows.captions) if caption.strip()]
        return rows if len(chosen) == len(rows) else rows.pick(chosen)

    def play(self, rows: Rows, add: Callable[..., None]) -> ChallengeResult | None:
        """Draw each row's caption in styles of C's choice, judge the drawings, and let C learn.

        None of rows that only keep step: nothing is drawn of them, and C sees the others' drawings.

        Args:
            rows: with questions, answers and captions.
            add: logs a figure.
        """
        settings = self.settings
        if not rows.counts:
            with self.run.in_step():  # goes along where weights are shared out
                self._see(torch.zeros(2, len(self.prompts)))
            return None
        style_BK = self.policy.choose(len(rows), settings.num_candidates, self.generator)
        count = style_BK.numel()
        seeds = [
            derive_seed(self.run.args.seed, "styled", self.run.rank, self.drawn + row)
            for row in range(count)
        ]
        self.drawn += count
        with self.run.in_step():
            result = self._drawn(rows, style_BK, seeds)
        verified_BK = result.similarity_BK >= settings.clip_floor
        worth_BK = worth(result.ce_BK, verified_BK)
        self._see(self._counted(style_BK, worth_BK))
        misread_BK = verified_BK & ~result.right_BK
        self._record(style_BK, verified_BK.cpu(), misread_BK.cpu(), result, add)
        return result

    def drawn_in(self, rows: Rows, style: int) -> ChallengeResult:
        """A drawing of each row in one style; nothing of the run moves."""
        seeds = [derive_seed(self.run.args.seed, "style", style, text) for text in rows.ids]
        return self._drawn(rows, torch.full((len(rows), 1), style), seeds)

    def show(self, rows: Rows) -> tuple[ChallengeResult, list[str]]:
        """A drawing of each row for people, and the style of each; nothing of the run moves."""
        generator = torch.Generator().manual_seed(derive_seed(self.run.args.seed, "shown"))
        style_B1 = self.policy.choose(len(rows), 1, generator)
        seeds = [derive_seed(self.run.args.seed, "shown", row) for row in range(len(rows))]
        styles = [self.prompts[style] for style in style_B1.flatten().tolist()]
        return self._drawn(rows, style_B1, seeds), styles

    def _texts(self, rows: Rows, style_BK: Tensor) -> list[str]:
        return [
            self.prompts[style].replace(CAPTION, caption)
            for caption, own in zip(rows.prompts, style_BK.tolist(), strict=True)
            for style in own
        ]

    @torch.no_grad()
    def _drawn(self, rows: Rows, style_BK: Tensor, seeds: Sequence[int]) -> ChallengeResult:
        backbone, settings = self.run.backbone, self.settings
        with backbone.lora_disabled():
            compact = backbone.generate_compact(
                self._texts(rows, style_BK),
                seeds=seeds,
                guidance_scale=settings.guidance_scale,
                temperature=settings.style_temperature,
            )
        with backbone.without_dropout():
            images = backbone.render(compact).float().clamp(0, 1)
            drawing = Drawing(images=images, compact=compact)
            features, tokens_ENH = backbone.read_images(images)
            reading = judged(backbone, drawing, features, tokens_ENH, rows, self.scorer)
        ce_BK, similarity_BK = reading.ce_BK.float(), reading.similarity_BK.float()
        nothing_B = ce_BK.new_zeros(len(rows), 0, 0)
        return ChallengeResult(
            objective=ce_BK.mean(),
            ce_BK=ce_BK,
            right_BK=reading.right_BK,
            hardness_BK=hardness(ce_BK, similarity_BK, settings.clip_weight, settings.clip_floor),
            similarity_BK=similarity_BK,
            delta_BNH=nothing_B,  # no state is perturbed
            states_BNH=nothing_B,
            drawing=drawing,
            tokens_ENH=tokens_ENH,
            codes=None,
            metrics={},
            backbone=backbone,
        )

    def _counted(self, style_BK: Tensor, worth_BK: Tensor) -> Tensor:
        """Drawings of each style, and what they are worth together, (2, M)."""
        count, style_E = len(self.prompts), style_BK.flatten()
        drawn_M = torch.bincount(style_E, minlength=count).float()
        worth_M = torch.bincount(style_E, worth_BK.flatten().float().cpu(), minlength=count)
        return torch.stack([drawn_M, worth_M])

    def _see(self, seen_2M: Tensor) -> None:
        """C sees what the drawings of all processes were worth, once a step."""
        if self._seen_2M is not None:
            seen_2M = seen_2M + self._seen_2M
        if not self.run.closes_step():
            self._seen_2M = seen_2M
            return
        self._seen_2M = None
        self.policy.see(self.run.sum(seen_2M.to(self.run.device)))

    def _record(
        self,
        style_BK: Tensor,
        verified_BK: Tensor,
        misread_BK: Tensor,
        result: ChallengeResult,
        add: Callable[..., None],
    ) -> None:
        styles_E, count = style_BK.flatten(), len(self.prompts)
        weights = (torch.ones_like(verified_BK), verified_BK, misread_BK)
        of_styles = [
            torch.bincount(styles_E, weight_BK.flatten().double(), minlength=count)
            for weight_BK in weights
        ]
        counts_3M = torch.stack(of_styles)
        self.counts.add(counts_3M)
        drawn, verified, misread = counts_3M.sum(1).tolist()
        add("styled_ce", result.ce_BK.mean())
        add("styled_similarity", result.similarity_BK.mean())
        add("styled_verified", verified, drawn)
        add("styled_misread", misread, verified)
        for style, (used, kept, wrong) in enumerate(zip(*counts_3M.tolist(), strict=True)):
            add(f"style_{style}_used", used, drawn)
            add(f"style_{style}_verified", kept, used)
            add(f"style_{style}_misread", wrong, kept)

    def summary(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> str:
        """What became of each style, of all processes; every one of them must ask."""
        values = torch.tensor(list(vars(self.counts).values()), dtype=torch.float64)
        drawn_M, verified_M, misread_M = sum_over_ranks(values.to(self.run.device)).tolist()
        whole = sum(drawn_M)
        if not whole:
            return "Styles: nothing was drawn, because no row has a caption; see missing_captions."
        parts = []
        for prompt, drawn, verified, misread in zip(
            self.prompts, drawn_M, verified_M, misread_M, strict=True
        ):
            kept = verified / drawn if drawn else 0.0
            wrong = misread / verified if verified else 0.0
            name = prompt.replace(CAPTION, "...")
            parts.append(
                f"{name!r} {drawn / whole:.0%} (verified {kept:.0%}, of them misread {wrong:.0%})"
            )
        return f"Styles of {whole:.0f} free drawings: {'; '.join(parts)}."

    # ---- checkpoints ---------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        return {
            "policy": self.policy.state_dict(),
            "generator": self.generator.get_state(),
            "drawn": self.drawn,
            "counts": {name: list(value) for name, value in vars(self.counts).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            UserError: a state of the earlier policy, which had logits.
        """
        if "drawn" not in state["policy"]:
            raise UserError(
                "the checkpoint's styles are of an earlier version, whose C had learned logits; "
                "train anew, or resume with the version that wrote it"
            )
        self.policy.load_state_dict(state["policy"])
        self.generator.set_state(state["generator"])
        self.drawn = state["drawn"]
        self.counts = StyleCounts(**{name: list(value) for name, value in state["counts"].items()})

    @staticmethod
    def regrouped(
        states: Sequence[Mapping[str, Any] | None], own: Mapping[str, Any] | None, rank: int
    ) -> dict[str, Any] | None:
        """What this process goes on with where another number of them was before.

        C is the same on all. A process that was not there begins its own numbers and noise; what
        was counted stays with the first.
        """
        first = states[0]
        if first is None or own is None:
            return None
        zeros = StyleCounts.of(len(own["counts"]["drawn"]))
        summed = zeros if rank else _summed([state["counts"] for state in states if state])
        return {
            **first,
            "generator": own["generator"],
            "drawn": own["drawn"],
            "counts": vars(summed),
        }


def _summed(counts: Sequence[Mapping[str, list[int]]]) -> StyleCounts:
    whole = StyleCounts.of(len(counts[0]["drawn"]))
    for one in counts:
        whole.add(torch.tensor([one[name] for name in vars(whole)]))
    return whole
