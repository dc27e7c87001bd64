"""What ``unigame doctor`` prints: the installation, the hardware, and what fits on it."""

from __future__ import annotations

import math
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich import box
from rich.table import Table
from rich.text import Text

from unigame.backbones.common.quantization import NONE
from unigame.backbones.memory import (
    DTYPES,
    GIB,
    LORA_RANK,
    SLACK,
    Dtype,
    Learners,
    ModelSize,
    PerturberSize,
    Setting,
    estimate,
    knows_targets,
    published_sizes,
    shared_bytes,
    size_of,
)
from unigame.backbones.model_files import read_json
from unigame.errors import UserError
from unigame.system.console import make_console
from unigame.system.threads import usable_cores

if TYPE_CHECKING:
    from unigame.training.recipe import Recipe

_REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")
_OPTIONAL = ("tensorboard", "trackio", "wandb")  # integrations of --report_to
_BATCHES = (1, 8)
# Settings of LoRA that change how much trains, and are not counted.
_OF_LORA = (
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "target_parameters",
    "use_dora",
    "lora_bias",
    "use_qalora",
)


def report(
    *, model: str | None = None, recipe: str | None = None, overrides: Sequence[str] = ()
) -> tuple[bool, list[str]]:
    """Print the report; whether what every command needs is sound, and what to do next.

    Args:
        model: a checkpoint to check too.
        recipe: a recipe to check too.
        overrides: of the recipe's settings, as for ``unigame train``.

    Raises:
        UserError: ``model`` or ``recipe`` is not usable; said before any weight is loaded.
    """
    # The profiler, which measures memory on a CPU, writes of its own doings otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from unigame.training.recipe import load_recipe

    plan = load_recipe(recipe, overrides, here=False) if recipe else None
    asked = ([model] if model else []) + ([plan.model] if plan else [])
    sizes = [size_of(name) for name in dict.fromkeys(asked)]
    _print_block("Environment", _environment())
    _print_block("Hardware", _hardware())
    sound, line = _check_bundled_model()
    _print_block("Bundled model", [line])
    bundled = [size_of("janus-nano")] if sound else []
    named = {size.name: size for size in (*bundled, *published_sizes(), *sizes)}
    _print_what_fits(list(named.values()))
    if plan is not None:
        _print_recipe(plan, named[plan.model])
    if sound:
        return True, _advice(model, recipe, overrides)
    return False, ["mend the bundled model: install unigame again, from its wheel or a full clone"]


def _print_block(title: str, lines: Sequence[str]) -> None:
    console = make_console()
    console.print(Text(title, style="bold"))
    for line in lines:
        console.print(f"  {line}")


def _environment() -> list[str]:
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines.append(", ".join(f"{name} {version(name)}" for name in _REQUIRED))
    lines.append("optional, for --report_to: " + ", ".join(map(_version_or_none, _OPTIONAL)))
    return lines


