"""The game on 4-bit bases of every family, and resuming only on the base that it was played on."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from tests.backbones.conftest import FAMILIES
from tests.training.helpers import LORA, Records, make_config, make_game
from unigame.backbones import load_backbone
from unigame.doctor.trial import _step as take_step
from unigame.errors import UserError
from unigame.training.identity import differences, run_record
from unigame.training.recipe import load_recipe
from unigame.training.run import main
from unigame.training.trainer import UniGameTrainer

pytest.importorskip("bitsandbytes", reason='needs pip install "unigame[quantization]"')


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_game_is_played_on_a_packed_base(family: str, tmp_path: Path) -> None:
    kind = "int8" if family == "janus" else "nf4"
    game = make_game(buffer_min_size=1, similarity="none")
    trainer = UniGameTrainer(
        load_backbone(FAMILIES[family](), device="cpu", quantization=kind),
        make_config(tmp_path, per_device_train_batch_size=2),
        peft_config=peft.LoraConfig(**LORA),
        methods=[game],
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    weights = dict(trainer.backbone.named_parameters())
    players = {**weights, **{f"C.{n}": w for n, w in game.perturber.named_parameters()}}
    before = {name: weight.detach().clone() for name, weight in players.items()}
    records = Records(2)
    for _ in range(2):  # the second step learns from the first one's hard samples
        take_step(trainer, trainer.data_collator([records[0], records[1]]))
    moved = {name for name, weight in players.items() if not torch.equal(weight, before[name])}
    assert {name[:2] for name in moved} == {"C.", "mo"}
    assert all("lora_" in name or name.startswith("C.") for name in moved)
    assert {players[name].dtype for name in moved} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in players.values())


def test_a_recipe_says_it_and_is_not_resumed_with_another(
    tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", str(tiny_path), "--output_dir", str(tmp_path / "run"), "--methods", "sft"]
    words += ["--max_steps", "1", "--per_device_train_batch_size", "2", "--eval_strategy", "no"]
    words += ["--use_cpu", "--save_steps", "1", "--data.0.size", "8", "--disable_tqdm", "true"]
    words += ["--coverage_points", "0", "--quantization"]
    main("janus_nano", [*words, "nf4"])
    # In Python there is no recipe, and the model itself says it.
    checkpoint, args = tmp_path / "run" / "checkpoint-1", make_config(tmp_path)
    for kind in ("nf4", "int8", "none"):
        backbone = load_backbone(tiny_path, device="cpu", quantization=kind)
        found = differences(checkpoint, args, {"model": run_record(backbone, None)["model"]})
        said = f"model.quantization: nf4 there, {kind} here"
        assert (said in found) == (kind != "nf4")
    monkeypatch.setattr("unigame.backbones.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    more = ["--max_steps", "2", "--resume_from_checkpoint", "true"]
    with pytest.raises(UserError, match="quantization: nf4 there, int8 here"):
        main("janus_nano", [*words, "int8", *more])
    with pytest.raises(UserError, match="quantization.*'fp4'"):
        load_recipe("janus_nano", ["--quantization", "fp4"])
