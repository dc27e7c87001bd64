"""The Trainer's checkpoint hooks for a backbone and methods: complete, exact, without pickles.

``transformers.Trainer`` would save a ``Backbone`` as one file with every frozen weight, and pickle
the settings beside it. Here a checkpoint holds the LoRA adapter and what each method keeps (see
``checkpoint``), all written by the hooks that run before rotation and before a push to the Hub.

A checkpoint is written under another name and renamed when it is complete, so that a run that is
killed at any moment leaves whole ones only. One that cannot be resumed exactly, or that belongs to
another run, is refused before anything is loaded.
"""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from unigame.backbones.base import Backbone
from unigame.errors import Diverged, OneProcessError, UserError
from unigame.methods.base import Method
from unigame.system import signals
from unigame.system.following import follow_settings
from unigame.system.say import warn
from unigame.training import checkpoint, run_folder
from unigame.training.config import UniGameConfig
from unigame.training.guard import EvaluationCut, StepGuard, require_finite
from unigame.training.identity import RUN_FILE, run_record, to_json
from unigame.training.lock import locked
from unigame.training.ranks import agreed, from_rank_zero, sum_over_ranks
from unigame.training.resuming import require_same_run, require_undamaged, require_whole
from unigame.training.writing import onto_disk, publish

logger = logging.getLogger(__name__)
STOPPING = "a checkpoint is written after this step, then the run stops (Ctrl-C again: at once)"


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints hold a backbone's adapter and its methods' states.

    Subclasses set ``backbone`` (unwrapped) and ``methods``.

    Attributes:
        recipe: the blocks of the recipe, where the run has one; they make a run what it is.
        folder_is_held: whether the caller has locked ``output_dir``; else ``train`` does.
        guard: sees every step; has the mean loss of the whole run.
    """

    args: UniGameConfig
    backbone: Backbone
    methods: list[Method]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recipe: Mapping[str, Any] | None = None
        self.folder_is_held = False
        reduce = partial(sum_over_ranks, self.accelerator)
        self.guard = StepGuard(self.args.device, reduce, self.accelerator.num_processes)
        self.add_callback(self.guard)
        self._record: dict[str, Any] | None = None  # see identity
        self._staging: Path | None = None  # while a checkpoint is being written

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint exactly where it stopped.

        Args:
            resume_from_checkpoint: a ``checkpoint-N`` folder; True for the newest whole one in
                ``output_dir``.
            kwargs: as for ``transformers.Trainer.train``.

        Raises:
            UserError: no checkpoint there; a damaged one, one of another run, or one that already
                has all the steps that were asked for; another run at work in ``output_dir``.
            Diverged: a loss, a gradient norm or a weight is not finite.
            Stopped: a signal came; the checkpoint is written.
        """
        with self._locked(), self._asked():
            folder = self._checkpoint(resume_from_checkpoint)
            if folder is not None:
                checkpoint.require_steps_left(folder, self.planned_steps())
                self._require_same_run(folder)
            output = self._train(folder, **kwargs)
            self._stop_if_asked()
            return output

    def _train(self, folder: str | None, **kwargs: Any) -> Any:
        try:
            output = super().train(resume_from_checkpoint=folder, **kwargs)
            if not output.global_step:  # of a stream; rows that can be counted were
                dropped = ", or no full batch (dataloader_drop_last)"
                also = dropped if self.args.dataloader_drop_last else ""
                raise UserError(
                    f"no step was made: the training data gave no row{also}; look at them"
                )
            require_finite(self._weights_of_u(), "U")  # no step comes after the last update
            return output
        except EvaluationCut:  # that of eval_on_start: there is no step to keep
            return None
        except Diverged as error:
            raise Diverged(f"{error}; {self._keep_last_finite()}") from error
        except UserError as error:
            if self.args.process_index == 0:
                raise
            raise OneProcessError(f"process {self.args.process_index}: {error}") from error

    def take_up(self, resume_from_checkpoint: str) -> TrainOutput:
        """A run that made all its steps and was stopped before it saved its result.

        Its players, and all that its methods counted and kept, are as they were after the last
        step.

        Args:
            resume_from_checkpoint: the ``checkpoint-N`` of the last step.

        Raises:
            UserError: the checkpoint is damaged, or of another run.
        """
        folder = self._checkpoint(resume_from_checkpoint)
        assert folder is not None
        self._require_same_run(folder)
        self.backbone.load_adapter(folder)
        steps = self.planned_steps()
        for method in self.methods:
            method.create_scheduler(steps)  # its state is a part of the method's
        self._load_methods(folder)
        state = Path(folder) / checkpoint.TRAINER_STATE_FILE
        self.state = TrainerState.load_from_json(str(state))
        # The file is the first process's.
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.guard.restore(self.state)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(self.state.global_step, self.guard.mean_loss, {})

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    # ---- whose folder, which checkpoint ----------------------------------------------------------
    def _locked(self) -> AbstractContextManager[Any]:
        """Within: no other run writes into ``output_dir``."""
        held = self.folder_is_held
        return nullcontext() if held else locked(self.args.output_dir, self.args.process_index)

    def _checkpoint(self, resume: str | bool | None) -> str | None:
        """The whole checkpoint to go on from; None to start anew."""
        self._record = from_rank_zero(
            lambda: run_record(self.backbone, self.train_dataset, self.methods, self.recipe)
        )
        if not resume:
            return None
        folder = str(resume)
        if resume is True:
            found = from_rank_zero(lambda: run_folder.newest_whole(self.args.output_dir))
            folder = str(found.folder)
            if self.args.process_index == 0:
                logger.warning(found.said())
        agreed(lambda: require_whole(folder, self.args, self.backbone, self.methods))
        return folder

    def _require_same_run(self, folder: str) -> None:
        from_rank_zero(lambda: require_same_run(folder, self.args, self._record))

    # ---- the end of a run ------------------------------------------------------------------------
    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Within: a signal asks the guard to end the run, where ``save_on_signal`` is on."""
        told = STOPPING if self.args.process_index == 0 else ""
        hold = signals.held(told) if self.args.save_on_signal else nullcontext(self.guard.request)
        with hold as self.guard.request:
            yield

    def _stop_if_asked(self) -> None:
        """After the last step, or the one after which the guard stopped."""
        if not self.args.save_on_signal:
            return
        asked = self.guard.stopping or self.guard.anyone_asked()
        if not asked:
            return
        step = self.state.global_step
        there = (Path(self.args.output_dir) / f"checkpoint-{step}").exists()
        if step > 0 and not there and not self.args.load_best_model_at_end:
            self._save_checkpoint(self.model, None)
        raise signals.Stopped(self.guard.request.signum or signal.SIGTERM)

    def _keep_last_finite(self) -> str:
        """Save the players as they were before the step that diverged; say what there is."""
        folder = Path(self.args.output_dir) / run_folder.LAST_FINITE
        kept = [str(path) for path in run_folder.checkpoints(self.args.output_dir)[:1]]
        step = self.state.global_step
        try:
            try:
                require_finite(self._weights_of_u(), "U")
            except Diverged:  # the latest update broke them: those before it gave a finite loss
                if not self.guard.undo_last_update(self.model):
                    raise
                step -= 1
            self._write(folder)
            kept.append(f"{folder} (step {step})")
        except UserError as error:  # not finite either, or the disk is full
            warn(f"{folder} was not written: {error}")
        return f"kept: {', '.join(kept)}" if kept else "there is no checkpoint of before"

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of a run that ends with its best checkpoint, only a step that is saved can be the best.

        transformers remembers a better loss between two checkpoints, and then ends with the last
        weights without a word.
        """
        saved = self.control.should_save or self.args.save_strategy == "best"
        if self.args.load_best_model_at_end and not saved:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        except EvaluationCut:
            self.guard.stopping = self.control.should_training_stop = True
            self._save_checkpoint(self.model, None)

    # ---- what the guard sees ---------------------------------------------------------------------
    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The base Trainer's, and the guard looks at the loss."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.guard.saw_loss(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.guard.saw_norm(norm)
        return norm

    # ---- writing -------------------------------------------------------------------------------
    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """The base Trainer's checkpoint, under another name until all of it is there."""
        run_dir = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staging, pushes = run_dir / run_folder.UNFINISHED, self.args.push_to_hub
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging, self.args.push_to_hub = staging, False  # what is pushed has its name
        try:
            with onto_disk(run_dir / name):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.push_to_hub = None, pushes
        self._name_best(staging, run_dir)
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.args.should_save:
            with onto_disk(run_dir / name):
                self._write_words(staging / name)
                publish(staging / name, run_dir / name)
        self.accelerator.wait_for_everyone()
        if pushes:
            self._push_from_checkpoint(str(run_dir / name))
        if self.args.should_save:
            best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
            rotate_checkpoints(str(run_dir), limit, best, use_mtime=True)

    def _name_best(self, staging: Path, run_dir: Path) -> None:
        """The best checkpoint's path, if it is the one being written."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == staging:
            self.state.best_model_checkpoint = str(run_dir / Path(best).name)

    def _write_words(self, folder: Path) -> None:
        """What still had other words while the checkpoint had another name."""
        self.state.save_to_json(str(folder / checkpoint.TRAINER_STATE_FILE))
        settings = folder / checkpoint.SETTINGS_FILE
        settings.write_text(self.args.to_json_string(), encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        require_finite(self._weights_of_u(), "U")
        for method in self.methods:
            require_finite(method.weights(), method.name, method.rate)
        self._write(Path(output_dir or self.args.output_dir))

    def _write(self, folder: Path) -> None:
        """Adapter, C, processor and settings; the frozen weights stay where they came from."""
        if not self.args.should_save:
            return
        with onto_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.backbone.save_pretrained(folder)
            for method in self.methods:
                method.save_weights(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            settings = folder / checkpoint.SETTINGS_FILE
            settings.write_text(self.args.to_json_string(), encoding="utf-8")
            if self._record is not None:
                (folder / RUN_FILE).write_text(to_json(self._record), encoding="utf-8")

    def _weights_of_u(self) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in self.backbone.named_parameters() if p.requires_grad]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        # A rank can be here before rank 0 has made the folder.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        for method in self.methods:
            method.save(Path(output_dir), self.args.process_index, self.args.world_size)

    # ---- reading -------------------------------------------------------------------------------
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.backbone.load_adapter(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        load = partial(super()._load_optimizer_and_scheduler, checkpoint)
        follow_settings(self.optimizer, self.lr_scheduler, load)
        if checkpoint is not None:
            self._load_methods(checkpoint)

    def _load_methods(self, folder: str) -> None:
        for method in self.methods:
            method.load(Path(folder), self.args.process_index, self.args.world_size)

    def _load_best_model(self) -> None:
        """The adapter as it was then, and what each method had trained beside it."""
        assert self.state.best_model_checkpoint is not None
        require_undamaged(self.state.best_model_checkpoint, trust=False)
        self._load_players(self.state.best_model_checkpoint)

    def _load_players(self, folder: str) -> None:
        self.backbone.load_adapter(folder)
        for method in self.methods:
            method.load_weights(Path(folder))
