"""What a change of the code did to training, to the bit: digests of three short runs.

    joint_sft        answers and captions, nothing played
    selfplay         the game, its redrawn baseline on every third challenge
    k4_accumulated   four candidates, two micro-batches, losses by token, LoRA dropout, U in passes

Every logged figure (times left out), and digests of the adapter, of C's weights and of what else
moves in a method (buffer, optimizer, generators), after each run. Write them before a change and
compare after it; bits are those of one machine and one version of torch, with one thread.

Usage:
    python benchmarks/digests.py --json before.json
    python benchmarks/digests.py --against before.json      exit code 1: they differ
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import record
import torch
from safetensors.torch import load_file
from torch import Tensor

from unigame.training.recipe import load_recipe
from unigame.training.run import run_recipe

COMMON = (
    "--logging_steps 1 --save_strategy steps --eval_strategy no --disable_tqdm --use_cpu "
    "--per_device_train_batch_size 4"
)
RUNS = {
    "joint_sft": "--seed 0 --generation_weight 1 --methods sft",
    "selfplay": "--seed 1 --buffer_min_size 2 --redrawn_every 3",
    "k4_accumulated": "--seed 2 --gradient_accumulation_steps 2 --generation_weight 0.5 "
    "--num_candidates 4 --label_weight 0.5 --hard_quantile 0.3 --buffer_min_size 2 "
    "--understanding_micro_batch 2 --loss_reduction token --lora.lora_dropout 0.1",
}
TIMES = ("seconds", "wait_share", "train_", "total", "epoch")


def main(argv: list[str] | None = None) -> int:
    """Run, print, write, compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file of an earlier run, to compare with")
    parser.add_argument("--steps", type=int, default=8, help="of each run")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    before = json.loads(options.against.read_text())["runs"] if options.against else None
    runs = {name: digests(RUNS[name].split(), options.steps) for name in options.runs}
    record.write({"runs": runs}, {"steps": options.steps}, options.json)
    if before is None:
        return 0
    found = differences(before, json.loads(json.dumps(runs)))
    print("\n".join(found) or f"equal to the bit: {', '.join(runs)}")
    return 1 if found else 0


def digests(words: list[str], steps: int) -> dict[str, Any]:
    """What one run logged, and digests of what it left."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = f"--max_steps {steps} --save_steps {steps} --output_dir {folder}/run"
        run_recipe(load_recipe("janus_nano", [*COMMON.split(), *sizes.split(), *words]))
        checkpoint = Path(folder) / "run" / f"checkpoint-{steps}"
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        found: dict[str, Any] = {
            "log": [
                {name: value for name, value in entry.items() if not name.startswith(TIMES)}
                for entry in state["log_history"]
            ]
        }
        for file in sorted(checkpoint.glob("*.safetensors")):
            found[file.name] = dict(leaves(load_file(file)))
        for file in sorted(checkpoint.glob("*_state.pt")):  # of methods
            found[file.name] = dict(leaves(torch.load(file, weights_only=True)))
    return found


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by their path, tensors as digests of their bytes."""
    if isinstance(value, Tensor):
        data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield path, hashlib.sha256(data).hexdigest()[:16]
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield from leaves(value[name], f"{path}.{name}".strip("."))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from leaves(item, f"{path}.{place}")
    else:
        yield path, value


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each value that is another one, or is on one side alone."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        f"{path}: {old.get(path)} before, {new.get(path)} now"
        for path in sorted(old.keys() | new.keys())
        if path.split(".")[0] in after and old.get(path) != new.get(path)
    ]


if __name__ == "__main__":
    sys.exit(main())
