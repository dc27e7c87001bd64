"""A run that learns nothing, or replays nothing, is refused, warned of or said: never silent."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import IterableDataset

import unigame.backbones
from tests.tiny import shared_tiny_janus
from tests.tiny_bagel import shared_tiny_bagel
from tests.training.helpers import (
    LORA,
    Records,
    blocks,
    game_of,
    make_config,
    make_game,
    make_trainer,
)
from unigame.backbones.base import Backbone
from unigame.data import build_dataset
from unigame.data.kinds import kinds_of
from unigame.errors import UserError
from unigame.methods.registry import as_methods
from unigame.methods.selfplay.health import ReplayTally, offered_at_most
from unigame.methods.sft import SFT
from unigame.system import say
from unigame.training import run
from unigame.training.config import UniGameConfig
from unigame.training.health import require_work


def only_captions(size: int = 6) -> Records:
    data = Records(size, captions=True)
    for item in data.items:
        item["question"] = item["answer"] = None
    return data


def table(folder: Path, data: Records, name: str = "rows") -> dict[str, Any]:
    """The records as files, and the source that names them."""
    rows = []
    for item in data.items:
        item["image"].save(folder / f"{name}{item['id']}.png")
        rows.append({**item, "image": f"{name}{item['id']}.png"})
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"type": "vqa" if data.items[0]["answer"] else "captions", "path": str(path)}


def recipe(folder: Path, model: Path, data: Records, **settings: Any) -> Path:
    chosen = {
        "max_steps": 2,
        "use_cpu": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 2,
        "disable_tqdm": True,
        "output_dir": str(folder / "run"),
        "clip_floor": -1.0,
        **settings,
    }
    path = folder / "recipe.yaml"
    tree = {"model": str(model), "data": [table(folder, data)], **blocks(chosen)}
    path.write_text(yaml.safe_dump({**tree, "lora": {"r": 2}}))
    return path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(unigame.backbones, "load_backbone", load)


# ---- refused before a weight is loaded -----------------------------------------------------------
def test_a_connector_alone_wants_something_that_is_drawn(tmp_path: Path) -> None:
    args = make_config(tmp_path, train_parts=["connector"], generation_weight=0.0)
    rows = Records(4, captions=True)
    with pytest.raises(UserError, match="learns from drawing alone"):
        require_work(args, rows, as_methods(["sft"]))
    for method in ("verify", "reca"):
        require_work(args, rows, as_methods([method]))


@pytest.mark.parametrize("methods", [["sft"], ["selfplay"]])
def test_captions_without_a_weight_are_refused(
    tmp_path: Path, no_weights: None, methods: list[str]
) -> None:
    path = recipe(tmp_path, shared_tiny_janus(), only_captions(), methods=methods)
    with pytest.raises(UserError, match="generation_weight=0 .* 6 rows"):
        run.main(path)
    mixed = [table(tmp_path, only_captions(3), "a"), table(tmp_path, only_captions(2), "b")]
    with pytest.raises(UserError, match="generation_weight=0 .* 5 rows"):
        require_work(make_config(tmp_path), build_dataset(mixed), as_methods(methods))
    with pytest.raises(UserError, match="generation_weight=0"):
        require_work(make_config(tmp_path), only_captions(), as_methods(methods))


def test_a_game_on_captions_alone_is_refused(tmp_path: Path, no_weights: None) -> None:
    path = recipe(tmp_path, shared_tiny_janus(), only_captions(), generation_weight=1.0)
    with pytest.raises(UserError, match="selfplay"):
        run.main(path)
    require_work(make_config(tmp_path, generation_weight=1.0), only_captions(), [SFT()])


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (20, {"buffer_min_size": 64, "buffer_per_source": 2, "buffer_capacity": 400}),
        (5, {"buffer_per_source": 1, "hard_batch_size": 6}),  # the default of buffer_min_size
    ],
)
def test_a_buffer_that_can_never_be_full_enough_is_refused(
    tmp_path: Path, no_weights: None, rows: int, settings: dict[str, Any]
) -> None:
    path = recipe(tmp_path, shared_tiny_janus(), Records(rows), **settings)
    with pytest.raises(UserError, match=rf"{rows} rows .*buffer_min_size=(64|6)"):
        run.main(path)
    data = Records(rows)
    for item in data.items:  # rows that train, but are never challenged
        data.items = [*data.items, {**item, "question": None, "answer": None, "caption": "a cat"}]
    config = make_config(tmp_path, generation_weight=1.0, **settings)
    with pytest.raises(UserError, match="buffer_per_source"):
        require_work(config, data, [make_game(**settings)])
    twice = [table(tmp_path, Records(rows), "c"), {"type": "synthetic", "size": 60}]
    require_work(
        config, build_dataset(twice), [make_game(**settings)]
    )  # another source brings enough


def test_what_can_be_filled_is_not_refused(tmp_path: Path) -> None:
    settings = {"buffer_min_size": 8, "buffer_per_source": 2}
    config, game = make_config(tmp_path), make_game(**settings)
    require_work(config, Records(4), [game])
    with pytest.raises(UserError, match="buffer_min_size=8"):
        require_work(config, Records(3), [game])
    for off in ({"buffer": False}, {"buffer_per_source": None}):
        require_work(config, Records(3), [make_game(**{**settings, **off})])
    require_work(config, Records(3), [SFT()])
    nameless = Records(3)
    for item in nameless.items:
        item["id"] = ""  # nobody's, so it is not capped
    require_work(config, nameless, [game])


def test_no_picture_is_read_to_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [table(tmp_path, Records(4), "a"), table(tmp_path, only_captions(3), "b")]
    data = build_dataset([*sources, {"type": "synthetic", "size": 5}])
    monkeypatch.setattr("unigame.data.pictures.decode_image", lambda _: pytest.fail("read"))
    monkeypatch.setattr("unigame.synthetic.dataset.to_pil", lambda _: pytest.fail("drawn"))
    kinds = kinds_of(data, enough=100)
    assert kinds is not None
    assert (kinds.rows, kinds.answered, kinds.captioned, kinds.whole) == (12, 9, 8, True)


class Stream(IterableDataset[dict[str, Any]]):
    def __init__(self, records: Records, empty: bool = False) -> None:
        self.records = records
        self.empty = empty

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.empty:
            yield from self.records.items


def test_rows_that_are_dropped_before_the_first_step_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = make_config(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=7)
    with pytest.raises(UserError, match=r"6 rows do not fill a batch of .*size=7; lower it"):
        require_work(few, Records(6), as_methods(["sft"]))
    enough = make_config(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=6)
    require_work(enough, Records(6), as_methods(["sft"]))
    monkeypatch.setattr(UniGameConfig, "world_size", 2)
    with pytest.raises(UserError, match="size=6 on each of 2 processes"):
        require_work(enough, Records(6), as_methods(["sft"]))
    enough.accelerator_config.split_batches = True  # a batch is of both together
    require_work(enough, Records(6), as_methods(["sft"]))
    kept = make_config(tmp_path, per_device_train_batch_size=7)
    require_work(kept, Records(6), as_methods(["sft"]))


def test_a_stream_wants_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_steps=-1 with a stream \(Stream\).*set max_steps"):
        require_work(make_config(tmp_path, max_steps=-1), Stream(Records(6)), as_methods(["sft"]))


def test_a_run_without_a_step_is_no_success(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Stream(Records(6), empty=True))
    with pytest.raises(UserError, match="no step was made"):
        trainer.train()


def test_a_stream_that_teaches_nothing_is_stopped(tiny_path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Stream(only_captions()), max_steps=40)
    with pytest.raises(UserError, match="generation_weight"):
        trainer.train()
    assert 0 < trainer.state.global_step < 20


# ---- warned of once it is plain ------------------------------------------------------------------
def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this module warned of; the checks of texts and of the floor have tests of their own."""
    said = [r for r in caplog.records if r.levelno == logging.WARNING and r.name == say.__name__]
    others = ("of these candidates", "this similarity", "missing_captions=")
    return [r.getMessage() for r in said if not any(word in r.getMessage() for word in others)]


