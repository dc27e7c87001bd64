"""``unigame doctor``: is the installation sound, what hardware is there, and what fits on it?"""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich import box
from rich.table import Table
from rich.text import Text

from unigame.commands.console import make_console, next_step
from unigame.commands.memory import (
    GIB,
    Dtype,
    ModelSize,
    Setting,
    estimate,
    janus_pro_config,
    measure,
)
from unigame.errors import UserError

if TYPE_CHECKING:
    from unigame.training.recipe import Recipe

_REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")
_OPTIONAL = ("tensorboard", "wandb")  # integrations of --report_to
_DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
_BATCHES = (1, 8)


def doctor(*, model: str | None = None, recipe: str | None = None) -> int:
    """Print the report; returns 0, or 1 where something that every command needs is broken.

    Raises:
        UserError: ``model`` or ``recipe`` is not usable; said before any weight is loaded.
    """
    from unigame.training.recipe import load_recipe

    plan = load_recipe(recipe) if recipe else None
    asked = ([model] if model else []) + ([plan.model] if plan else [])
    sizes = [_size_of(name) for name in dict.fromkeys(asked)]
    console = make_console()
    for title, lines in (("Environment", _environment()), ("Hardware", _hardware())):
        console.print(Text(title, style="bold"))
        for line in lines:
            console.print(f"  {line}", markup=False)
    console.print(Text("Bundled model", style="bold"))
    sound, line = _check_bundled_model()
    console.print(f"  {line}", markup=False)
    known = [measure(f"Janus-Pro-{size}", janus_pro_config(size)) for size in ("1B", "7B")]
    bundled = [_size_of("janus-nano")] if sound else []
    named = {size.name: size for size in (*bundled, *known, *sizes)}
    _print_what_fits(list(named.values()))
    if plan is not None:
        _print_recipe(plan, named[plan.model])
    if not sound:
        next_step("mend the bundled model: install unigame again, from its wheel or a full clone")
        return 1
    next_step(*_advice(model, recipe))
    return 0


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
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count()
    lines = [
        f"CPU: {cores} cores for this process, torch uses {torch.get_num_threads()} threads",
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


def _size_of(name: str) -> ModelSize:
    """The size of a checkpoint from its config alone (a Hub id fetches only config.json)."""
    from transformers import JanusConfig

    from unigame.backbones.checkpoint import (
        check_files,
        fetch_config,
        find_checkpoint,
        read_model_type,
    )

    checkpoint = find_checkpoint(name)
    if isinstance(checkpoint, Path):
        config_file = checkpoint / "config.json"
        read_model_type(config_file, ("janus",))
        check_files(checkpoint)
    else:
        config_file = fetch_config(checkpoint)
        read_model_type(config_file, ("janus",))
    return measure(name, JanusConfig.from_json_file(config_file))


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
        for dtype in _DTYPES:
            table.add_column(f"{arm}\n{dtype}", justify="right")
    for size in sizes:
        for batch in _BATCHES:
            cells = []
            for game in (False, True):
                for dtype in _DTYPES:
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
        markup=False,
    )


def _billions(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f} B"
    return f"{parameters / 1e6:.1f} M"


def _print_recipe(plan: Recipe, size: ModelSize) -> None:
    """What the settings of this very recipe would take."""
    settings = plan.training
    batch = settings.per_device_train_batch_size
    setting = Setting(
        game=settings.plays,
        batch_size=batch,
        hard=settings.resolved_hard_batch_size if settings.plays else 0,
        captions=batch if settings.generation_weight > 0 else 0,
        candidates=settings.num_candidates,
        checkpointing=bool(settings.gradient_checkpointing),
    )
    dtype: Dtype = "float32" if plan.dtype == "float32" else "bfloat16"
    needed = estimate(size, setting, dtype)
    place, capacity = _capacity()
    verdict = "fits" if needed.total <= capacity else "does not fit"
    make_console().print(
        f"  This recipe ({plan.model}, {dtype}, batch {batch}): about "
        f"{needed.total / GIB:.1f} GiB, {verdict} in {place}.",
        markup=False,
    )


def _advice(model: str | None, recipe: str | None) -> list[str]:
    if recipe:
        return [f"train it:  unigame train {shlex.quote(recipe)}"]
    if model:
        return [f"ask it something:  unigame answer IMAGE QUESTION --model {shlex.quote(model)}"]
    return [
        "see the whole thing in minutes:  unigame demo --quick",
        "check a checkpoint or a recipe:  unigame doctor --model FOLDER --recipe FILE.yaml",
    ]
