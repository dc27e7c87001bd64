"""Every setting of self-play, with what it takes and what it does: the one home of both.

The same class serves Python (``SelfPlay(beta=0.25)``), recipes (``methods: {selfplay: {beta:
0.25}}``) and the command line (``--selfplay.beta 0.25``). Where a default is not the paper's, the
help says so.

Pace: U (LoRA weights of the language model) moves once per optimizer step; C (the perturber) moves
``perturber_steps`` times in each ``challenge_every``-th step. So C:U = ``perturber_steps :
challenge_every``. More than one update of C falls into every micro-batch: under gradient
accumulation it is ``perturber_steps * gradient_accumulation_steps : challenge_every`` then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unigame.errors import UserError
from unigame.methods.selfplay.inert import inert
from unigame.methods.semantics import SCORERS
from unigame.settings.rules import Many, Number, Switch, Text, Whole, check_fields, setting

MOST = 2**31 - 1  # of steps and rows: what every library counts with
_POSITIVE = Number(low=0, above=True)
_WEIGHT = Number(low=0)
_COSINE = Number(low=-1, high=1)
_COUNT = Whole(low=1, high=MOST)
_COUNT_OR_NONE = Whole(low=1, high=MOST, optional=True)
CAPTION = "{caption}"
"""Stands for the caption in a style."""
# Schedules of transformers that need no more than steps.
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)


@dataclass
class SelfPlaySettings:
    """Settings of ``SelfPlay``; every value is checked when the object is made.

    Raises:
        UserError: for a value outside its range, or two settings that contradict each other.
    """

    # ---- pace of the two players ---------------------------------------------------------------
    challenge_every: int = setting(
        1,
        Whole(low=1, high=MOST),
        "Challenge on every m-th optimizer step (m of Algorithm 1).",
    )
    challenge_share: float = setting(
        1.0,
        Number(low=0, above=True, high=1),
        "Share of a batch that C challenges; 0.5 challenges half of it, at half the cost.",
    )
    challenge_drawings: bool = setting(
        False,
        Switch(),
        "Challenge confirmed drawings of methods listed before this one (imagine, verify) in the "
        "place of the batch's pictures, and draw their captions in styles in the place of the "
        "batch's: new content from captions, hard style from C, truth from the verifier. Several "
        "such methods take turns. The batch, until there are any.",
    )
    perturber_steps: int = setting(
        1,
        Whole(low=1, high=10_000),
        "Updates of C per challenge. C:U ratio = perturber_steps : challenge_every; more than one "
        "are made in every micro-batch.",
    )
    redrawn_every: int = setting(
        10,
        Whole(low=0, high=MOST),
        "On every n-th challenge redraw its pictures without C, too, under the same noise: what "
        "the redrawing does is not C's doing. It stands beside the attack's figures as redrawn_*. "
        "Costs the forward passes of a challenge, about a quarter of one: 2 % at 10. 0: never.",
    )
    mine_every: int = setting(
        1, _COUNT, "Offer the candidates of every n-th challenge to the buffer."
    )
    beta: float = setting(0.5, _WEIGHT, "Weight of the hard samples in Eq. 6.")

    # ---- player C (perturber) ------------------------------------------------------------------
    perturber_learning_rate: float = setting(
        5e-3, Number(low=0, high=1e30), "AdamW learning rate of C (gen_lr)."
    )
    perturber_weight_decay: float = setting(0.0, _WEIGHT, "AdamW weight decay of C.")
    perturber_lr_scheduler_type: str = setting(
        "constant",
        Text(choices=SCHEDULES),
        "Schedule of C's learning rate over optimizer steps, by transformers' names.",
    )
    perturber_warmup_steps: int = setting(
        0, Whole(low=0, high=MOST), "Optimizer steps of linear warm-up for C."
    )
    perturber_max_grad_norm: float = setting(
        1.0, _POSITIVE, "C's gradient is clipped to this norm."
    )
    perturber_width: int = setting(
        256, Whole(low=1, high=65_536), "Hidden width of C; 256 gives the paper's 2.1M at H=4096."
    )
    perturber_depth: int = setting(
        3,
        Whole(low=0, high=100),
        "Linear layers of C. 0, where directions are shared: none, a learned vector alone is the "
        "direction of every picture. It cannot know what a picture shows, so it changes style.",
    )
    perturber_scope: str = setting(
        "token",
        Text(choices=("token", "shared", "heads")),
        "'token': a direction for each token, as in the paper; 'shared': one for all tokens of a "
        "picture, from their mean and a learned vector; 'heads': several shared ones, of which "
        "each candidate draws one.",
    )
    perturber_heads: int = setting(
        4, Whole(low=2, high=1024), "Directions of perturber_scope=heads."
    )
    diversity_weight: float = setting(
        0.0,
        _WEIGHT,
        "Weight of the term that keeps heads apart: the cosine of two of them, where positive.",
    )
    restart_below: float = setting(
        0.0,
        Number(low=0, high=1),
        "A shared direction starts anew when a smaller share of its candidates was verified "
        "(reached clip_floor): it destroys content. 0: never.",
    )
    restart_window: int = setting(
        64, _COUNT, "Candidates, of all processes together, that restart_below is judged by."
    )
    warm_up_steps: int = setting(
        0,
        Whole(low=0, high=MOST),
        "First optimizer steps in which C plays alone: U stays as it is. They count in max_steps.",
    )
    perturbation: str = setting(
        "learned",
        Text(choices=("learned", "random", "none")),
        "'learned' (C), 'random' (a direction of the same norm) or 'none' (round trip).",
    )
    perturb_space: str = setting(
        "decoder",
        Text(choices=("decoder", "tokens")),
        "'decoder': draw the states and read the picture; 'tokens': no decoding.",
    )
    eps_max: float = setting(0.02, _POSITIVE, "Largest L2 norm of the perturbation of a token.")
    eps_init: float = setting(
        0.01, _POSITIVE, "Norm of the perturbation at the start; below eps_max."
    )
    eps_gate: str = setting(
        "learned",
        Text(choices=("learned", "fixed")),
        "'learned': C finds its own eps, which may shrink to harmless; 'fixed': it stays eps_init.",
    )
    strengths: list[float] = setting(
        (1.0,),
        Many(item=Number(low=0, above=True, high=1), least=1),
        "Multiples of eps, of which each candidate draws one.",
    )
    eps_mode: str = setting(
        "absolute",
        Text(choices=("absolute", "relative")),
        "eps as it is, or 'relative' to the RMS norm of the sample's states.",
    )
    lambda_norm: float = setting(
        0.0, _WEIGHT, "lambda of Eq. 7: price of ||delta||^2, in units of eps."
    )
    l2: float = setting(0.0, _WEIGHT, "Weight of delta's mean square (authors' code: 1e-4).")
    tv: float = setting(
        0.0, _WEIGHT, "Weight of delta's variation along tokens (authors' code: 1e-5)."
    )
    label_weight: float = setting(
        0.0,
        _WEIGHT,
        "Weight of the differentiable term that keeps the picture's content (0: off).",
    )
    label_floor: float = setting(
        1.0, _COSINE, "The label term acts while the similarity is below this value."
    )
    label_similarity: str = setting(
        "cosine",
        Text(),
        "Scorer of the label and content terms: 'clip', 'cosine' of frozen vision features, or a "
        "scorer of an installed package.",
    )
    content_weight: float = setting(
        0.0,
        _WEIGHT,
        "Weight of log(1 + shortfall below label_floor), which keeps content but, unlike "
        "label_weight, hardly grows where it is lost (0: off).",
    )
    verified_target: float | None = setting(
        None,
        Number(low=0, above=True, high=1, optional=True),
        "Share of candidates that are to be verified (reach clip_floor): content_weight is only "
        "the least, and each head's own rises above it while fewer of its candidates are. Null: "
        "content_weight stays.",
    )
    perturber_loss: str = setting(
        "cross_entropy",
        Text(choices=("cross_entropy", "log_odds")),
        "What C raises: U's cross-entropy, as in the paper, whose gradient fades where U is sure; "
        "or 'log_odds' of a wrong answer, log(1/p - 1), whose gradient does not.",
    )
    ce_cap: float | None = setting(
        None,
        Number(low=0, above=True, optional=True),
        "C gains nothing by raising what perturber_loss names above this. Null: no bound.",
    )

    # ---- drawing -------------------------------------------------------------------------------
    num_candidates: int = setting(
        1, Whole(low=1, high=1024), "K: pictures drawn per sample and challenge."
    )
    gradient_candidates: int | None = setting(
        1,
        Whole(low=1, high=1024, optional=True),
        "Of the K, how many C learns from; the others are drawn and scored for mining alone, "
        "without a backward pass. None: all.",
    )
    anchor: float = setting(
        0.0, _WEIGHT, "Bias of the drawing toward the image's own codes. 0: pure redrawing."
    )
    anchor_mode: str = setting(
        "own",
        Text(choices=("own", "near")),
        "'own': the anchor holds the image's own codes; 'near': also codes that mean nearly the "
        "same, so that another style of the same content is within reach. Latents have no codes: "
        "there both pull alike.",
    )
    anchor_width: float = setting(
        1.0,
        _POSITIVE,
        "How far 'near' reaches: a code of cosine c to the own one gets anchor * exp((c - 1) / "
        "anchor_width).",
    )
    temperature: float = setting(
        1.0, _POSITIVE, "Temperature of the draw and of its soft gradient."
    )
    sample_candidates: bool = setting(
        False, Switch(), "Gumbel draws instead of argmax for K = 1 (K > 1 always samples)."
    )
    # ---- C in the space of prompts -------------------------------------------------------------
    styles: list[str] = setting(
        (),
        Many(item=Text()),
        "Prompts, each with {caption} in it, by which G draws captions of the batch anew and "
        "freely, such as 'a faded photo of {caption}'. C learns which of them U misreads. The true "
        "answers must follow from the captions. Default: none; pictures are only redrawn.",
    )
    styled_share: float = setting(
        0.5,
        Number(low=0, above=True, high=1),
        "Share of a batch that is drawn in styles, its last rows, K candidates of each; "
        "challenge_share comes on top. Without styles nothing is.",
    )
    style_memory: float = setting(
        20.0,
        Number(low=0, high=1e30),
        "Steps over which C remembers what drawings in each style were worth. 0: all styles are "
        "equally likely, for good.",
    )
    style_entropy: float = setting(
        0.015,
        _POSITIVE,
        "What C pays for a nat of lost entropy, beside a worth from 0 to 1 of each drawing.",
    )
    style_temperature: float = setting(1.0, _POSITIVE, "Of drawing in styles.")
    guidance_scale: float = setting(
        5.0, Number(low=0), "Of classifier-free guidance in drawing in styles; 1 is none."
    )
    missing_captions: str = setting(
        "model",
        Text(choices=("model", "question", "error")),
        "What a sample without a caption is redrawn by. 'model': the model's own description of "
        "its picture, made once and kept in output_dir; 'question': the question, by which "
        "redrawings lose content; 'error': such samples are left out, or refused.",
    )

    # ---- mining --------------------------------------------------------------------------------
    similarity: str = setting(
        "cosine",
        Text(),
        "Semantic check of a candidate: 'clip' (the paper's; needs similarity_model), 'cosine' "
        "of the model's own frozen vision features, 'none', or a scorer of an installed package.",
    )
    similarity_model: str | None = setting(
        None,
        Text(optional=True),
        "CLIP or SigLIP checkpoint: a folder, a Hub id, or janus-nano-clip, the bundled model's.",
    )
    similarity_mode: str = setting(
        "image-text",
        Text(choices=("image-image", "image-text")),
        "CLIP compares the candidate with its text (the caption, else question and answer), as the "
        "paper's floors want it, or with the clean image ('image-image': cosines of .6 to .95).",
    )
    clip_weight: float = setting(
        0.2, _WEIGHT, "Weight of the similarity shortfall in the hardness."
    )
    clip_floor: float = setting(
        0.3,
        _COSINE,
        "Candidates less similar than this are never kept. The paper's value, for image-text CLIP; "
        "other scorers need another: below_floor in the log is the share that it rejects.",
    )
    verifier_check: float = setting(
        0.9,
        Number(low=0, high=1),
        "Warn if the verifier's AUC is below this: that of mildly corrupted training pictures "
        "against ones with half of another's content, on the first batches. 0: not measured.",
        free=True,
    )
    accept: str = setting(
        "quantile",
        Text(choices=("quantile", "missed")),
        "Which candidates are kept, of those at or above clip_floor: 'quantile': the hardest, by "
        "hard_quantile; 'missed': all that U reads wrong.",
    )
    hard_quantile: float = setting(
        0.6,
        Number(low=0, high=1),
        "tau: keep candidates from this quantile of hardness up, taken over hardness_window of "
        "them.",
    )
    hardness_window: int = setting(
        256,
        _COUNT,
        "Recent candidates, of all processes together, that hard_quantile is taken over. At 256 "
        "the share that passes is within 3 points of the one asked for; more follows U and C "
        "later. Until so many were drawn, the quantile is that of all so far.",
    )
    buffer: bool = setting(
        True, Switch(), "Keep hard samples over steps; False uses only fresh ones."
    )
    buffer_capacity: int = setting(
        50, _COUNT, "Hard samples kept (per process), the hardest first."
    )
    buffer_min_size: int | None = setting(
        None,
        _COUNT_OR_NONE,
        "Replay needs this many samples in the buffer, and pauses below. Default: hard_batch_size.",
    )
    buffer_per_source: int | None = setting(
        None,
        _COUNT_OR_NONE,
        "At most this many hard samples from one training sample. Default: no limit.",
    )
    drop_learned: bool = setting(
        True,
        Switch(),
        "A hard sample that U reads right when it is replayed leaves the buffer. False keeps it "
        "until harder ones push it out, as Algorithm 1 reads.",
    )
    max_replays: int | None = setting(
        None,
        _COUNT_OR_NONE,
        "A hard sample leaves the buffer after so many replays, learned or not: what U cannot "
        "learn is often labelled wrongly. Default: no limit.",
    )
    hard_batch_size: int | None = setting(
        None,
        Whole(low=1, high=2**20, optional=True),
        "Hard samples in each mixed batch. Default: one for two clean samples.",
    )

    keep_examples: int = setting(
        16,
        Whole(low=0, high=1000),
        "At the end write so many pictures of the run, clean, redrawn and attacked, with what the "
        "model says to each, into examples/ for its report, and to TensorBoard, W&B or trackio. 0: "
        "none.",
        free=True,
    )
    examples_every: int = setting(
        0,
        Whole(low=0, high=2**31 - 1),
        "Also write and log them every so many optimizer steps. 0: at the end alone.",
        free=True,
    )

    # ---- memory and speed ----------------------------------------------------------------------
    challenge_micro_batch: int | None = setting(
        None,
        _COUNT_OR_NONE,
        "Challenge so many samples at a time: the same gradient with less memory. Default: a "
        "quarter of the batch, because drawing keeps more activations than answering.",
        free=True,
    )
    merge_lora: bool = setting(
        True,
        Switch(),
        "Challenge with LoRA merged into copies of float32 weights, which spares two small matrix "
        "products a layer and takes memory for the copies. Without effect on bfloat16 weights, "
        "whose sums would be rounded, and under gradient checkpointing: memory is short there.",
        free=True,
    )
    keep_tokens_mb: float = setting(
        256,
        Number(low=0, high=MOST),
        "Keep what U read of each hard picture, which spares drawing and encoding it again, if a "
        "full buffer of it fits into so many MB of CPU memory (per process). 0: never.",
        free=True,
    )

    def __post_init__(self) -> None:
        if str(self.challenge_every) == "0":
            raise UserError(
                "challenge_every=0 plays nothing; for plain fine-tuning list methods: [sft], or "
                "--methods sft"
            )
        check_fields(self)
        SCORERS.require(self.similarity)
        SCORERS.require(self.label_similarity)
        if self.eps_init >= self.eps_max:
            raise UserError(
                f"eps_init={self.eps_init} must be below eps_max={self.eps_max}: the gate starts "
                "inside its bound; lower eps_init or raise eps_max"
            )
        self._refuse_idle()
        self._check_styles()
        if self.perturb_space == "tokens" and self.num_candidates > 1:
            raise UserError(
                f"num_candidates={self.num_candidates} with perturb_space=tokens: nothing is drawn "
                "there, so candidates would be equal; set num_candidates=1"
            )
        if self.uses_clip and not self.similarity_model:
            raise UserError(
                "similarity 'clip' needs similarity_model, a CLIP or SigLIP checkpoint (folder or "
                "Hub id); give one, or set similarity=cosine"
            )
        if self.uses_clip and self.perturb_space == "tokens":
            raise UserError(
                "similarity 'clip' with perturb_space=tokens: no picture is drawn that CLIP could "
                "look at; set similarity=cosine"
            )

    def _refuse_idle(self) -> None:
        """A switch of a part that is off, or has no judge, would be turned for nothing."""
        if self.diversity_weight and self.perturber_scope != "heads":
            raise UserError(
                f"diversity_weight={self.diversity_weight} with perturber_scope="
                f"{self.perturber_scope}: only heads can be alike; set perturber_scope=heads"
            )
        if self.restart_below and self.perturber_scope == "token":
            raise UserError(
                f"restart_below={self.restart_below} with perturber_scope=token: only shared "
                "directions start anew; set perturber_scope=shared or heads"
            )
        if self.perturber_depth == 0 and self.perturber_scope == "token":
            raise UserError(
                "perturber_depth=0 with perturber_scope=token: a direction of each token's own "
                "needs a layer; set perturber_scope=shared or heads"
            )
        if self.uses_label and self.label_similarity == "none":
            raise UserError(
                f"label_similarity=none with label_weight={self.label_weight}, content_weight="
                f"{self.content_weight}: nothing says whether content is kept; set "
                "label_similarity=cosine or clip, or both weights to 0"
            )
        if self.verified_target and not self.content_weight:
            raise UserError(
                f"verified_target={self.verified_target} with content_weight=0 has no weight to "
                "begin with; set content_weight, such as 1"
            )
        if self.anchor_mode == "near" and self.anchor == 0:
            raise UserError("anchor_mode=near with anchor=0 holds nothing; set anchor, such as 8")

    def _check_styles(self) -> None:
        for style in self.styles:
            if CAPTION not in style:
                raise UserError(
                    f"styles: {style!r} has no {CAPTION}; say where the caption belongs, such as "
                    f"'a faded photo of {CAPTION}'"
                )
        if len(set(self.styles)) < len(self.styles):
            raise UserError(f"styles={self.styles}: one is there twice; name each once")
        if self.styles and not self.draws:
            raise UserError(
                "styles with perturb_space=tokens: no picture is drawn there; set styles=[]"
            )
        reads_text = self.similarity == "clip" and self.similarity_mode == "image-text"
        if self.styles and self.similarity in ("cosine", "clip") and not reads_text:
            raise UserError(
                f"styles with similarity={self.similarity} ({self.similarity_mode}): a free "
                "drawing has its things elsewhere than the picture, so that only its caption can "
                "verify it; set similarity=clip and similarity_mode=image-text"
            )

    def inert(self) -> list[str]:
        """Settings that are set and cannot act in this game, each with what stops it."""
        return inert(self)

    @property
    def learns(self) -> bool:
        """Whether C has something to learn: neither random directions nor none."""
        return self.perturbation == "learned"

    @property
    def uses_label(self) -> bool:
        """Whether C's objective has a term of the picture's content."""
        return self.label_weight > 0 or self.content_weight > 0

    @property
    def uses_clip(self) -> bool:
        """Whether a CLIP checkpoint is needed."""
        by_label = self.uses_label and self.label_similarity == "clip"
        return self.similarity == "clip" or by_label

    @property
    def heads(self) -> int:
        """Shared directions that candidates draw from."""
        return self.perturber_heads if self.perturber_scope == "heads" else 1

    @property
    def candidates_differ(self) -> bool:
        """Whether each candidate has a perturbation of its own."""
        return self.heads > 1 or len(self.strengths) > 1

    @property
    def drawing_options(self) -> dict[str, Any]:
        """Of ``draw``. The reach of the anchor is named only where it has one."""
        options = {"anchor": self.anchor, "temperature": self.temperature}
        if self.anchor_mode == "near":
            options["anchor_width"] = self.anchor_width
        return options

    @property
    def draws(self) -> bool:
        """True when pictures are redrawn, which takes a prompt for each."""
        return self.perturb_space == "decoder"

    @property
    def learned_candidates(self) -> int:
        """Candidates of each sample that C's gradient passes through."""
        if self.gradient_candidates is None:
            return self.num_candidates
        return min(self.gradient_candidates, self.num_candidates)

    def hard_rows(self, batch_size: int) -> int:
        """Hard samples per mixed batch: as set, or one for two clean samples."""
        return self.hard_batch_size or (batch_size + 1) // 2

    def min_size(self, batch_size: int) -> int:
        """Size of the buffer at which replay starts."""
        return self.buffer_min_size or self.hard_rows(batch_size)

    def challenge_parts(self, batch_size: int) -> int:
        """In how many parts a batch is challenged: the same number on every rank and step."""
        at_once = self.challenge_micro_batch or math.ceil(batch_size / 4)
        return math.ceil(math.ceil(self.challenge_share * batch_size) / at_once)
