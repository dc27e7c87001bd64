"""What `unigame push` writes, sends and refuses; the Hub is a recorder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import JanusForConditionalGeneration

from tests.reports import record_files
from tests.tiny import make_tiny_janus, shared_tiny_janus
from tests.training.helpers import Records, make_trainer
from unigame.backbones import load_backbone
from unigame.backbones.common.adapter_files import Base, read_base, write_base
from unigame.cli import main
from unigame.errors import UserError
from unigame.publish import push as pushing
from unigame.publish.card import Wishes, write_card
from unigame.publish.merged_base import require_its_base
from unigame.publish.public import public, public_command, public_value
from unigame.publish.push import push
from unigame.publish.trained import Trained
from unigame.reports.weights import folder_sha256

ID, BASE = "me/mine", "someone/tiny-janus"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step, with an evaluation of its adapter and one of another's."""
    folder = tmp_path_factory.mktemp("push") / "run"
    trainer = make_trainer(
        shared_tiny_janus(), folder, Records(), methods=["sft"], max_steps=1, learning_rate=0.1
    )
    data = [{"type": "vqa", "path": str(folder / "secret" / "cats.json")}]
    trainer.recipe = {"model": str(shared_tiny_janus()), "data": data, "dtype": "float32"}
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    for name, adapter, right in (("own", folder_sha256(folder), 0.8), ("other", "bb", 0.9)):
        found, summary = record_files.four(right)
        record_files.write(
            folder, name, record_files.record(found, adapter=adapter, summary=summary)
        )
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A Hub that takes everything; what it was asked, in order."""
    calls: list[tuple[str, Any]] = []

    class Url(str):
        repo_id = ID

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def whoami(self) -> dict[str, str]:
            return {"name": "me"}

        def create_repo(self, name: str, **settings: Any) -> str:
            calls.append(("create_repo", {"name": name, **settings}))
            return Url(f"https://huggingface.co/{name}")

        def upload_folder(self, *, folder_path: str, **settings: Any) -> None:
            files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
            calls.append(("upload_folder", {"files": files, **settings}))

    monkeypatch.setattr(pushing, "HfApi", Api)
    monkeypatch.setattr(pushing.huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(pushing.constants, "HF_HUB_OFFLINE", False)
    return calls


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def test_a_dry_run_writes_what_is_sent(run: Path, tmp_path: Path, hub: list[Any]) -> None:
    out = tmp_path / "out"
    done = push(run, ID, base=BASE, dry_run=out)
    assert hub == []
    assert {name for name, _ in done.files} == FILES == {file.name for file in out.iterdir()}
    assert dict(done.files)["adapter_model.safetensors"] == (
        (out / "adapter_model.safetensors").stat().st_size
    )
    assert push(run, ID, base=BASE, private=True).url == f"https://huggingface.co/{ID}"
    names = [name for name, _ in hub]
    assert names == ["token", "create_repo", "upload_folder"]
    assert hub[1][1]["private"] is True and hub[1][1]["name"] == hub[2][1]["repo_id"] == ID
    assert hub[2][1]["files"] == {name: (out / name).read_bytes() for name in FILES}


def test_the_adapter_loads_in_plain_peft(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    push(run, ID, base=BASE, dry_run=out)
    assert read_base(out)._replace(digest="") == (BASE, "", "", "none")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    plain = JanusForConditionalGeneration.from_pretrained(shared_tiny_janus()).eval()
    before = logits(plain)
    loaded = peft.PeftModel.from_pretrained(plain, str(out)).eval()
    ours: Any = load_backbone(shared_tiny_janus(), device="cpu", adapter=run)
    assert torch.equal(logits(loaded), logits(ours.model))
    assert not torch.allclose(before, logits(loaded), atol=1e-4)


def test_the_card(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found, summary = record_files.four(0.5)
    base = record_files.record(found, model="tiny-base", summary=summary)
    record_files.write(tmp_path, "base", base)
    done = push(run, ID, base=BASE, dry_run=out, evaluations=[tmp_path / "base"])
    assert done.passed_over == (str(run / "other" / "results.json"),)
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == BASE and card.data.library_name == "peft"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.license is None and "unknown" in card.text.split("## Licence")[1]
    row = next(line for line in card.text.splitlines() if line.startswith("| this model |"))
    assert row.count("[") == 2 * row.count("<br>") == 10  # figure and difference, with intervals
    assert "JanusForConditionalGeneration" in card.text and "PeftModel.from_pretrained" in card.text
    for text in (
        "cats.json",
        "8 rows",
        "sft",
        "someone/tiny-janus",
        "Versions: python",
        "org/pope",
    ):
        assert text in card.text, text
    for file in out.iterdir():  # nothing of this machine
        assert str(run.parent).encode() not in file.read_bytes(), file
        assert str(shared_tiny_janus()).encode() not in file.read_bytes(), file


def test_a_merged_model_is_plain(run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = ["push", str(run), ID, "--merged", "--dry-run", str(out), "--license", "mit"]
    assert main(["push", str(run), ID, "--dry-run", str(out), "--device", "cpu"]) == 2
    assert "--device cpu: only --merged" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--device", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "README.md" in said and f"sent to {ID}" in said
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and card.data.license == "mit"
    assert "JanusForConditionalGeneration.from_pretrained('me/mine')" in card.text
    plain = JanusForConditionalGeneration.from_pretrained(out).eval()
    ours: Any = load_backbone(shared_tiny_janus(), device="cpu", adapter=run)
    assert torch.allclose(logits(plain), logits(ours.model), atol=1e-4)
    assert not list(out.rglob("adapter*"))
    for file in out.iterdir():
        assert str(shared_tiny_janus()).encode() not in file.read_bytes(), file


def test_an_architecture_that_transformers_lacks(run: Path, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run")
    config = json.loads((own / "adapter_config.json").read_text())
    config["auto_mapping"]["parent_library"] = "unigame.backbones.bagel.modeling"
    (own / "adapter_config.json").write_text(json.dumps(config))
    push(own, ID, base=BASE, dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "load_backbone('someone/tiny-janus', dtype='auto')" in text and "JanusForCond" not in text
    )
    assert "Nothing of unigame is needed" not in text


def copied(run: Path, folder: Path, *left_out: str) -> Path:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*left_out))
    return folder


@pytest.mark.parametrize("name", ["mine", "me/", "a/b/c", "me/a b", "me/a..b", "me/mine.git"])
def test_an_id_that_is_none(run: Path, hub: list[Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        push(run, name, base=BASE)
    assert hub == []


def test_what_is_refused_before_the_hub_is_asked(
    run: Path, tmp_path: Path, hub: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = copied(run, tmp_path / "unfinished", "adapter*", "trainer_state.json")
    (unfinished / "checkpoint-1").mkdir()
    older = copied(run, tmp_path / "older")
    (older / "checkpoint-5").mkdir()
    nameless = copied(run, tmp_path / "nameless", "trainer_state.json", "about.json")
    pickled = copied(run, tmp_path / "pickled", "adapter_model*")
    (pickled / "adapter_model.bin").touch()
    for folder, word in (
        (tmp_path / "gone", "gone"),
        (tmp_path / "empty", "adapter_model.safetensors"),
        (unfinished, "checkpoint-1"),
        (older, "checkpoint-5"),
        (nameless, "trainer_state.json"),
        (pickled, "adapter_model.bin"),
    ):
        with pytest.raises(UserError, match=word):
            push(folder, ID, base=BASE)
    with pytest.raises(UserError, match="--base"):  # a folder of this machine
        push(run, ID)
    with pytest.raises(UserError, match="no/such/id"):
        push(run, ID, base="no/such/id")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="full"):
        push(run, ID, base=BASE, dry_run=tmp_path / "full")
    monkeypatch.setattr(pushing.huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        push(run, ID, base=BASE)
    monkeypatch.setattr(pushing.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        push(run, ID, base=BASE)
    assert hub == []


def test_a_pickle_never_leaves(
    run: Path, tmp_path: Path, hub: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(trained: Any, folder: Path) -> None:
        (folder / "weights.pt").touch()

    monkeypatch.setattr(pushing, "_write_adapter", write)
    with pytest.raises(UserError, match=r"weights\.pt"):
        push(run, ID, base=BASE)
    with pytest.raises(UserError, match=r"weights\.pt"):
        push(run, ID, base=BASE, dry_run=tmp_path / "out")
    assert "upload_folder" not in dict(hub) and not (tmp_path / "out").exists()


def test_a_hub_that_refuses(run: Path, hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("403\nForbidden")

    for name in ("whoami", "create_repo", "upload_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(pushing.HfApi, name, fail)
            with pytest.raises(UserError, match="403 Forbidden"):
                push(run, ID, base=BASE)


def test_a_checkpoint_can_be_pushed(run: Path, tmp_path: Path) -> None:
    copied(run, tmp_path / "run" / "checkpoint-7", "own", "other")
    done = push(tmp_path / "run" / "checkpoint-7", ID, base=BASE, dry_run=tmp_path / "out")
    assert done.url == "" and "7 steps" in (tmp_path / "out" / "README.md").read_text()


def about(run: Path, **changes: Any) -> None:
    file = run / "about.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- a base that is another ----------------------------------------------------------------------
@pytest.fixture
def moved(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The run, its adapter naming a folder in which another model of equal shapes lies by now."""
    other, own = make_tiny_janus(tmp_path / "other", seed=1), copied(run, tmp_path / "run")
    named = read_base(own)
    write_base(own, named._replace(name=str(other)))
    return own, other