def test_replay_that_does_not_begin_is_warned_of(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"buffer_min_size": 30, "max_steps": 20, "per_device_train_batch_size": 2}
    make_trainer(tiny_path, tmp_path, **settings).train()
    (said,) = warnings_of(caplog)
    assert "2 of 20 steps" in said and "buffer_min_size=30" in said and "holds 4" in said


def test_candidates_that_are_all_refused_are_warned_of(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"clip_floor": 1.0, "max_steps": 18, "similarity": "cosine"}
    trainer = make_trainer(tiny_path, tmp_path, **settings)
    trainer.train()
    assert [said for said in warnings_of(caplog) if "clip_floor=1.0" in said]
    assert len(warnings_of(caplog)) == 2  # after a tenth, and once it is certain
    assert game_of(trainer).tally == ReplayTally(candidates=72)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup_steps": 3}, "warm-up of 3 steps"),
        (
            {"perturber_warmup_steps": 3, "perturber_lr_scheduler_type": "linear"},
            "perturber_warmup_steps=3 is as long",
        ),
        ({"perturber_warmup_steps": 1}, "perturber_warmup_steps=1 acts on nothing"),
        ({"buffer_min_size": 13}, "too short .* 12 candidates at most, and buffer_min_size=13"),
        ({"beta": 0.0}, "beta=0"),
        ({"generation_weight": 0.5}, "generation_weight=0.5 acts on nothing"),
    ],
)
def test_settings_that_do_nothing_in_this_run_are_warned_of(
    tiny_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    named: str,
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, max_steps=3, **settings)
    trainer.callback_handler.on_train_begin(trainer.args, _at(trainer, 3), trainer.control)
    (said,) = warnings_of(caplog)
    assert re.search(named, said), said


