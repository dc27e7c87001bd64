"""Fault 10: lost state, steps past the end, pickled models, empty adapters, hanging ranks."""

from __future__ import annotations

import pickletools
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_tiny_janus
from tests.training.helpers import Records, make_trainer
from unigame.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_janus(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(tiny, folder, max_steps=2, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint-2"))


def test_resuming_never_trains_past_the_asked_steps(
    tiny: Path, saved: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny, tmp_path, max_steps=3)
    trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.state.global_step == 3
    with pytest.raises(UserError, match="already has 2 of 2 steps"):
        make_trainer(tiny, tmp_path, max_steps=2).train(resume_from_checkpoint=str(saved))
    with pytest.raises(UserError, match="already has 2 of 2 steps"):
        # two batches an epoch: one epoch is over, too
        make_trainer(tiny, tmp_path, max_steps=-1, num_train_epochs=1).train(
            resume_from_checkpoint=str(saved)
        )


NEEDED = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "perturber.safetensors",
    "selfplay_state.pt",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


def test_an_incomplete_checkpoint_is_refused(tiny: Path, copy: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny, tmp_path, max_steps=3)
    before = {n: p.clone() for n, p in trainer.backbone.named_parameters()}
    for name in NEEDED:
        content = (copy / name).read_bytes()
        for damage in ("is missing", "is empty"):
            (copy / name).unlink(missing_ok=True)
            if damage == "is empty":
                (copy / name).touch()
            with pytest.raises(UserError, match=f"{name} {damage}"):
                trainer.train(resume_from_checkpoint=str(copy))
        (copy / name).write_bytes(content)
    assert trainer.state.global_step == 0
    assert all(torch.equal(before[n], p) for n, p in trainer.backbone.named_parameters())
    trainer.train(resume_from_checkpoint=str(copy))  # whole again
    assert trainer.state.global_step == 3


def test_an_adapter_without_weights_is_refused(tiny: Path, copy: Path, tmp_path: Path) -> None:
    save_file({}, copy / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no weights"):
        make_trainer(tiny, tmp_path, max_steps=3).train(resume_from_checkpoint=str(copy))


def test_a_game_state_of_nothing_is_refused(tiny: Path, copy: Path, tmp_path: Path) -> None:
    torch.save({}, copy / "selfplay_state.pt")
    with pytest.raises(UserError, match="not a method's state"):
        make_trainer(tiny, tmp_path, max_steps=3).train(resume_from_checkpoint=str(copy))


def test_another_perturber_is_refused(tiny: Path, copy: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny, tmp_path, max_steps=3, perturber_width=8)
    with pytest.raises(UserError, match="perturber.safetensors holds other"):
        trainer.train(resume_from_checkpoint=str(copy))


def test_code_in_a_checkpoint_is_never_run(tiny: Path, copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (witness,))

    torch.save({"version": 2, "buffer": Evil()}, copy / "selfplay_state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        make_trainer(tiny, tmp_path, max_steps=3).train(resume_from_checkpoint=str(copy))
    assert not witness.exists()


def test_a_checkpoint_holds_no_pickled_model(tiny: Path, saved: Path) -> None:
    """Only known files, all readable without executing code, and no frozen weight in any."""
    num_frozen = sum(value.numel() for value in load_file(tiny / "model.safetensors").values())
    assert "training_args.bin" not in {path.name for path in saved.iterdir()}
    for path in saved.iterdir():
        if path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as archive:
                (data,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
                globals_used = {
                    str(argument)
                    for opcode, argument, _ in pickletools.genops(archive.read(data))
                    if opcode.name == "GLOBAL"
                }
            assert not any("transformers" in name or "unigame" in name for name in globals_used)
    adapter = load_file(saved / "adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter)
    size = sum(path.stat().st_size for path in saved.iterdir() if path.suffix == ".safetensors")
    assert size < 4 * num_frozen / 2


def test_a_run_resumed_as_another_game_is_refused(tiny: Path, tmp_path: Path) -> None:
    make_trainer(
        tiny, tmp_path, max_steps=1, methods=["sft"], save_strategy="steps", save_steps=1
    ).train()
    with pytest.raises(UserError, match="other methods"):
        make_trainer(tiny, tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_ranks_run_equal_forwards_whatever_their_batch_holds(tiny: Path, tmp_path: Path) -> None:
    """A batch without answers, one without captions: same passes through the wrapped model."""
    data = Records(2, captions=True)
    data.items[0]["question"] = data.items[0]["answer"] = None
    data.items[1]["caption"] = None
    trainer = make_trainer(tiny, tmp_path, data, generation_weight=1.0)
    seen = []
    for index in range(2):
        calls: list[str] = []

        def model(loss: str, calls: list[str] = calls, **inputs: object) -> torch.Tensor:
            calls.append(loss)
            return trainer.backbone(loss, **inputs)

        model.training = True  # type: ignore[attr-defined]
        inputs = trainer.data_collator([data[index]])
        loss = trainer.compute_loss(model, inputs)  # type: ignore[arg-type]
        assert loss.requires_grad  # so that every rank also takes part in the backward pass
        seen.append(calls)
    assert seen[0] == seen[1] == ["answer", "generation"]