def test_a_wrong_base_is_not_merged(
    moved: tuple[Path, Path], tmp_path: Path, hub: list[Any], capsys: Any
) -> None:
    own, other = moved
    digests = [read_base(own).digest, load_backbone(other, device="cpu").weights_digest()]
    words = ["merge", str(own), str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert all(digest in said for digest in digests) and "--model ITS_BASE" in said
    assert not (tmp_path / "out").exists()
    for dry in (tmp_path / "out", None):
        with pytest.raises(UserError, match=digests[1]):
            push(own, ID, merged=True, base=BASE, dry_run=dry, device="cpu")
    assert not (tmp_path / "out").exists()
    assert not {"create_repo", "upload_folder"} & set(dict(hub)), "no empty repository is left"
    # Its own base, wherever it lies, is taken.
    assert main([*words, "--model", str(shared_tiny_janus())]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_fix_names_the_base_of_an_adapter(run: Path, tmp_path: Path) -> None:
    other = make_tiny_janus(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=f"--model {shared_tiny_janus()}$"):
        require_its_base(run, model=str(other), device="cpu")


def test_the_card_states_the_digest_of_what_was_merged(run: Path, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run")
    digest = read_base(own).digest
    write_base(own, read_base(own)._replace(digest=""))  # as PEFT alone would have saved it
    push(own, ID, merged=True, base=BASE, dry_run=tmp_path / "out", device="cpu")
    assert f"digest `{digest}`" in (tmp_path / "out" / "README.md").read_text()


# ---- what the card says --------------------------------------------------------------------------
def test_benchmarks_of_several_folders_are_one_model(
    run: Path, tmp_path: Path, capsys: Any
) -> None:
    own = copied(run, tmp_path / "run", "other")
    found, _ = record_files.four(0.8)
    for name, taken in (("own2", ("pope",)), ("own3", ("advqa",))):
        found["advqa"] = record_files.benchmark("advqa", record_files.mean_metric([1.0] * 60))
        content = record_files.record(
            {key: found[key] for key in taken}, adapter=folder_sha256(own)
        )
        record_files.write(own, name, content)
    content["model"]["quantization"] = "nf4"
    record_files.write(own, "own4", content)
    assert main(["push", str(own), ID, "--base", BASE, "--dry-run", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out of the card: POPE of" in said and "other weights" not in said
    text = (tmp_path / "out" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| this model")]
    assert any(line.startswith("| this model | 100.0 [100.0, 100.0]") for line in rows)
    assert any(line.startswith("| this model (nf4) |") for line in rows)


@pytest.mark.parametrize("name", ["connector.safetensors", "model.safetensors"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_run_of_a_whole_model_is_no_unfinished_one(
    name: str, ended: bool, run: Path, tmp_path: Path
) -> None:
    own = copied(run, tmp_path / "warm", "adapter*")
    (own / "checkpoint-1").mkdir()
    (own / "checkpoint-1" / name).touch()
    if ended:
        (own / name).touch()
    with pytest.raises(UserError, match=rf"{name}, weights of a whole model") as caught:
        push(own, ID, base=BASE)
    assert "not finished" not in str(caught.value)


def test_the_card_names_no_folder_of_this_machine(run: Path, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run")
    typed = (
        "unigame train my.yaml --model someone/tiny-janus --data 'wards/ward 7/x|y.json' "
        "--eval_data=wards/held.json --images '/data/ward 7/pictures' --output_dir runs/ward7 "
        "--run_name ward-seven --hub_token hf_a --hub-token=hf_b --hub_model_id me/ward"
    )
    finding = {"symptom": "C dead", "says": "rate is 0", "knob": "raise it"}
    about(own, command=typed, findings=[finding], data=[{"where": "wards/x|y.json", "rows": 8}])
    record = json.loads((own / "run.json").read_text())
    record["recipe"]["data"][0]["path"] = "wards/x|y.json"
    (own / "run.json").write_text(json.dumps(record))
    push(own, ID, base=BASE, dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "unigame train my.yaml --model someone/tiny-janus --data 'x|y.json' --eval_data=held.json "
        "--images pictures --output_dir ward7\n" in text
    )
    assert not any(word in text for word in ("wards", "ward 7", "seven", "hf_a", "hf_b", "me/ward"))
    assert "`x\\|y.json`" in text and "- C dead: rate is 0; raise it" in text


def composed(language: str) -> Trained:
    return Trained(
        run=Path(),
        adapter=Path(),
        base=Base("someone/composed", "aa"),
        base_place="",
        base_class="Qwen2_5_VLForConditionalGeneration",
        family="composed",
        language=language,
    )


def test_the_code_of_a_composed_model_names_a_language_model_that_can_be_had(
    tmp_path: Path,
) -> None:
    def card(language: str) -> str:
        trained = composed(language)
        write_card(trained, ID, tmp_path, merged_class=None, others={}, wishes=Wishes())
        return (tmp_path / "README.md").read_text()

    (tmp_path / "language").mkdir()
    for private in ("", str(tmp_path / "language"), "language"):
        text = card(private)
        assert "load_backbone('someone/composed'" in text and "base = " not in text
        assert "AutoProcessor" not in text and "Nothing of unigame" not in text
    text = card("Qwen/Qwen2.5-VL-3B-Instruct")
    assert "base = 'Qwen/Qwen2.5-VL-3B-Instruct'" in text and "load_backbone(" not in text


def test_a_bundled_base_is_not_on_the_hub(run: Path, tmp_path: Path) -> None:
    """The card said that nothing of unigame is needed, and named a folder that nobody has."""
    push(run, ID, base="janus-nano", dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing of unigame is needed" not in text and "must be installed" in text
    lines = text.split("```python\n")[1].split("```")[0].splitlines()
    found: dict[str, Any] = {}
    exec("\n".join(line for line in lines if "bundled_folder" in line), found)
    assert (found["base"] / "config.json").is_file()
    push(run, ID, base=BASE, dry_run=tmp_path / "hub")
    assert "Nothing of unigame is needed" in (tmp_path / "hub" / "README.md").read_text()


def test_addresses_lose_their_folders_and_passwords() -> None:
    assert public_value("file:///home/me/secret/cats.json") == "cats.json"
    assert public_value("s3://me:pw@bucket/logs") == "s3://bucket/logs"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("train --data a/b.json --n 3", "train --data b.json --n 3"),
        ("train --data=a/b", "train --data=b"),
        ("train --data.0.path 'my cats/b'", "train --data.0.path b"),
        (
            "train --data '[{type: vqa, path: /me/my cats/a.json, size: 3}]'",
            "train --data '[{type: vqa, path: a.json, size: 3}]'",
        ),
        ("train --data org/known --model org/other", "train --data org/known --model other"),
        ("train --note 'it is 1/2 of a/b'", "train --note 'it is 1/2 of a/b'"),
        ("train secret/recipe.yaml --x ~/y/z", "train recipe.yaml --x z"),
        ("train --hub_private_repo --lr 1", "train --lr 1"),
        ("train --training.hub-token hf_a --api_key=b --lr 1", "train --lr 1"),
        (
            "train --training '{hub_token: hf_a, max_steps: 2}' token=hf_b",
            "train --training '{hub_token: ..., max_steps: 2}' token=...",
        ),
        ("train --data C:\\\\me\\\\b.json", "train --data b.json"),
        ("train 'half", ""),
    ],
)
def test_a_command_keeps_last_names_only(typed: str, shown: str) -> None:
    assert public_command(typed, {"org/known"}) == shown


def test_a_word_of_a_command_that_exists_here_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ward" / "seven").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_command("train --init ward/seven") == "train --init seven"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--data /home/me/x/cats.json --n 3", "--data cats.json --n 3"),
        ("~/x/cats.json", "cats.json"),
        ("./runs/a b", "a b"),
        ("path: '/a/b.json'", "path: 'b.json'"),
        ("deepseek-community/Janus-Pro-1B", "deepseek-community/Janus-Pro-1B"),
        ("runs/game", "runs/game"),
        ("https://huggingface.co/me/mine", "https://huggingface.co/me/mine"),
    ],
)
def test_paths_of_this_machine_are_shortened(text: str, shown: str) -> None:
    assert public(text) == shown