@pytest.mark.parametrize(("save_steps", "told"), [(200, True), (199, False)])
def test_a_long_run_without_a_checkpoint_before_its_end_is_warned_of(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, save_steps: int, told: bool
) -> None:
    settings = {"save_strategy": "steps", "save_steps": save_steps, "methods": ["sft"]}
    trainer = make_trainer(tiny_path, tmp_path, max_steps=200, **settings)
    trainer.state.save_steps = save_steps
    trainer.callback_handler.on_train_begin(trainer.args, _at(trainer, 200), trainer.control)
    said = [line for line in warnings_of(caplog) if "no checkpoint is written before" in line]
    assert bool(said) == told
    assert not told or "save_steps=200, and the run has 200 steps; with save_steps=40" in said[0]


@pytest.mark.parametrize(
    ("shared", "told"), [(shared_tiny_bagel, True), (shared_tiny_janus, False)]
)
def test_a_cache_of_codes_says_where_it_keeps_nothing(
    shared: Callable[[], Path], told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(shared(), tmp_path, methods=["sft"], cache_codes=True)
    trainer.callback_handler.on_train_begin(trainer.args, _at(trainer, 3), trainer.control)
    said = [line for line in warnings_of(caplog) if "cache_codes=true keeps nothing" in line]
    assert bool(said) == told


@pytest.mark.parametrize(
    ("shared", "settings", "told"),
    [
        (shared_tiny_bagel, {"methods": ["verify", "reca"]}, "learned by verify and reca goes"),
        (shared_tiny_bagel, {"generation_weight": 1.0}, "learned by generation_weight goes"),
        (shared_tiny_bagel, {"methods": ["sft"]}, ""),
        (shared_tiny_bagel, {"methods": ["selfplay"], "generation_weight": 1.0}, ""),
        (shared_tiny_bagel, {"methods": ["verify"], "all_layers": True}, ""),
        (shared_tiny_janus, {"methods": ["verify"]}, ""),
    ],
)
def test_drawing_that_trains_the_weights_that_answer_is_told(
    shared: Callable[[], Path],
    settings: dict[str, Any],
    told: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"methods": ["sft"], "generation_weight": 0.0} | settings
    if settings.pop("all_layers", False):
        monkeypatch.setitem(LORA, "target_modules", "all-linear")
    trainer = make_trainer(shared(), tmp_path, Records(8, captions=True), **settings)
    trainer.callback_handler.on_train_begin(trainer.args, _at(trainer, 3), trainer.control)
    said = [line for line in warnings_of(caplog) if "draws and does not train" in line]
    assert len(said) == bool(told)
    assert not told or told in said[0]


def test_checkpoints_of_weights_alone_are_told(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 10, "save_only_model": True}
    trainer = make_trainer(tiny_path, tmp_path, max_steps=200, methods=["sft"], **settings)
    trainer.state.save_steps = 10
    trainer.callback_handler.on_train_begin(trainer.args, _at(trainer, 200), trainer.control)
    (said,) = [line for line in warnings_of(caplog) if "save_only_model" in line]
    assert "cannot go on" in said


def test_an_adapter_says_which_lora_settings_are_not_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    run._warn_of_other_lora(str(tmp_path), {"r": 16, "lora_alpha": 32})
    assert not warnings_of(caplog)
    run._warn_of_other_lora(str(tmp_path), {"r": 4, "lora_dropout": 0.5})
    (said,) = warnings_of(caplog)
    assert "r 16, not 4; lora_dropout 0.05, not 0.5" in said


def test_micro_batches_of_u_count_in_fine_tuning_alone(tiny_path: Path, tmp_path: Path) -> None:
    plain = {"methods": ["sft"], "per_device_train_batch_size": 4}
    whole = make_trainer(tiny_path, tmp_path / "a", **plain)
    parts = make_trainer(tiny_path, tmp_path / "b", understanding_micro_batch=1, **plain)
    assert (whole._num_passes(), parts._num_passes()) == (1, 4)
    asked: list[str] = []
    original = parts.backbone.forward

    def counted(*args: Any, **given: Any) -> Any:
        asked.append(given["loss"])
        return original(*args, **given)

    parts.backbone.forward = counted  # type: ignore[method-assign]
    parts.args.max_steps = whole.args.max_steps = 1
    whole.train()
    parts.train()
    assert asked == ["answer"] * 4  # one step, row by row
    mine = dict(whole.backbone.named_parameters())
    for name, weight in parts.backbone.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight, mine[name], rtol=1e-3, atol=1e-5)


