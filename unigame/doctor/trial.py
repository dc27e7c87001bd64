"""What a run of a recipe takes, tried before it starts: its own steps on thin slices of the model.

The steps are the trainer's, with the recipe's batch, game, precision and, where it is here, data.
A small model is tried whole. Of a large one three slices are, with random weights of its widths:
one block of the language model and one of the vision encoder, ``BLOCKS`` of the former, ``BLOCKS``
of the latter. Each block adds the same time and memory, so the three give the whole. The peak is
that of the challenge or that of understanding, whichever the blocks make larger in the end, so both
are put together by themselves.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from unigame.backbones.common.quantization import NONE, require_quantization
from unigame.backbones.memory import size_of
from unigame.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import JanusConfig

    from unigame.backbones.base import Backbone
    from unigame.methods.base import Method
    from unigame.methods.rows import Batch
    from unigame.training.recipe import Recipe
    from unigame.training.trainer import UniGameTrainer

WHOLE = 100_000_000
"""Parameters up to which a model is tried whole, with its own weights."""
ON_CPU = 1_000_000_000
"""Parameters up to which steps are tried on a CPU, where a larger model takes minutes for one."""
BLOCKS = 3
WARM_UP, TIMED = 2, 3
# What is assumed of the texts where the recipe's data is not at hand.
QUESTION, ANSWER = " ".join(["what colour is the big circle"] * 4), "red"


@dataclass(frozen=True)
class Trial:
    """What the steps of a recipe take; checkpoints and evaluations come on top.

    Attributes:
        seconds: of one optimizer step, all its micro-batches included.
        memory: bytes of tensors at the worst moment; model, optimizers, C and the models that
            judge pictures included.
        steps: of the whole run.
        sliced: whether it was put together from slices.
        own_data: whether texts and pictures were the recipe's own.
    """

    seconds: float
    memory: float
    steps: int
    sliced: bool
    own_data: bool

    @property
    def total_seconds(self) -> float:
        """Of the whole run."""
        return self.seconds * self.steps


class _Step(NamedTuple):
    """Seconds on average, and bytes at the peak of a step with and without a challenge."""

    seconds: float
    challenging: float
    understanding: float


def try_recipe(
    plan: Recipe, config: JanusConfig | None = None, parameters: int | None = None
) -> Trial:
    """Run some steps of a recipe on this machine.

    Args:
        plan: a checked recipe.
        config: of its model, a Janus. Default: its checkpoint's.
        parameters: of its model. Default: counted.

    Raises:
        UserError: a large model of another family than Janus, which cannot be sliced; one too large
            for a CPU; a checkpoint that does not load; steps that do not fit into memory.
    """
    from unigame.backbones import load_backbone

    require_quantization(plan.quantization)
    if parameters is None:
        parameters = size_of(plan.model).parameters
    args, sliced = plan.training, parameters > WHOLE
    if args.device.type == "cpu" and parameters > ON_CPU:
        raise UserError(f"steps of {parameters / 1e9:.1f} B parameters are not tried on a CPU")
    if sliced and config is None:
        config = _janus_config(plan.model)
    rows, size = sample_rows(plan)
    if sliced:
        assert config is not None
        found = _sliced(plan, config, rows)
    else:
        backbone = load_backbone(
            plan.model,
            dtype=plan.weights_dtype,
            device=args.device,
            quantization=plan.quantization,
        )
        found = _steps(plan, backbone, rows)
    memory = max(found.challenging, found.understanding)
    accumulated, steps = args.gradient_accumulation_steps, args.max_steps
    if steps < 0:
        at_once = args.per_device_train_batch_size * accumulated * args.world_size
        steps = round(args.num_train_epochs * (size or 0) / at_once)
    return Trial(found.seconds * accumulated, memory, steps, sliced, size is not None)


def _janus_config(name: str) -> JanusConfig:
    """The configuration of a Janus checkpoint; of a Hub id nothing else is fetched."""
    from transformers import JanusConfig

    from unigame.backbones.folder import find_checkpoint

    found, _ = JanusConfig.get_config_dict(find_checkpoint(name))
    if (family := found.get("model_type")) != "janus":
        raise UserError(f"a large model can only be tried if it is a Janus; {name!r} is {family}")
    return JanusConfig.from_dict(found)


def sample_rows(plan: Recipe) -> tuple[list[dict[str, Any]], int | None]:
    """One batch of the recipe's own data and the data's size; made-up rows where it is not here."""
    from PIL import Image

    from unigame.data import build_dataset

    batch = plan.training.per_device_train_batch_size
    try:
        data = build_dataset(plan.data, seed=plan.training.seed)
        rows = [data[i % len(data)] for i in range(batch)]
    except UserError:
        picture = Image.new("RGB", (384, 384), "grey")
        row = {"image": picture, "question": QUESTION, "answer": ANSWER, "caption": QUESTION}
        return [{**row, "id": str(number)} for number in range(batch)], None
    return [dict(row) for row in rows if isinstance(row, dict)], len(data)


def _sliced(plan: Recipe, config: JanusConfig, rows: list[dict[str, Any]]) -> _Step:
    """What a step of the whole model takes, from those of three slices."""
    base, language, vision = (
        _steps(plan, _slice(plan, config, *blocks), rows)
        for blocks in ((1, 1), (BLOCKS, 1), (1, BLOCKS))
    )
    more = (config.text_config.num_hidden_layers - 1) / (BLOCKS - 1)
    more_vision = (config.vision_config.num_hidden_layers - 1) / (BLOCKS - 1)
    return _Step(
        *(
            one + more * max(0.0, larger - one) + more_vision * max(0.0, seeing - one)
            for one, larger, seeing in zip(base, language, vision, strict=True)
        )
    )


def _slice(plan: Recipe, config: JanusConfig, layers: int, vision_layers: int) -> Backbone:
    """Random weights of the model's widths, with so many blocks of its two transformers."""
    import torch
    from transformers import JanusForConditionalGeneration

    from unigame.backbones.janus.layout import build_processor
    from unigame.backbones.janus.model import JanusBackbone
    from unigame.synthetic.questions import vocabulary

    config, device = copy.deepcopy(config), plan.training.device
    vision = config.vision_config
    config.text_config.num_hidden_layers = layers
    vision.num_hidden_layers = vision_layers
    tokens = (vision.image_size // vision.patch_size) ** 2
    processor = build_processor(vocabulary(), vision.image_size, tokens)
    config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    text = config.text_config
    text.vocab_size = max(text.vocab_size, len(processor.tokenizer))
    with torch.device(device):
        model = JanusForConditionalGeneration(config)
    model = model.to(getattr(torch, plan.weights_dtype))  # a config may name another type
    backbone = JanusBackbone(model, processor)
    return backbone if plan.quantization == NONE else backbone.quantize(plan.quantization, device)


def _steps(plan: Recipe, backbone: Backbone, rows: list[dict[str, Any]]) -> _Step:
    """What the trainer's steps take on one batch, hard samples included."""
    import torch
    from torch import nn
    from transformers.trainer_utils import IntervalStrategy

    from unigame.doctor.peak import peak_bytes, tensor_bytes
    from unigame.training.trainer import UniGameTrainer

    args = copy.deepcopy(plan.training)
    args.gradient_accumulation_steps = 1
    args.shard_frozen = "none"  # one process tries, with whole weights
    methods = plan.build_methods()
    games = [method.settings for method in methods if method.name == "selfplay"]
    for game in games:
        game.clip_floor, game.buffer_min_size = -1.0, 1  # as in a run whose buffer has filled
        game.drop_learned = False
        game.warm_up_steps = 0  # in those U does not learn, and a step costs less
        if game.redrawn_every > 1:
            game.redrawn_every = 0  # the tried steps would all be those with a baseline
    args.eval_strategy = IntervalStrategy.NO
    if args.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        trainer = UniGameTrainer(
            # No data: a batch of it may hold rows of one kind only, which a run would refuse.
            model=backbone,
            args=args,
            peft_config=plan.lora_config(),
            methods=methods,
        )
        trainer.create_optimizer_and_scheduler(num_training_steps=100)
        batch = trainer.data_collator(rows)
        try:
            seconds = _seconds(trainer, batch)
            challenging = understanding = peak_bytes(lambda: _step(trainer, batch), args.device)
            for game in games:
                every, game.challenge_every = game.challenge_every, 2
                trainer.state.global_step = 1  # of a step on which no challenge is due
                understanding = peak_bytes(lambda: _step(trainer, batch), args.device)
                if every > 1:
                    seconds = (seconds + (every - 1) * _seconds(trainer, batch)) / every
        except torch.OutOfMemoryError as error:
            raise UserError("a step does not fit into the memory of this GPU") from error
    own = [getattr(method, "optimizer", None) for method in trainer.methods]
    optimizers = [one for one in (trainer.optimizer, *own) if one is not None]
    brought = [network for method in trainer.methods for network in networks_of(method)]
    # In one list, so that what two of them share counts once.
    alive = tensor_bytes(nn.ModuleList([backbone, *brought]), *optimizers)
    return _Step(seconds, challenging + alive, understanding + alive)


def networks_of(method: Method) -> list[nn.Module]:
    """Networks that a method brings, such as C and a similarity model.

    They lie in its attributes, or in those of its players, as ``challenger`` and ``verifier``.
    Through a run's other parts the base model may be among them.
    """
    from torch import nn

    holders = [method, *vars(method).values()]
    parts = [part for holder in holders for part in getattr(holder, "__dict__", {}).values()]
    return [part for part in parts if isinstance(part, nn.Module)]


def _seconds(trainer: UniGameTrainer, batch: Batch) -> float:
    """The median of some steps."""
    return statistics.median([_timed(trainer, batch) for _ in range(WARM_UP + TIMED)][WARM_UP:])


def _timed(trainer: UniGameTrainer, batch: Batch) -> float:
    import torch

    wait = torch.cuda.synchronize if trainer.args.device.type == "cuda" else (lambda: None)
    wait()
    begun = time.perf_counter()
    _step(trainer, batch)
    wait()
    return time.perf_counter() - begun


def _step(trainer: UniGameTrainer, batch: Batch) -> None:
    """What the Trainer's loop does for one step without accumulation."""
    import torch

    _, counts = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    trainer.training_step(trainer.model, batch, counts)
    parameters = trainer.backbone.trainable_parameters()
    torch.nn.utils.clip_grad_norm_(parameters, trainer.args.max_grad_norm)
    assert trainer.optimizer is not None
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
