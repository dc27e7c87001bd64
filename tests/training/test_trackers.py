"""The game's pictures reach the trackers that take pictures; a missing tracker is named."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from tests.imports import PACKAGE
from tests.tiny import shared_tiny_janus
from tests.training.helpers import Losses, Records, make_config, make_trainer
from unigame.errors import UserError
from unigame.methods.base import Shown
from unigame.training import trackers
from unigame.training.settings import TRACKERS
from unigame.training.trainer import UniGameTrainer

GAME = {"keep_examples": 2, "num_candidates": 1, "examples_every": 1}


class Writer:
    """TensorBoard's SummaryWriter, as far as transformers and we use it."""

    def __init__(self, log_dir: str | None = None) -> None:
        self.images: list[tuple[str, Any, int]] = []
        self.closed = False

    def add_image(self, tag: str, image: Any, step: int, dataformats: str = "CHW") -> None:
        assert not self.closed and dataformats == "HWC" and image.dtype == np.uint8
        self.images.append((tag, image.shape, step))

    def add_text(self, *args: Any) -> None: ...

    def add_scalar(self, *args: Any) -> None: ...

    def add_hparams(self, *args: Any, **kwargs: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two steps of the game with a TensorBoard callback, and the same without any gallery."""
    writer, folder = Writer(), tmp_path_factory.mktemp("trackers")
    callback = integration_utils.TensorBoardCallback.__new__(integration_utils.TensorBoardCallback)
    callback.tb_writer, callback._SummaryWriter, callback.logging_dir = writer, None, str(folder)
    data = Records(4, captions=True)
    with_it = make_trainer(shared_tiny_janus(), folder / "a", data, **GAME)
    with_it.add_callback(callback)
    with_it.train()
    settings = {**GAME, "keep_examples": 0}
    without = make_trainer(shared_tiny_janus(), folder / "b", data, **settings)
    without.train()
    return SimpleNamespace(writer=writer, trainer=with_it, without=without, folder=folder / "a")


def test_pictures_are_logged_at_the_steps_where_they_are_made(played: Any) -> None:
    assert [(tag, step) for tag, _, step in played.writer.images] == [
        (f"examples/{number:02}", step) for step in (1, 2) for number in (0, 1)
    ]
    height, width, channels = played.writer.images[0][1]
    assert channels == 3 and width > 3 * height >= 3 * trackers.SMALLEST
    assert played.writer.closed  # after the last pictures, which need it open
    assert (played.folder / "examples" / "examples.json").is_file()


def test_a_gallery_changes_nothing_that_is_learned(played: Any) -> None:
    ours, plain = (Losses(t.state.log_history).values for t in (played.trainer, played.without))
    assert ours == plain and len(ours) == 2


def shown() -> list[Shown]:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return [Shown(pictures, "what? (true answer: a) clean: a"), Shown(pictures, "second")]


def test_wandb_gets_one_list_of_captioned_pictures() -> None:
    """Fake of wandb.Image(data, caption=) and wandb.log(dict), as the library documents them."""
    logged: list[dict[str, Any]] = []
    wandb = SimpleNamespace(
        run=object(), log=logged.append, Image=lambda data, caption: (data.size, caption)
    )
    callback = integration_utils.WandbCallback.__new__(integration_utils.WandbCallback)
    callback._wandb = wandb
    gallery = trackers.GalleryCallback(lambda: [TrainerCallback(), callback])
    gallery.show(7, shown())
    (content,) = logged
    assert content["train/global_step"] == 7
    assert [caption for _, caption in content["examples"]] == [one.caption for one in shown()]
    wandb.run = None  # a rank that has no run
    gallery.show(8, shown())
    assert len(logged) == 1


def test_trackio_gets_a_picture_under_each_name(caplog: pytest.LogCaptureFixture) -> None:
    """Fake of trackio.Image(value, caption=) and trackio.log(dict): it takes no list of images."""
    logged: list[dict[str, Any]] = []
    callback = integration_utils.TrackioCallback.__new__(integration_utils.TrackioCallback)
    callback._trackio = SimpleNamespace(log=logged.append, Image=lambda value, caption: caption)
    gallery = trackers.GalleryCallback(lambda: [callback])
    gallery.show(7, shown())
    assert logged == [
        {"examples/00": shown()[0].caption, "examples/01": "second", "train/global_step": 7}
    ]

    def fail(content: Any) -> None:
        raise ConnectionError("no network")

    callback._trackio.log = fail  # costs the run nothing
    gallery.show(8, shown())
    assert "step 8" in caplog.text and "no network" in caplog.text


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_for_real(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    callback = integration_utils.TensorBoardCallback(SummaryWriter(str(tmp_path)))
    trackers.GalleryCallback(lambda: [callback]).show(3, shown())
    callback.tb_writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["examples/00", "examples/01"]
    (image,) = events.Images("examples/00")
    assert image.step == 3 and (image.width, image.height) == (3 * 128 + 2 * trackers.GAP, 128)


@pytest.mark.parametrize("name", sorted(set(TRACKERS) - {"none", "all"}))
def test_a_missing_tracker_is_named_before_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: [])
    monkeypatch.setattr(trackers, "_has", lambda package: False)
    args = make_config(tmp_path, report_to=[name])
    with pytest.raises(UserError, match=re.escape(f"report_to={name!r}")) as found:
        UniGameTrainer("no/such-model", args, Records(2))
    assert (f"unigame[{name}]" in str(found.value)) == (name in trackers.EXTRAS)


def test_each_extra_exists() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert set(trackers.EXTRAS) <= set(project["optional-dependencies"])
    assert set(trackers.EXTRAS) < set(TRACKERS)