def _at(trainer: Any, steps: int) -> Any:
    trainer.state.max_steps, trainer.state.is_world_process_zero = steps, True
    return trainer.state


def test_a_backbone_that_tells_no_tokens_apart_is_warned_of(
    tiny_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = type(make_trainer(tiny_path, tmp_path).backbone)
    assert not warnings_of(caplog)
    monkeypatch.setattr(kind, "answer_token_losses", Backbone.answer_token_losses)
    make_trainer(tiny_path, tmp_path)
    (said,) = warnings_of(caplog)
    assert "answer_token_losses" in said and "'janus'" in said


def test_a_game_that_works_is_not_warned_of(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tiny_path, tmp_path, max_steps=3, warmup_steps=1).train()
    assert not warnings_of(caplog)


def test_what_a_run_can_offer_at_most(tmp_path: Path) -> None:
    settings = {"challenge_every": 2, "mine_every": 2, "challenge_share": 0.5, "num_candidates": 3}
    config = make_config(tmp_path, gradient_accumulation_steps=2, **settings)
    # of 5 steps 0, 2, 4 are challenged, of these 0 and 4 mined; 2 micro-batches of 2 samples
    assert offered_at_most(make_game(**settings).settings, config, 5) == 2 * 2 * 2 * 3


# ---- said at the end -----------------------------------------------------------------------------
def test_the_closing_lines_say_what_was_replayed(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tiny_path, Records(4), hard_quantile=0.0)
    run.main(path)
    assert "learned from 2 hard samples" in " ".join(capsys.readouterr().out.split())
    run.main(path, ["--buffer_min_size", "40", "--output_dir", str(tmp_path / "b")])
    said = " ".join(capsys.readouterr().out.split())
    assert "Replay never happened" in said and "buffer_min_size=40" in said
    run.main(path, ["--methods", "sft", "--output_dir", str(tmp_path / "c")])
    assert "Replay" not in capsys.readouterr().out


def test_rows_that_train_nothing_are_counted(tiny_path: Path, tmp_path: Path) -> None:
    data = only_captions(4)
    data.items[0] = Records(1).items[0]
    for weight, unused in ((0.0, 3.0), (1.0, 0.0)):
        settings = {"generation_weight": weight, "methods": ["sft"], "max_steps": 1}
        trainer = make_trainer(tiny_path, tmp_path, data, **settings)
        trainer.train()
        assert trainer.state.log_history[0]["unused_rows"] == unused
