"""One of the package's own models as a judge: the bundled one, on its own world."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import shared_tiny_janus
from unigame.errors import UserError
from unigame.evaluation.scorers.judge_backbone import BackboneJudge
from unigame.evaluation.scorers.judges import JudgeRequest, JudgeUnavailable, Rubric, parse_judge
from unigame.synthetic.dataset import to_pil
from unigame.synthetic.world import Scene, Thing

BARE = Rubric("{prompt}")


def test_its_answers_are_those_of_the_model_together_and_alone(tmp_path: Path) -> None:
    to_pil(Scene((Thing(0, "red", "disc"), Thing(8, "cyan", "cross")))).save(tmp_path / "two.png")
    to_pil(Scene((Thing(4, "green", "disc"),))).save(tmp_path / "one.png")
    judge = parse_judge("unigame:janus-nano")
    assert isinstance(judge, BackboneJudge)
    judge.check()
    requests = [
        JudgeRequest("", "is there a red disc?", "", tmp_path / "two.png"),
        JudgeRequest("", "is there a red disc?", "", tmp_path / "one.png"),
        JudgeRequest("", "is there a green disc?", "", tmp_path / "one.png"),
    ]
    assert judge.replies(requests, BARE) == ["yes", "no", "yes"]
    alone = [judge.reply(each.prompt, "", each.picture, BARE) for each in requests[:2]]
    assert alone == ["yes", "no"]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(JudgeUnavailable, match="unreadable") as caught:
        judge.reply("is there a red disc?", "", tmp_path / "broken.png", BARE)
    assert not caught.value.retryable


def test_other_weights_at_the_same_path_are_another_judge(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(shared_tiny_janus(), folder)
    first = BackboneJudge(str(folder)).name
    assert first.startswith("unigame:merged@") and BackboneJudge(str(folder)).name == first
    shutil.copytree(folder, tmp_path / "elsewhere" / "merged")
    assert BackboneJudge(str(tmp_path / "elsewhere" / "merged")).name == first
    stir_weights(folder)
    assert BackboneJudge(str(folder)).name != first


def test_a_judge_of_the_hub_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(commit: str) -> str:
        file = tmp_path / "snapshots" / commit / "config.json"
        file.parent.mkdir(parents=True)
        shutil.copy(shared_tiny_janus() / "config.json", file)
        monkeypatch.setattr("unigame.backbones.folder.fetch_config", lambda hub_id: file)
        return BackboneJudge("me/model").name

    assert fetched("0123456789abcdef") == "unigame:me/model@0123456789ab"
    assert fetched("fedcba9876543210") == "unigame:me/model@fedcba987654"


def stir_weights(folder: Path) -> None:
    """Other weights of the same size."""
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_what_is_no_model_is_found_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no judge 'unigame:'"):
        parse_judge("unigame:")
    with pytest.raises(UserError, match="absent"):
        parse_judge(f"unigame:{tmp_path / 'absent'}")
    Image.new("RGB", (2, 2)).save(tmp_path / "picture.png")
    with pytest.raises(UserError, match="config.json"):
        BackboneJudge(str(tmp_path)).check()
