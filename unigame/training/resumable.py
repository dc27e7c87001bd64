"""The Trainer's checkpoint hooks for a backbone and a game: complete, exact, without pickles.

``transformers.Trainer`` would save a ``Backbone`` as one file with every frozen weight, and pickle
the settings beside it. Here a checkpoint holds the LoRA adapter, C, and the game's state (see
``checkpoint``), all written by the hooks that run before rotation and before a push to the Hub.
A checkpoint that cannot be resumed exactly is refused before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from unigame.backbones.base import Backbone
from unigame.errors import UserError
from unigame.training import checkpoint
from unigame.training.config import UniGameConfig
from unigame.training.game_state import GameState


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints hold a backbone's adapter and a game's state.

    Subclasses set ``backbone`` (unwrapped) and ``game`` (None for plain fine-tuning).
    """

    args: UniGameConfig
    backbone: Backbone
    game: GameState | None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint exactly where it stopped.

        Args:
            resume_from_checkpoint: a ``checkpoint-N`` folder; True for the last one in
                ``output_dir``.
            kwargs: as for ``transformers.Trainer.train``.

        Raises:
            UserError: no checkpoint there, an incomplete one, or one that already has all the
                steps that were asked for.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise UserError(
                    f"output_dir={self.args.output_dir!r} has no checkpoint to resume from; name "
                    "one, or start without resuming"
                )
        if resume_from_checkpoint:
            self._require_resumable(str(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _require_resumable(self, folder: str) -> None:
        rank, world_size = self.args.process_index, self.args.world_size
        extra = self.game.files(rank, world_size) if self.game is not None else []
        checkpoint.require_complete(
            folder,
            weights=self.backbone.saved_files,
            extra=extra,
            rank=rank,
            world_size=world_size,
        )
        done = checkpoint.steps_done(folder)
        max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if done >= max_steps:
            raise UserError(
                f"{folder} already has {done} of {max_steps} steps; raise max_steps (or "
                "num_train_epochs) to train on"
            )

    # ---- writing -------------------------------------------------------------------------------
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Adapter, C, processor and settings; the frozen weights stay where they came from."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(folder)
        if self.game is not None:
            checkpoint.save_perturber(folder, self.game.perturber)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        settings = folder / checkpoint.SETTINGS_FILE
        settings.write_text(self.args.to_json_string(), encoding="utf-8")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.game is not None:
            # A rank can be here before rank 0 has made the folder.
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self.game.save(output_dir, self.args.process_index, self.args.world_size)

    # ---- reading -------------------------------------------------------------------------------
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.backbone.load_adapter(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.game is not None:
            self.game.load(checkpoint, self.args.process_index, self.args.world_size)

    def _load_best_model(self) -> None:
        """Both players as they were then: an adapter and the C that it was trained against."""
        assert self.state.best_model_checkpoint is not None
        self.backbone.load_adapter(self.state.best_model_checkpoint)
        if self.game is not None:
            checkpoint.load_perturber(self.state.best_model_checkpoint, self.game.perturber)