def _version_or_none(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"


def _hardware() -> list[str]:
    import torch

    memory = psutil.virtual_memory()
    lines = [
        f"CPU: {usable_cores()} cores for this process, "
        f"torch uses {torch.get_num_threads()} threads",
        f"memory: {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available",
    ]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"GPU {index}: {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    if not torch.cuda.is_available():
        lines.append("GPU: none that torch can use; everything runs on the CPU")
    return lines


def _check_bundled_model() -> tuple[bool, str]:
    """Whether janus-nano loads and answers, and one line to print about it."""
    import torch

    from unigame.backbones import load_backbone

    start = time.perf_counter()
    try:
        backbone = load_backbone("janus-nano", device="cpu")
    except UserError as error:
        return False, f"broken: {error}"
    side = backbone.facts.image_size
    backbone.answer(torch.full((1, 3, side, side), 0.5), ["how many objects ?"])
    return True, f"janus-nano loads and answers ({time.perf_counter() - start:.1f} s)"


def _capacity() -> tuple[str, float]:
    """The memory that training would use here: the largest GPU's, or what the CPU has available."""
    import torch

    totals = [torch.cuda.mem_get_info(i)[1] for i in range(torch.cuda.device_count())]
    if totals:
        return "one GPU of this machine", max(totals)
    return "this machine's available memory", psutil.virtual_memory().available


def _print_what_fits(sizes: Sequence[ModelSize]) -> None:
    console = make_console()
    place, capacity = _capacity()
    utf = (console.encoding or "").lower().startswith("utf")
    marks = {True: " ✓" if utf else " yes", False: " ✗" if utf else " no"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("GiB to train")
    table.add_column("batch", justify="right")
    for arm in ("SFT", "UniGame"):
        for dtype in DTYPES:
            table.add_column(f"{arm}\n{dtype}", justify="right")
    for size in sizes:
        for batch in _BATCHES:
            cells = []
            for game in (False, True):
                for dtype in DTYPES:
                    setting = Setting(game, batch, hard=(batch + 1) // 2 if game else 0)
                    total = estimate(size, setting, dtype).total
                    cells.append(f"{total / GIB:.1f}{marks[total <= capacity]}")
            label = f"{size.name} ({_billions(size.parameters)})" if batch == _BATCHES[0] else ""
            table.add_row(label, str(batch), *cells)
    console.print(Text("What fits", style="bold"))
    console.print(table)
    console.print(
        "  An estimate from parameter counts and saved activations, not a measurement: LoRA of\n"
        "  rank 16, short questions, gradient checkpointing, one candidate a sample, half a batch\n"
        "  of hard samples, weights in the type named. The marks compare with\n"
        f"  {place} ({capacity / GIB:.1f} GiB).",
        style="dim",
    )
    _print_packed(sizes)
    for size in sizes:
        for note in size.notes:
            console.print(f"  {size.name}: not counted: {note}.", style="dim")


def _print_packed(sizes: Sequence[ModelSize]) -> None:
    """What large models take with their language model in 4 bits."""
    batch = _BATCHES[-1]
    setting = Setting(True, batch, hard=(batch + 1) // 2)
    for size in sizes:
        if size.packable_parameters >= 1e8:
            total = estimate(size, setting, "bfloat16", "nf4").total
            figure = f"{total / GIB:.1f} GiB (UniGame, bfloat16, batch {batch})"
            make_console().print(f"  {size.name} with quantization: nf4: {figure}.", style="dim")


def _billions(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f} B"
    return f"{parameters / 1e6:.1f} M"


def setting_of(plan: Recipe) -> Setting:
    """What of a recipe memory depends on; of several GPUs, on each.

    Rows of verified drawings count as any others; that they are drawn and asked, without gradient,
    does not (``_uncounted``).
    """
    settings, game = plan.training, plan.settings_of("selfplay")
    reca = plan.settings_of("reca")
    batch = settings.per_device_train_batch_size
    verify, imagine = (plan.settings_of(name) for name in ("verify", "imagine"))
    answers = imagine.rows_of(batch) + imagine.rehearsed(batch) if imagine else 0
    drawn = (verify.rows_of(batch) if verify else 0) + (imagine.drawn(batch) if imagine else 0)
    setting = Setting(
        game=False,
        batch_size=batch,
        hard=answers,
        captions=drawn + (batch if settings.generation_weight > 0 else 0),
        redrawn=math.ceil(reca.share * batch) if reca else 0,
        checkpointing=bool(settings.gradient_checkpointing),
        read_at_once=settings.understanding_micro_batch,
        learners=_learners(plan),
    )
    if game is None:
        return setting
    return replace(
        setting,
        game=True,
        hard=answers + game.hard_rows(batch),
        candidates=game.learned_candidates,
        challenged_at_once=game.challenge_micro_batch,
        share=game.challenge_share,
    )


def _learners(plan: Recipe) -> Learners:
    """What learns by a recipe. An adapter that it goes on with has a rank of its own."""
    lora, game = plan.lora_config(), plan.settings_of("selfplay")
    rank = LORA_RANK if lora is None else int(lora.r)
    targets = None if lora is None else lora.target_modules
    perturber = None
    if game is not None and game.perturbation == "learned":
        perturber = PerturberSize(
            width=game.perturber_width,
            depth=game.perturber_depth,
            heads=game.heads,
            shared=game.perturber_scope != "token",
        )
    return Learners(
        lora_rank=_rank_of(plan.adapter) or rank,
        lora_targets=targets if targets is None or isinstance(targets, str) else tuple(targets),
        parts=tuple(plan.training.train_parts or ()),
        perturber=perturber,
    )


def _rank_of(adapter: str | None) -> int | None:
    """Of an adapter's LoRA; None where there is none, or it is not on this machine."""
    if adapter is None:
        return None
    try:
        found = read_json(Path(adapter).expanduser() / "adapter_config.json").get("r")
    except UserError:
        return None
    return found if isinstance(found, int) else None


def _print_recipe(plan: Recipe, size: ModelSize) -> None:
    """What the settings of this very recipe would take."""
    dtype: Dtype = plan.weights_dtype
    setting = _shared_out(setting_of(plan), plan)
    needed = estimate(size, setting, dtype, plan.quantization)
    kept = dtype if plan.quantization == NONE else f"{dtype}, {plan.quantization}"
    parts = (needed.weights, needed.trained, needed.activations)
    frozen, trained, activations = (f"{part / GIB:.1f}" for part in parts)
    place, capacity = _capacity()
    fits = needed.total <= capacity
    each = f" on each of {setting.processes} processes" if setting.processes > 1 else ""
    make_console().print(
        f"  This recipe ({plan.model}, {kept}, batch {setting.batch_size}): about "
        f"{needed.total / GIB:.1f} GiB{each}, {_verdict(plan, setting, fits)} in {place}.\n"
        f"  On each GPU: {frozen} of frozen weights, {trained} of what trains, {activations} of "
        f"activations{' (recomputed)' if setting.checkpointing else ''},\n"
        f"  {SLACK - 1:.0%} on top; a similarity model is not counted.",
    )
    sharing = _sharing(plan, size, setting)
    for line in (sharing, *_uncounted_learners(plan, size), _uncounted(plan)):
        if line:
            make_console().print(f"  {line}")
    if plan.lacks:
        make_console().print(f"  It cannot be trained here as it is: {plan.lacks}.")
    elif fits:
        _print_trial(plan)


# ---- frozen weights in shards ------------------------------------------------------------------


def _shards(plan: Recipe) -> bool:
    """Whether its runs share frozen weights out; packed ones they refuse to."""
    return plan.training.shard_frozen != "none" and plan.quantization == NONE


def _shared_out(setting: Setting, plan: Recipe) -> Setting:
    """The setting on the processes that a run here would have."""
    if not _shards(plan):
        return setting
    vision = plan.training.shard_frozen == "language+vision"
    return replace(setting, processes=_processes(), shards_vision=vision)


def _processes() -> int:
    """As many as are launched, else one for each GPU."""
    import torch

    from unigame.training.ranks import launched_processes

    launched = launched_processes()
    return launched if launched > 1 else max(1, torch.cuda.device_count())


def _verdict(plan: Recipe, setting: Setting, fits: bool) -> str:
    if fits:
        return "fits"
    alone = _shards(plan) and setting.processes == 1
    return "too much for one process alone" if alone else "does not fit"


def _sharing(plan: Recipe, size: ModelSize, setting: Setting) -> str:
    """What ``shard_frozen`` does to the figures; empty where a recipe does not set it."""
    shown = f"shard_frozen={plan.training.shard_frozen}"
    if plan.training.shard_frozen == "none":
        return ""
    if not _shards(plan):
        return (
            f"Nothing is shared out here: {shown} with quantization={plan.quantization} is "
            "refused; leave one of them out."
        )
    shared = shared_bytes(size, plan.weights_dtype, vision=setting.shards_vision)
    if not shared:
        return (
            f"Not counted: {shown}, by which each process holds a part of the frozen layers; how "
            "large these are is not known of this family."
        )
    share = f"{shown} shares out {shared / GIB:.1f} GiB of frozen weights"
    if setting.processes > 1:
        return f"{share} over the processes, which is counted."
    totals = {
        number: estimate(size, replace(setting, processes=number), plan.weights_dtype).total
        for number in (2, 4, 8)
    }
    each = ", ".join(f"{total / GIB:.1f} on each of {number}" for number, total in totals.items())
    return (
        f"{share} over the processes of a run. These figures are of one; it would be about {each}."
    )


# ---- what is left out --------------------------------------------------------------------------


def _uncounted_learners(plan: Recipe, size: ModelSize) -> list[str]:
    """What a recipe sets of what learns, and the estimate passes over."""
    learners = _learners(plan)
    if learners.parts:
        unknown = [name for name in learners.parts if name not in size.parts]
        said = (
            f"Not counted: train_parts={','.join(unknown)}, which this model's size does not name."
        )
        return [said] if unknown else []
    lines = []
    left_out = [name for name in _OF_LORA if _is_set(plan.lora.get(name))]
    targets = learners.lora_targets
    if targets is not None and not knows_targets(size, targets):
        left_out.insert(0, "target_modules")
    if left_out:
        names = ", ".join(f"lora.{name}" for name in left_out)
        lines.append(f"Not counted: what {names} would change of LoRA.")
    if plan.adapter is not None and _rank_of(plan.adapter) is None:
        lines.append(
            f"Not counted: LoRA settings of adapter {plan.adapter}, which is not here; those of "
            "the recipe are taken for them."
        )
    return lines


def _uncounted(plan: Recipe) -> str:
    """What rounds of verified drawings take beside a step; empty where there are none."""
    found = {name: plan.settings_of(name) for name in ("verify", "imagine")}
    batches = [f"{name} {own.draw_batch}" for name, own in found.items() if own is not None]
    if not batches:
        return ""
    return (
        f"Not counted: rounds of drawing and asking without gradient ({', '.join(batches)} "
        "pictures at a time, twice the rows with guidance); draw_batch is halved where they do not "
        "fit, except with shard_frozen."
    )


def _is_set(value: Any) -> bool:
    """Whether a setting of LoRA says anything; 0 is a number, such as of a layer."""
    return value is not None and value is not False and value not in ([], {})


def _print_trial(plan: Recipe) -> None:
    """What the run would take here, by trying its own steps."""
    from unigame.doctor.trial import try_recipe

    console = make_console()
    try:
        found = try_recipe(plan)
    except UserError as error:
        console.print(f"  Not tried: {error}.")
        return
    how = "slices of the model" if found.sliced else "the model itself"
    if plan.training.shard_frozen != "none":
        how += ", its weights whole on one process"
    data = "" if found.own_data else " and made-up pictures, since the recipe's are not here"
    console.print(
        f"  Tried here on {how}{data}: {found.seconds:.2g} s a step, "
        f"{duration(found.total_seconds)} for {found.steps}\n"
        f"  steps (evaluations and checkpoints apart), {found.memory / GIB:.2g} GiB at the peak.",
    )


def duration(seconds: float) -> str:
    """In the largest unit that fits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _advice(model: str | None, recipe: str | None, overrides: Sequence[str]) -> list[str]:
    if recipe:
        return [f"train it:  unigame train {shlex.join([recipe, *overrides])}"]
    if model:
        return [f"ask it something:  unigame answer IMAGE QUESTION --model {shlex.quote(model)}"]
    return [
        "see the whole thing in minutes:  unigame demo --quick",
        "check a checkpoint or a recipe:  unigame doctor --model FOLDER --recipe FILE.yaml",
    ]
