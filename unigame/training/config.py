"""Every setting of the game and of the optimisation, in one dataclass.

The same class serves Python (``UniGameConfig(beta=0.25)``), recipes (the ``training:`` block of a
YAML file) and the command line (``--beta 0.25``). It extends ``transformers.TrainingArguments``,
so batch size, schedules, logging, checkpoints, precision and the Hub are set as anywhere else.

Players and pace: U (LoRA weights of the language model) moves once per optimizer step; C (the
perturber) moves ``perturber_steps`` times in every micro-batch of each ``challenge_every``-th
step. The C:U update ratio is therefore ``perturber_steps * gradient_accumulation_steps :
challenge_every``; ``challenge_every=0`` turns the game off and leaves plain supervised fine-tuning
(SFT).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from unigame.errors import UserError

CHOICES: dict[str, tuple[str, ...]] = {
    "perturb_space": ("decoder", "tokens"),
    "perturbation": ("learned", "random", "none"),
    "eps_mode": ("absolute", "relative"),
    "similarity": ("clip", "cosine", "none"),
    "similarity_mode": ("image-image", "image-text"),
    "label_similarity": ("clip", "cosine"),
    "loss_reduction": ("sample", "token"),
}
# name -> (lowest, highest, lowest itself allowed)
RANGES: dict[str, tuple[float, float, bool]] = {
    "per_device_train_batch_size": (1, float("inf"), True),
    "per_device_eval_batch_size": (1, float("inf"), True),
    "gradient_accumulation_steps": (1, float("inf"), True),
    "num_train_epochs": (0.0, float("inf"), False),
    "max_grad_norm": (0.0, float("inf"), True),
    "weight_decay": (0.0, float("inf"), True),
    "challenge_every": (0, float("inf"), True),
    "perturber_steps": (1, float("inf"), True),
    "challenge_share": (0.0, 1.0, False),
    "redrawn_every": (0, float("inf"), True),
    "mine_every": (1, float("inf"), True),
    "beta": (0.0, float("inf"), True),
    "generation_weight": (0.0, float("inf"), True),
    "learning_rate": (0.0, float("inf"), True),
    "perturber_learning_rate": (0.0, float("inf"), True),
    "perturber_weight_decay": (0.0, float("inf"), True),
    "perturber_warmup_steps": (0, float("inf"), True),
    "perturber_max_grad_norm": (0.0, float("inf"), False),
    "num_candidates": (1, float("inf"), True),
    "gradient_candidates": (1, float("inf"), True),
    "challenge_micro_batch": (1, float("inf"), True),
    "understanding_micro_batch": (1, float("inf"), True),
    "keep_tokens_mb": (0.0, float("inf"), True),
    "eps_max": (0.0, float("inf"), False),
    "eps_init": (0.0, float("inf"), False),
    "anchor": (0.0, float("inf"), True),
    "temperature": (0.0, float("inf"), False),
    "perturber_width": (1, float("inf"), True),
    "perturber_depth": (1, float("inf"), True),
    "clip_weight": (0.0, float("inf"), True),
    "clip_floor": (-1.0, 1.0, True),
    "hard_quantile": (0.0, 1.0, True),
    "hardness_window": (1, float("inf"), True),
    "buffer_capacity": (1, float("inf"), True),
    "buffer_min_size": (1, float("inf"), True),
    "buffer_per_source": (1, float("inf"), True),
    "hard_batch_size": (1, float("inf"), True),
    "lambda_norm": (0.0, float("inf"), True),
    "l2": (0.0, float("inf"), True),
    "tv": (0.0, float("inf"), True),
    "label_weight": (0.0, float("inf"), True),
    "label_floor": (-1.0, 1.0, True),
}
# C's schedules: those of transformers that need no more than steps.
SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)
# Trainer features that would be wrong or silently without effect here.
UNSUPPORTED: dict[str, str] = {
    "label_smoothing_factor": "losses are computed per sample inside the backbone; set it to 0",
    "deepspeed": "use DDP (torchrun) instead",
    "fsdp": "its checkpoints cannot be resumed exactly; use DDP (torchrun) instead",
    "fp16": "C's gradient has no loss scaling; use bf16",
    "use_liger_kernel": "its patched losses are not the per-sample losses of the game; unset it",
    "neftune_noise_alpha": "it perturbs embeddings behind the game's back; unset it",
}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class UniGameConfig(TrainingArguments):
    """Settings of ``UniGameTrainer``: the game's on top of all ``TrainingArguments``.

    Where a default is not the paper's, ``help`` says so. Every value is checked when the object is
    made.

    Raises:
        UserError: for a value outside its range, two settings that contradict each other, or a
            Trainer feature that the game does not support.
    """

    # ---- pace of the two players ---------------------------------------------------------------
    challenge_every: int = _setting(
        1, "Challenge on every m-th optimizer step (m of Algorithm 1). 0: no game, plain SFT."
    )
    challenge_share: float = _setting(
        1.0,
        "Share of a batch that C challenges. Half draws as many candidates as a mixed batch takes "
        "hard samples, at half the cost of the challenge.",
    )
    perturber_steps: int = _setting(
        1,
        "Updates of C per challenge. C:U ratio = perturber_steps x gradient_accumulation_steps : "
        "challenge_every.",
    )
    redrawn_every: int = _setting(
        10,
        "On every n-th challenge redraw its pictures without C, too, under the same noise: what "
        "the redrawing does is not C's doing. It stands beside the attack's figures as redrawn_*. "
        "Costs the forward passes of a challenge, about a quarter of one: 2 % at 10. 0: never.",
    )
    mine_every: int = _setting(1, "Offer the candidates of every n-th challenge to the buffer.")
    beta: float = _setting(0.5, "Weight of the hard samples in Eq. 6.")
    generation_weight: float = _setting(
        0.0, "Weight of the caption -> image loss (Eq. 3) for samples that have a caption."
    )
    loss_reduction: str = _setting(
        "sample",
        "'sample': every answer counts the same; 'token': every answer token does, which is the "
        "plain Trainer's rule. Equal when all answers have equally many tokens.",
    )

    # ---- player U (LoRA) -----------------------------------------------------------------------
    learning_rate: float = _setting(2e-5, "AdamW learning rate of U, the LoRA weights (und_lr).")

    train_parts: list[str] | str | None = _setting(
        None,
        "Warm-up before the game: train these parts of a composed model instead of LoRA, "
        "'connector' or 'projector', with challenge_every=0. It makes a model, not an adapter.",
    )

    # ---- player C (perturber) ------------------------------------------------------------------
    perturber_learning_rate: float = _setting(5e-3, "AdamW learning rate of C (gen_lr).")
    perturber_weight_decay: float = _setting(0.0, "AdamW weight decay of C.")
    perturber_lr_scheduler_type: str = _setting(
        "constant", "Schedule of C's learning rate over optimizer steps, by transformers' names."
    )
    perturber_warmup_steps: int = _setting(0, "Optimizer steps of linear warm-up for C.")
    perturber_max_grad_norm: float = _setting(1.0, "C's gradient is clipped to this norm.")
    perturber_width: int = _setting(256, "Hidden width of C; 256 gives the paper's 2.1M at H=4096.")
    perturber_depth: int = _setting(3, "Linear layers of C.")
    perturbation: str = _setting(
        "learned", "'learned' (C), 'random' (a direction of the same norm) or 'none' (round trip)."
    )
    perturb_space: str = _setting(
        "decoder", "'decoder': draw the states and read the picture; 'tokens': no decoding."
    )
    eps_max: float = _setting(0.02, "Largest L2 norm of the perturbation of a token.")
    eps_init: float = _setting(0.01, "Norm of the perturbation at the start; below eps_max.")
    eps_mode: str = _setting(
        "absolute", "eps as it is, or 'relative' to the RMS norm of the sample's states."
    )
    lambda_norm: float = _setting(0.0, "lambda of Eq. 7: price of ||delta||^2, in units of eps.")
    l2: float = _setting(0.0, "Weight of delta's mean square (authors' code: 1e-4).")
    tv: float = _setting(0.0, "Weight of delta's variation along tokens (authors' code: 1e-5).")
    label_weight: float = _setting(
        0.0, "Weight of the differentiable term that keeps the picture's content (0: off)."
    )
    label_floor: float = _setting(
        1.0, "The label term acts while the similarity is below this value."
    )
    label_similarity: str = _setting(
        "cosine", "Scorer of the label term: 'clip' or 'cosine' of frozen vision features."
    )

    # ---- drawing -------------------------------------------------------------------------------
    num_candidates: int = _setting(1, "K: pictures drawn per sample and challenge.")
    gradient_candidates: int | None = _setting(
        1,
        "Of the K, how many C learns from; the others are drawn and scored for mining alone, "
        "without a backward pass. None: all.",
    )
    anchor: float = _setting(
        0.0, "Bias of the drawing toward the image's own codes. 0: pure redrawing."
    )
    temperature: float = _setting(1.0, "Temperature of the draw and of its soft gradient.")
    sample_candidates: bool = _setting(
        False, "Gumbel draws instead of argmax for K = 1 (K > 1 always samples)."
    )

    # ---- mining --------------------------------------------------------------------------------
    similarity: str = _setting(
        "cosine",
        "Semantic check of a candidate: 'clip' (the paper's; needs similarity_model), 'cosine' "
        "of the model's own frozen vision features, or 'none'.",
    )
    similarity_model: str | None = _setting(None, "CLIP or SigLIP checkpoint (folder or Hub id).")
    similarity_mode: str = _setting(
        "image-image", "CLIP compares the candidate with the clean image, or with the text."
    )
    clip_weight: float = _setting(0.2, "Weight of the similarity shortfall in the hardness.")
    clip_floor: float = _setting(0.3, "Candidates less similar than this are never kept.")
    hard_quantile: float = _setting(
        0.6,
        "tau: keep candidates from this quantile of hardness up, taken over hardness_window of "
        "them.",
    )
    hardness_window: int = _setting(
        256,
        "Recent candidates, of all processes together, that hard_quantile is taken over. At 256 "
        "the share that passes is within 3 points of the one asked for; more follows U and C "
        "later. Until so many were drawn, the quantile is that of all so far.",
    )
    buffer: bool = _setting(True, "Keep hard samples over steps; False uses only fresh ones.")
    buffer_capacity: int = _setting(50, "Hard samples kept (per process), the hardest first.")
    buffer_min_size: int | None = _setting(
        None,
        "Replay needs this many samples in the buffer, and pauses below. Default: hard_batch_size.",
    )
    buffer_per_source: int | None = _setting(
        None, "At most this many hard samples from one training sample. Default: no limit."
    )
    drop_learned: bool = _setting(
        True,
        "A hard sample that U reads right when it is replayed leaves the buffer. False keeps it "
        "until harder ones push it out, as Algorithm 1 reads.",
    )
    hard_batch_size: int | None = _setting(
        None, "Hard samples in each mixed batch. Default: one for two clean samples."
    )

    # ---- housekeeping --------------------------------------------------------------------------
    challenge_micro_batch: int | None = _setting(
        None,
        "Challenge so many samples at a time: the same gradient with less memory. Default: a "
        "quarter of the batch, because drawing keeps more activations than answering.",
    )
    merge_lora: bool = _setting(
        True,
        "Challenge with LoRA merged into copies of float32 weights, which spares two small matrix "
        "products a layer and takes memory for the copies. Without effect on bfloat16 weights, "
        "whose sums would be rounded, and under gradient checkpointing: memory is short there.",
    )
    understanding_micro_batch: int | None = _setting(
        None,
        "U reads so many rows of the mixed batch at a time: the same gradient with less memory. "
        "Default: as many as SFT would, per_device_train_batch_size.",
    )
    keep_tokens_mb: float = _setting(
        256,
        "Keep what U read of each hard picture, which spares drawing and encoding it again, if a "
        "full buffer of it fits into so many MB of CPU memory (per process). 0: never.",
    )
    cache_codes: bool = _setting(
        False, "Remember image codes by sample id (2 bytes a token); images must never change."
    )
    remove_unused_columns: bool = _setting(False, "Records keep all their fields; must be False.")
    data_seed: int | None = _setting(None, "Seed of the order of the data. Default: seed.")
    report_to: None | str | list[str] = _setting("none", "Reporting integrations, off by default.")
    logging_steps: float = _setting(10, "Log every so many optimizer steps.")
    ddp_find_unused_parameters: bool | None = _setting(
        False, "Every LoRA weight takes part in every loss, so there is nothing to find."
    )

    def __post_init__(self) -> None:
        """Check every value, then let ``TrainingArguments`` set itself up."""
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(options)}; pick one"
                )
        for name in RANGES:
            _check_range(name, getattr(self, name))
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"max_steps={self.max_steps} is impossible; give 1 or more, or -1")
        for name, advice in UNSUPPORTED.items():
            if getattr(self, name):
                raise UserError(f"{name}={getattr(self, name)!r} is not supported: {advice}")
        self._check_together()
        if self.data_seed is None:
            self.data_seed = self.seed  # the order of the data then hangs on this alone
        self._use_current_checkpointing_names()
        if torch.backends.mps.is_available() and not torch.cuda.is_available():
            # Apple's GPUs have no float64, in which rows and losses are counted.
            self.use_cpu = True
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(f"training settings: {' '.join(str(error).split())}") from error

    def _check_together(self) -> None:
        """Settings that only make sense in company."""
        self._check_similarity()
        if self.eps_init >= self.eps_max:
            raise UserError(
                f"eps_init={self.eps_init} must be below eps_max={self.eps_max}: the gate starts "
                "inside its bound; lower eps_init or raise eps_max"
            )
        if isinstance(self.train_parts, str):
            self.train_parts = self.train_parts.split(",")
        if self.train_parts and self.plays:
            raise UserError(
                f"train_parts={self.train_parts} with challenge_every={self.challenge_every}: the "
                "warm-up comes before the game; set challenge_every=0, and play on its result"
            )
        if self.train_parts == ["connector"] and self.generation_weight == 0:
            raise UserError(
                "train_parts=['connector'] with generation_weight=0: the connector learns from "
                "captions alone; set generation_weight=1"
            )
        if self.perturb_space == "tokens" and self.num_candidates > 1:
            raise UserError(
                f"num_candidates={self.num_candidates} with perturb_space=tokens: nothing is drawn "
                "there, so candidates would be equal; set num_candidates=1"
            )
        if self.plays and self.resolved_min_size > self.buffer_capacity:
            raise UserError(
                f"buffer_min_size={self.resolved_min_size} is above buffer_capacity="
                f"{self.buffer_capacity}: replay would never start; raise the capacity"
            )
        if self.perturber_lr_scheduler_type not in SCHEDULES:
            raise UserError(
                f"perturber_lr_scheduler_type={self.perturber_lr_scheduler_type!r} is not one of "
                f"{', '.join(SCHEDULES)}; pick one"
            )
        if self.remove_unused_columns:
            raise UserError(
                "remove_unused_columns=True would drop images and questions; leave it False"
            )

    def _check_similarity(self) -> None:
        needs_clip = self.similarity == "clip" or (
            self.label_weight > 0 and self.label_similarity == "clip"
        )
        if self.plays and needs_clip and not self.similarity_model:
            raise UserError(
                "similarity 'clip' needs similarity_model, a CLIP or SigLIP checkpoint (folder or "
                "Hub id); give one, or set similarity=cosine"
            )
        if self.plays and needs_clip and self.perturb_space == "tokens":
            raise UserError(
                "similarity 'clip' with perturb_space=tokens: no picture is drawn that CLIP could "
                "look at; set similarity=cosine"
            )

    def _use_current_checkpointing_names(self) -> None:
        """Recipes say ``gradient_checkpointing``; newer transformers renamed it and warns."""
        known = {f.name for f in fields(self)}
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if new in known and getattr(self, new) is None and getattr(self, old) is not None:
                setattr(self, new, getattr(self, old))

    @property
    def plays(self) -> bool:
        """True when C plays; False for plain SFT."""
        return self.challenge_every > 0

    @property
    def resolved_hard_batch_size(self) -> int:
        """Hard samples per mixed batch: as set, or one for two clean samples."""
        return self.hard_batch_size or (self.per_device_train_batch_size + 1) // 2

    @property
    def resolved_min_size(self) -> int:
        """Size of the buffer at which replay starts."""
        return self.buffer_min_size or self.resolved_hard_batch_size


def _check_range(name: str, value: Any) -> None:
    low, high, inclusive = RANGES[name]
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}={value!r} is not a number; give one")
    if isinstance(low, int) and not isinstance(value, int):
        raise UserError(f"{name}={value!r} is not a whole number; give one")
    if not (low <= value <= high) or (value == low and not inclusive):
        bound = f"{'at least' if inclusive else 'above'} {low:g}"
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise UserError(f"{name}={value!r} is impossible: it must be {bound}{upper}")
