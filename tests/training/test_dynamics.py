"""What a run takes down for its report: the path of the LoRA weights, a map of pictures, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.tiny import shared_tiny_janus
from tests.training.helpers import LORA, Records, lora_weights, make_config, make_trainer
from unigame.training import metrics, weight_path
from unigame.training.about import write_about
from unigame.training.coverage import layout
from unigame.training.metrics import Meter, PhaseTimer
from unigame.training.weight_path import NO_LORA, WeightPath, sketch

STEPS = 4


class Stream(torch.utils.data.IterableDataset[Any]):
    """Records without a number."""

    def __iter__(self) -> Any:
        yield from Records(4)


RUN: dict[str, Any] = {
    "max_steps": STEPS,
    "coverage_points": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "keep_examples": 0,
    "lr_scheduler_type": "constant",
}


def make_run(folder: Path, **settings: Any) -> Any:
    data, held_out = Records(captions=True), Records(3, captions=True)
    return make_trainer(
        shared_tiny_janus(), folder, data, eval_dataset=held_out, **{**RUN, **settings}
    )


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    place = folder / "dynamics"
    lines = (place / "path.jsonl").read_text().splitlines()
    coverage = place / "coverage.json"
    return [json.loads(line) for line in lines], json.loads(coverage.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder, how far the weights moved in the end, and the trainer."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_run(folder)
    before = lora_weights(trainer)
    trainer.train()
    after = lora_weights(trainer)
    moved = sum((after[n] - before[n]).double().square().sum() for n in before) ** 0.5
    return folder, float(moved), trainer


def test_the_path_says_how_far_the_weights_went(run: tuple[Path, Any, Any]) -> None:
    folder, moved, trainer = run
    points, _ = read(folder)
    assert [point["step"] for point in points] == list(range(STEPS + 1))
    ends = torch.tensor(points[-1]["moved"], dtype=torch.float64)
    start = torch.tensor(points[0]["start"], dtype=torch.float64)
    torch.testing.assert_close(ends, sketch(trainer.backbone) - start, rtol=1e-4, atol=1e-6)
    assert abs(float(ends.norm()) / moved - 1) < 0.4  # three standard deviations of a sketch


def test_the_map_has_every_kind_of_picture(run: tuple[Path, Any, Any]) -> None:
    folder, _, trainer = run
    _, found = read(folder)
    held = min(8, len(trainer.methods[0].buffer))
    sizes = {kind: len(part["at"]) for kind, part in found["kinds"].items()}
    assert sizes == {"clean": 8, "candidates": 8, "buffer": held, "held-out": 3}
    nearest = {kind: part["nearest"] for kind, part in found["kinds"].items()}
    assert nearest["clean"] == 1 and nearest["candidates"] > 0.1 and nearest["buffer"] > 0.1
    assert nearest["held-out"] < 1e-3  # here they are training pictures
    assert 0 < sum(found["share"]) <= 1 + 1e-9
    about = json.loads((folder / "about.json").read_text())
    assert about["not_recorded"] == {} and about["peak_memory_mb"] > 50


def test_a_resumed_run_takes_down_the_same(run: tuple[Path, Any, Any]) -> None:
    folder, _, _ = run
    before = read(folder)
    make_run(folder).train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert read(folder) == before


def test_a_long_run_keeps_few_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_path, "POINTS", 2)
    make_run(tmp_path, max_steps=5, coverage_points=0, save_strategy="no", methods=["sft"]).train()
    lines = (tmp_path / "dynamics" / "path.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 5]
    assert not (tmp_path / "dynamics" / "coverage.json").exists()
    why = json.loads((tmp_path / "about.json").read_text())["not_recorded"]
    assert why == {"coverage": "coverage_points is 0"}


@pytest.mark.parametrize(
    ("settings", "data", "part"),
    [
        ({"methods": ["sft"]}, Records(4), "no method"),
        ({"perturb_space": "tokens"}, Records(4), "no method"),
        ({}, Stream(), "stream"),
        ({}, [{"image": None}] * 4, "could be read"),
    ],
)
def test_what_has_no_map_says_why(
    settings: dict[str, Any], data: Any, part: str, tmp_path: Path
) -> None:
    trainer = make_run(tmp_path, **settings)
    trainer.train_dataset, trainer.state.global_step = data, 2
    assert part in trainer._map_pictures()
    assert not (tmp_path / "dynamics").exists()


def test_the_map_moves_nothing_that_the_run_keeps(tmp_path: Path) -> None:
    trainer = make_run(tmp_path, perturbation="random", num_candidates=2)
    trainer.state.global_step, game = 2, trainer.methods[0]
    states = (
        game.challenger.generator.get_state(),
        game.perturber.generator.get_state(),
        torch.get_rng_state(),
    )
    assert trainer._map_pictures() == ""
    after = (
        game.challenger.generator.get_state(),
        game.perturber.generator.get_state(),
        torch.get_rng_state(),
    )
    assert all(bool((a == b).all()) for a, b in zip(states, after, strict=True))


def test_a_map_of_two_directions_keeps_distances() -> None:
    clean = torch.tensor([[0.0, 0, 5], [1, 0, 5], [0, 1, 5], [1, 1, 5]])
    found = layout({"clean": clean, "near": clean + 0.1, "far": clean + 9})
    kinds = found["kinds"]
    assert kinds["near"]["nearest"] < 0.2 and kinds["far"]["nearest"] > 10
    flat = layout({"clean": clean, "near": clean[:, [1, 0, 2]]})
    assert sum(flat["share"]) == pytest.approx(1)
    at = torch.tensor(flat["kinds"]["clean"]["at"])
    torch.testing.assert_close(torch.cdist(at, at), torch.cdist(clean, clean), rtol=1e-3, atol=1e-3)
    twice = layout({"clean": torch.cat([clean, clean + 1e-6]), "near": clean + 0.1})
    assert twice["kinds"]["near"]["nearest"] == pytest.approx(kinds["near"]["nearest"], rel=1e-3)
    alone = layout({"clean": torch.ones(1, 3)})
    assert alone["kinds"]["clean"] == {"at": [[0, 0]], "nearest": None}


# ---- the sketch ----------------------------------------------------------------------------------
def test_a_sketch_is_linear_and_of_lora_weights_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 7), torch.nn.Linear(7, 3))
    before = torch.get_rng_state()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**LORA, target_modules=["0"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            weight.fill_(1.0 if "lora_" in name else 99.0)
        one = sketch(wrapped)
        for weight in wrapped.parameters():
            weight.mul_(3)
    torch.testing.assert_close(sketch(wrapped), 3 * one)
    assert float(one.abs().max()) <= 4 * 307 / 100  # 1228 weights of 1, of either sign
    torch.set_rng_state(before)


def test_without_lora_nothing_is_taken_down(tmp_path: Path) -> None:
    class State:
        is_world_process_zero, global_step, max_steps = True, 0, 9

    class Args:
        output_dir = str(tmp_path)

    path = WeightPath(torch.nn.Linear(2, 2))
    path.on_train_begin(Args, State, None)
    path.on_step_end(Args, State, None)
    assert path.why_not == NO_LORA and not list(tmp_path.iterdir())


def test_a_disk_that_is_full_costs_the_path_alone(tmp_path: Path) -> None:
    (tmp_path / "dynamics").write_text("in the way")
    trainer = make_run(tmp_path, max_steps=1, coverage_points=0, save_strategy="no")
    trainer.train()
    about = json.loads((tmp_path / "about.json").read_text())
    assert "could not be written" in about["not_recorded"]["path"]


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (b'{"step": 2, "moved": [0.0]}\n', 3),
        (b'{"step": 2, "mov', 2),
        (b"\x00\x00\xff", 2),
        (b"{}\n", 2),
        (b'{"step": 9, "moved": [0.0]}\n{"step": 10, "mov', 2),
    ],
)
def test_a_line_cut_in_two_costs_that_line_alone(last: bytes, kept: int, tmp_path: Path) -> None:
    class State:
        is_world_process_zero, global_step, max_steps = True, 0, 128

    class Args:
        output_dir = str(tmp_path)

    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(3, 2)), peft.LoraConfig(**LORA, target_modules=["0"])
    )
    WeightPath(model).on_train_begin(Args, State, None)
    file = tmp_path / "dynamics" / "path.jsonl"
    start = json.loads(file.read_text())["start"]
    with file.open("ab") as lines:
        lines.write(b'{"step": 1, "moved": [0.0]}\n' + last)
    with torch.no_grad():
        for _, weight in weight_path.lora_weights(model):
            weight.add_(1)
    State.global_step = 8
    resumed = WeightPath(model)
    resumed.on_train_begin(Args, State, None)
    resumed.on_step_end(Args, State, None)
    points = [json.loads(line) for line in file.read_text().splitlines()]
    assert [point["step"] for point in points] == [*range(kept), 8]
    assert points[0]["start"] == start, "moved is counted from the first weights"


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"step": 0}\n', b'{"step": 0, "start": [1.0]}\n', b"[0]\n"]
)
def test_a_path_without_its_start_begins_anew(content: bytes, tmp_path: Path) -> None:
    (file := tmp_path / "path.jsonl").write_bytes(content)
    assert weight_path._read(file, 9) == [] == weight_path._read(tmp_path / "none", 9)


# ---- the command ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "typed",
    [
        ["--hub_token", "hf_secret"],
        ["--hub-token", "hf_secret"],
        ["--hub-token=hf_secret"],
        ["--training.hub_token", "hf_secret"],
        ["--training.hub-token=hf_secret"],
        ["--training", "{max_steps: 2, hub_token: hf_secret}"],
        ["--training=hub_token: 'hf_secret'"],
        ["--training", '{"hub_token": "hf_secret", "max_steps": 2}'],
        ["--api-key", "hf_secret"],  # of somebody's own script
        ["hub_token=hf_secret"],
    ],
)
def test_no_secret_of_the_command_is_written(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["unigame", "train", "my.yaml", *typed, "--loss_reduction", "token", "--beta=0.5"]
    monkeypatch.setattr("sys.argv", words)
    write_about(make_config(tmp_path, hub_token="hf_secret"), 1, [])
    text = (tmp_path / "about.json").read_text()
    assert "hf_secret" not in text
    command = json.loads(text)["command"]
    assert command.startswith("unigame train my.yaml ") and "..." in command
    assert command.endswith(" --loss_reduction token --beta=0.5")


# ---- figures -------------------------------------------------------------------------------------
class Operations(TorchDispatchMode):
    """Counts operations on a device, and those of them that take something there from the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.there, self.copies = device, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        where = [leaf.device for leaf in tree_leaves((args, made)) if isinstance(leaf, Tensor)]
        self.there += self.device in where
        self.copies += {self.device, torch.device("cpu")} <= set(where)
        return made


