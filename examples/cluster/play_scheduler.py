"""Play a scheduler on this machine: preempt a run, start it again, compare with an unbroken one.

python examples/cluster/play_scheduler.py runs/scheduler            # minutes on a CPU
python examples/cluster/play_scheduler.py runs/scheduler --signal HUP --preemptions 2
"""

import argparse
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

RESULTS = ("adapter_model.safetensors", "perturber.safetensors")
SETTINGS = ["--per_device_train_batch_size", "4", "--save_strategy", "steps", "--save_steps", "1"]
SETTINGS += ["--eval_strategy", "no", "--resume_from_checkpoint", "auto"]


def start(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """The command, the same each time."""
    words = ["train", "janus_nano", "--output_dir", str(folder), "--max_steps", str(steps)]
    return subprocess.Popen([sys.executable, "-m", "unigame", *words, *SETTINGS])


def newest(folder: Path) -> int:
    """Steps of the newest checkpoint; 0 for none."""
    steps = [int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")]
    return max(steps, default=0)


def preempt(folder: Path, steps: int, number: int) -> None:
    """Send the signal when the run has got on by a step, and look at its exit code."""
    process, before = start(folder, steps), newest(folder)
    while newest(folder) == before and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait()
    print(f"preempted after step {newest(folder)}: exit code {code}")
    if code != 128 + number:
        sys.exit(f"expected exit code {128 + number}: the run ended by itself, or wrongly")


def digests(folder: Path) -> dict[str, str]:
    """What a run left, by SHA-256."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RESULTS}


def main() -> None:
    """Two runs, one of them preempted, and whether they ended in the same bits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--preemptions", type=int, default=1)
    parser.add_argument("--signal", choices=("TERM", "HUP"), default="TERM")
    args = parser.parse_args()
    unbroken, preempted = args.folder / "unbroken", args.folder / "preempted"
    for _ in range(args.preemptions):
        preempt(preempted, args.steps, getattr(signal, f"SIG{args.signal}"))
    for folder in (preempted, unbroken):
        if code := start(folder, args.steps).wait():
            sys.exit(f"{folder} ended with exit code {code}")
    if digests(preempted) != digests(unbroken):
        sys.exit("the preempted run ended with other weights")
    print(f"equal to the bit: {', '.join(RESULTS)}")


if __name__ == "__main__":
    main()
