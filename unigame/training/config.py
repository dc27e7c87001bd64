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
from functools import cache
from typing import Any, get_type_hints

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.utils import is_torch_bf16_gpu_available

from unigame.errors import UserError
from unigame.settings.rules import Rule, rule_of
from unigame.training.ranks import launched_processes, require_processes
from unigame.training.settings import RULES

# Trainer features that would be wrong or silently without effect here.
UNSUPPORTED: dict[str, str] = {
    "label_smoothing_factor": "losses are computed per sample inside the backbone; set it to 0",
    "deepspeed": "use DDP (torchrun) instead",
    "fsdp": "its checkpoints cannot be resumed exactly; use DDP (torchrun) instead",
    "enable_jit_checkpoint": "save_on_signal writes an exact checkpoint on SIGTERM; unset it",
    "fp16": "C's gradient has no loss scaling; use bf16",
    "use_liger_kernel": "its patched losses are not the per-sample losses of the game; unset it",
    "neftune_noise_alpha": "it perturbs embeddings behind the game's back; unset it",
}
# What transformers raises for settings that it refuses.
_REFUSALS: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, AttributeError)
_REFUSALS += (OSError, ImportError, NotImplementedError)


class MissingHardware(UserError):
    """The settings are sound, but this machine cannot run them."""


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

    # ---- texts ---------------------------------------------------------------------------------
    max_length: int | None = _setting(
        None,
        "Longest row in tokens: picture, question and answer, or prompt and picture. Longer rows "
        "are left out, counted and said before training. Default: the model's positions.",
    )
    missing_captions: str = _setting(
        "model",
        "What a sample without a caption is redrawn by. 'model': the model's own description of "
        "its picture, made once and kept in output_dir; 'question': the question, by which "
        "redrawings lose content; 'error': such samples are left out, or refused.",
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
        "image-text",
        "CLIP compares the candidate with its text (the caption, else question and answer), as the "
        "paper's floors want it, or with the clean image ('image-image': cosines of .6 to .95).",
    )
    clip_weight: float = _setting(0.2, "Weight of the similarity shortfall in the hardness.")
    clip_floor: float = _setting(
        0.3,
        "Candidates less similar than this are never kept. The paper's value, for image-text CLIP; "
        "other scorers need another: below_floor in the log is the share that it rejects.",
    )
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
    max_skipped_share: float = _setting(
        0.5,
        "Share of a source's rows that may be left out (missing pictures, no text) before a run is "
        "refused; pictures that turn out damaged in training are warned of above it.",
    )
    save_on_signal: bool = _setting(
        True, "On Ctrl-C, SIGTERM or SIGHUP finish the step and write a checkpoint, then stop."
    )
    overwrite_output_dir: bool = _setting(
        False,
        "Start over in a folder that holds a run. The old run is kept in _replaced/ until the new "
        "one is done.",
    )
    resume_anyway: bool = _setting(
        False,
        "Resume though the checkpoint's run had other settings, model or data, or though it has no "
        "manifest by which to tell that it is whole.",
    )
    logging_nan_inf_filter: bool = _setting(
        False, "A loss that is not finite ends the run, so there is nothing to hide from the log."
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
        for name, rule in rules_of(type(self)).items():  # type: ignore[arg-type]
            setattr(self, name, rule.check(name, getattr(self, name)))
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
        self._check_hardware()
        self._set_up_processes()

    def _set_up_processes(self) -> None:
        """``TrainingArguments`` finds its device and, under torchrun, the other processes."""
        processes = launched_processes()
        if processes > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # else each process would train a model of its own
        try:
            super().__post_init__()
        except _REFUSALS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"training settings: {reason}") from error
        require_processes(processes, self.world_size)

    def _check_together(self) -> None:
        """Settings that only make sense in company."""
        self._check_similarity()
        self._check_schedule()
        self._check_loading()
        self._check_trackers()
        if self.eps_init >= self.eps_max:
            raise UserError(
                f"eps_init={self.eps_init} must be below eps_max={self.eps_max}: the gate starts "
                "inside its bound; lower eps_init or raise eps_max"
            )
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

    def _check_schedule(self) -> None:
        """Make U's schedule once: some need settings of their own, which would be missed late."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        try:
            get_scheduler(
                self.lr_scheduler_type, optimizer, 0, 10, dict(self.lr_scheduler_kwargs or {})
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"lr_scheduler_type={self.lr_scheduler_type!r} with lr_scheduler_kwargs="
                f"{self.lr_scheduler_kwargs!r} does not work ({' '.join(str(error).split())}); "
                "name what it needs in lr_scheduler_kwargs, or take another schedule"
            ) from error

    def _check_loading(self) -> None:
        """Settings of worker processes, where there are none; an order that records do not have."""
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(self, name, None) and self.dataloader_num_workers == 0:
                raise UserError(
                    f"{name}={getattr(self, name)!r} with dataloader_num_workers=0: there are no "
                    "worker processes; set dataloader_num_workers, or leave it out"
                )
        if getattr(self, "train_sampling_strategy", None) == "group_by_length":
            raise UserError(
                "train_sampling_strategy='group_by_length': records have no length to group by; "
                "set random or sequential"
            )

    def _check_trackers(self) -> None:
        """``none`` and ``all`` stand alone; they are texts to transformers, not lists."""
        trackers = self.report_to or ["none"]
        for word in ("none", "all"):
            if word in trackers and len(trackers) > 1:
                raise UserError(f"report_to={trackers}: {word!r} stands alone; drop one of them")
            if trackers == [word]:
                self.report_to = word

    def _check_hardware(self) -> None:
        """What the settings need of this machine."""
        wanted = [name for name in ("bf16", "bf16_full_eval", "tf32") if getattr(self, name)]
        if wanted and not self.use_cpu and not is_torch_bf16_gpu_available():
            raise MissingHardware(
                f"{wanted[0]}=True needs a GPU that computes in bfloat16 (Ampere or newer), and "
                "this machine has none that torch can use; train on another, or add --use_cpu "
                "(slow), or set it to false"
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
    def draws(self) -> bool:
        """True when the game redraws pictures, which takes a prompt for each."""
        return self.plays and self.perturb_space == "decoder"

    @property
    def resolved_hard_batch_size(self) -> int:
        """Hard samples per mixed batch: as set, or one for two clean samples."""
        return self.hard_batch_size or (self.per_device_train_batch_size + 1) // 2

    @property
    def resolved_min_size(self) -> int:
        """Size of the buffer at which replay starts."""
        return self.buffer_min_size or self.resolved_hard_batch_size


@cache
def rules_of(config: Any) -> dict[str, Rule]:
    """The rule of every setting of ``UniGameConfig`` or a subclass.

    It is the table's, or by the declared type where the table does not list the setting yet.
    """
    hints = get_type_hints(config)
    return {
        item.name: RULES.get(item.name) or rule_of(hints[item.name])
        for item in fields(config)
        if item.init
    }