def test_numbers_of_the_host_wait_there_until_they_are_logged() -> None:
    device = torch.device("meta")  # holds nothing, and is another device than the numbers are on
    meter, loss_B = Meter(device), torch.zeros(3, device=device)
    with Operations(device) as seen:
        for _ in range(3):
            meter.add("seconds_read", 1.5, 2)
            meter.add("unused_rows", torch.tensor(True))
    assert seen.there == 0
    with Operations(device) as seen:
        for _ in range(3):
            meter.add("clean_ce", loss_B.sum(), 4.0)
            meter.add_mean("clean_answer_ce", loss_B)
    assert seen.there > 0 and seen.copies == 0
    reduced: list[Tensor] = []

    def reduce(pairs: Tensor) -> Tensor:
        reduced.append(pairs)
        return torch.ones(pairs.shape)

    with Operations(device) as seen:
        assert set(meter.flush(reduce)) == set(meter.names)
    assert seen.copies <= 1  # a tensor that is made there from a list is no operation here
    assert [(one.device, one.dtype) for one in reduced] == [(device, torch.float64)]


def test_sums_are_those_of_adding_one_after_another() -> None:
    meter, expected = Meter(torch.device("cpu")), dict[str, Tensor]()
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        dtype = (torch.float32, torch.float64)[number % 2]
        value = torch.rand((), generator=generator, dtype=dtype)
        total = (value, float(value) * 1e9, torch.tensor(number))[number % 3]
        count = (1.0, 3, torch.tensor(0.1))[number % 3]
        name = ("clean_ce", "seconds_read")[number % 5 == 0]
        meter.add(name, total, count)
        pair = torch.stack([torch.as_tensor(one, dtype=torch.float64) for one in (total, count)])
        expected[name] = expected[name] + pair if name in expected else pair
    seen: list[Tensor] = []
    meter.flush(lambda pairs: seen.append(pairs) or pairs)
    for name, pair in expected.items():
        assert torch.equal(seen[0][meter.names.index(name)], pair)
    assert not meter.flush(lambda pairs: pairs)


# ---- memory --------------------------------------------------------------------------------------
class Allocator:
    """Stands in for torch.cuda: a mark that is set back, and what is alive."""

    def __init__(self) -> None:
        self.mark, self.resets = 0, 0

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        self.mark, self.resets = 0, self.resets + 1

    def max_memory_allocated(self, device: Any = None) -> int:
        return self.mark


def test_phases_have_peaks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Allocator()
    monkeypatch.setattr(metrics.torch, "cuda", fake)
    timer, meter = PhaseTimer(torch.device("cpu")), Meter(torch.device("cpu"))
    timer.memory.device = torch.device("cuda")
    timer.memory.on = True
    for number in range(timer.memory.EVERY + 1):
        for name, peak in (("read", 2), ("understand", 5)):
            with timer.phase(name):
                fake.mark = max(fake.mark, (peak + (number > 0)) * 2**20)
                with timer.phase("encode"):
                    pass
    assert fake.resets >= 4  # the first and the 21st of each
    timer.flush(meter)
    figures = meter.flush(lambda values: values)
    assert figures["memory_read"] == 2.5 and figures["memory_understand"] == 5.5
    assert "seconds_read" in figures


def test_memory_is_left_alone_outside_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Allocator()
    monkeypatch.setattr(metrics.torch, "cuda", fake)
    timer = PhaseTimer(torch.device("cpu"))
    timer.memory.device = torch.device("cuda")
    with timer.phase("read"):
        pass
    assert fake.resets == 0
