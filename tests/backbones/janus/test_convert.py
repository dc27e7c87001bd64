"""Converting files: every layout, every bit; what is wrong is named and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

from tests.backbones.test_model_files import BROKEN, DAMAGES, ODD, settings_of
from tests.tiny_janus_files import save_original, tiny_shapes, write_json
from tests.tiny_janus_original import OriginalJanus, make_original
from unigame.backbones import load_backbone
from unigame.backbones.janus import convert as janus_convert
from unigame.backbones.janus.convert import convert
from unigame.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def small_shapes() -> Iterator[None]:
    with tiny_shapes():
        yield


@pytest.fixture(scope="module")
def model() -> OriginalJanus:
    return make_original()


@pytest.fixture(scope="module")
def saved(model: OriginalJanus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_original(model, tmp_path_factory.mktemp("saved") / "original", layout="bin")


@pytest.fixture
def source(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "original"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def refused(source: Path, message: str) -> str:
    """The one line that a conversion ends in; nothing may be left beside the source."""
    output = source.parent / "out"
    with pytest.raises(UserError, match=message) as caught:
        convert(source, output)
    assert sorted(source.parent.iterdir()) == [source]
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded"])
def test_every_layout_becomes_the_same_files(
    model: OriginalJanus, saved: Path, tmp_path: Path, layout: str
) -> None:
    convert(save_original(model, tmp_path / layout, layout=layout), tmp_path / "out")
    convert(saved, tmp_path / "reference")
    ours, reference = weights_of(tmp_path / "out"), weights_of(tmp_path / "reference")
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in ours)
    for name in ("config.json", "tokenizer.json", "processor_config.json"):
        files = [(tmp_path / folder / name).read_text() for folder in ("out", "reference")]
        assert files[0] == files[1]


def test_what_was_done_is_counted(model: OriginalJanus, source: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    done = convert(source, tmp_path / "out", shard_bytes=10**6, say=lines.append)
    weights = weights_of(tmp_path / "out")
    assert done.tensors == len(weights)
    assert done.parameters == sum(tensor.numel() for tensor in weights.values())
    assert done.weight_files == len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights.keys()
    assert sorted(done.left_out.values()) == [1, 1, 5]
    assert done.codebook_norms == pytest.approx((1.0, 1.0), abs=1e-5)
    assert done.dtype == "float32"
    assert len(lines) == done.weight_files + 1
    assert not list(tmp_path.glob(".*"))
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


def test_values_keep_their_bits(model: OriginalJanus, tmp_path: Path) -> None:
    """Mixed types, a NaN and a negative zero arrive as they were; ``lm_head`` says the type."""
    half = {k: v.bfloat16() for k, v in model.state_dict().items() if "language_model" in k}
    codes = model.state_dict()["gen_embed.weight"].clone()
    codes[0, :2] = torch.tensor([float("nan"), -0.0])
    original = save_original(model, tmp_path / "a", changes=half | {"gen_embed.weight": codes})
    done = convert(original, tmp_path / "out")
    new = weights_of(tmp_path / "out")
    assert new["lm_head.weight"].dtype == torch.bfloat16 and done.dtype == "bfloat16"
    kept = new["model.generation_embeddings.weight"]
    assert torch.equal(kept.view(torch.int32), codes.view(torch.int32))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_another_type_on_demand(source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out").values()} == {torch.bfloat16}
    assert done.dtype == "bfloat16"


def test_an_empty_output_folder_is_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(source, tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


# ---- what is refused -----------------------------------------------------------------------------


def drop(name: str) -> Callable[[Path], None]:
    return edit_weights(lambda weights: weights.pop(name))


def put(name: str, value: Any) -> Callable[[Path], None]:
    return edit_weights(lambda weights: weights.update({name: value}))


def edit_weights(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "pytorch_model.bin"
        weights = torch.load(file, weights_only=True)
        edit(weights)
        torch.save(weights, file)

    return change


def edit_json(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        edit(content)
        write_json(folder, name, content)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def index_of(*files: str) -> Callable[[Path], None]:
    content = {"weight_map": {f"tensor{i}": file for i, file in enumerate(files)}}
    return write("pytorch_model.bin.index.json", json.dumps(content))


class Payload:
    """What runs when a careless program unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle ran",))


POSITIONS = "vision_model.vision_tower.pos_embed"
QKV = "vision_model.vision_tower.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("language_model.lm_head.weight"), "lack 'lm_head.weight': they do not belong"),
        (drop(QKV), "lack .*layers.0.self_attn.q_proj.weight'.*k_proj.weight'.*v_proj.weight'"),
        (put("gen_head.extra.weight", torch.ones(1)), "unexpected 'gen_head.extra.weight'"),
        (put("gen_vision_model.loss.weight", torch.ones(1)), "unexpected 'gen_vision_model.loss"),
        (
            put("gen_embed.weight", torch.ones(64, 9)),
            r"shape to 'gen_embed.weight' \(\(64, 9\) in",
        ),
        (put(POSITIONS, torch.ones(2, 16, 24)), r"pos_embed' \(\(2, 16, 24\) instead of \(16, 24"),
        (put(QKV, torch.ones(70, 24)), r"qkv.weight' .*\(24, 24\) for each third"),
        (put("gen_embed.weight", torch.ones(2).long()), "type torch.int64, which no Janus has"),
        (put("step", 3), "holds 'step', a int and no tensor"),
        (put("gen_embed.weight", Payload()), "no file of plain tensors, and loading anything else"),
        (lambda f: torch.save([torch.ones(1)], f / "pytorch_model.bin"), "no table of tensors"),
        (lambda f: torch.save({}, f / "pytorch_model.bin"), "holds no tensors"),
        (write("pytorch_model.bin", "version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (write("model.safetensors", "version https://git-lfs"), "unreadable .* Git LFS pointer"),
        (remove("pytorch_model.bin"), "has no weights"),
        (index_of("pytorch_model.bin", "pytorch_model-2.bin"), "pytorch_model-2.bin' is missing"),
        (write("pytorch_model.bin.index.json", "[]"), "no weight index"),
        (remove("config.json"), "has no config.json; of deepseek-ai's Janus checkpoints"),
        (write("config.json", "{"), "no model configuration"),
        (edit_json("config.json", lambda c: c.update(model_type="janus")), "Hub format already"),
        (edit_json("config.json", lambda c: c.update(model_type="llama")), "of type 'llama'"),
        (edit_json("config.json", lambda c: c.pop("gen_head_config")), "no gen_head_config, so it"),
        (remove("tokenizer.json"), "no tokenizer.json"),
        (write("tokenizer.json", "{"), "tokenizer.json' does not load"),
        (remove("preprocessor_config.json"), "no preprocessor_config.json"),
        (write("tokenizer_config.json", "["), "tokenizer_config.json' is broken"),
        (
            edit_json("processor_config.json", lambda c: c.update(image_start_tag="<img>")),
            "no token for boi_token='<img>'",
        ),
        (edit_json("processor_config.json", lambda c: c.update(sft_format="x")), "sft_format='x'"),
    ],
)
def test_what_does_not_fit_is_named(
    source: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(source)
    refused(source, message)


def test_a_file_that_was_cut_off_is_named(source: Path) -> None:
    file = source / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(source, "pytorch_model.bin' is unreadable .*cut off")


def test_many_missing_tensors_are_counted(source: Path) -> None:
    edit_weights(lambda w: [w.pop(k) for k in list(w) if k.startswith("gen_vision_model.dec")])(
        source
    )
    assert " more: they do not belong" in refused(source, "lack 'model.vqmodel.decoder")


def test_the_same_tensor_twice_is_refused(model: OriginalJanus, tmp_path: Path) -> None:
    source = save_original(model, tmp_path / "original", layout="sharded")
    second = source / "pytorch_model-00002-of-00002.bin"
    weights = torch.load(second, weights_only=True)
    first = torch.load(source / "pytorch_model-00001-of-00002.bin", weights_only=True)
    torch.save(weights | dict(list(first.items())[:1]), second)
    refused(source, "is in two weight files")


def test_the_format_before_pytorch_1_6_is_read(
    model: OriginalJanus, source: Path, tmp_path: Path
) -> None:
    file = source / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    done = convert(source, tmp_path / "out")
    assert done.tensors == len(weights_of(tmp_path / "out"))


def test_outputs_that_hold_something_are_left_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="out' is not empty; name a new folder"):
        convert(source, output)
    with pytest.raises(UserError, match=r"mine.txt' is a file"):
        convert(source, output / "mine.txt")
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_seen_before_anything_is_written(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    refused(source, r"needs 0.1 GB and the disk has 0.0 GB left")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    save, calls = janus_convert.save_file, []

    def stop_at_the_second(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise error
        save(*args, **kwargs)

    monkeypatch.setattr(janus_convert, "save_file", stop_at_the_second)
    with pytest.raises(error):
        convert(source, source.parent / "out", shard_bytes=10**6)
    assert len(calls) == 2 and list(source.parent.iterdir()) == [source]


@pytest.mark.parametrize("lost", [False, True])
def test_a_disk_that_gives_back_something_else_is_caught(
    source: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    save = janus_convert.save_file
    name = "model.vision_model.encoder.layers.1.self_attn.k_proj.bias"

    def damaged(tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        if lost:
            del tensors[name]
        else:
            tensors[name][3] = 7.0
        save(tensors, *args, **kwargs)

    monkeypatch.setattr(janus_convert, "save_file", damaged)
    refused(source, "not written in full" if lost else r"is not '.*blocks.1.attn.qkv.bias' after")


# ---- from the Hub, and where to turn -------------------------------------------------------------


def test_a_hub_id_is_looked_at_before_its_weights_are_sent(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(source)

    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file: str(source / "config.json")
    )
    monkeypatch.setattr(janus_convert, "snapshot_download", snapshot)
    files = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(janus_convert.HfApi, "list_repo_files", lambda self, name: files)
    convert("deepseek-ai/Janus-Pro-1B", tmp_path / "out")
    assert asked == [("deepseek-ai/Janus-Pro-1B", ["*.json", "*.bin*"])]
    files.append("model.safetensors")
    convert("deepseek-ai/Janus-Pro-1B", tmp_path / "again")
    assert asked[1][1] == ["*.json", "*.safetensors*"]
    edit_json("config.json", lambda c: c.update(model_type="janus"))(source)
    with pytest.raises(UserError, match="'deepseek-community/Janus' is in the Hub format already"):
        convert("deepseek-community/Janus", tmp_path / "third")
    assert len(asked) == 2


def test_a_download_that_fails_is_told_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any) -> None:
        raise LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file: str(source / "config.json")
    )
    monkeypatch.setattr(janus_convert.HfApi, "list_repo_files", unreachable)
    with pytest.raises(UserError, match="the Hub did not give its weights") as caught:
        convert("deepseek-ai/Janus-Pro-1B", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_loading_the_original_names_the_command(source: Path) -> None:
    with pytest.raises(UserError, match=f"unigame convert {source}"):
        load_backbone(source, device="cpu")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_success_or_one_line(source: Path, damage: str) -> None:
    output, change = source.parent / "out", DAMAGES[damage]
    for file in sorted(file for file in source.rglob("*") if file.is_file()):
        content = file.read_bytes()
        if change is None:
            file.unlink()
        else:
            file.write_bytes(change(content))
        try:
            convert(source, output)
        except UserError as error:
            assert "\n" not in str(error) and str(source) in str(error)
            assert file.name in str(error) or damage not in BROKEN
        else:
            assert damage not in BROKEN, f"{file.name} is broken, and it was converted"
            shutil.rmtree(output)
        file.write_bytes(content)


def test_odd_values_of_an_original_config_are_success_or_one_line(source: Path) -> None:
    text = (source / "config.json").read_text()
    for number, path in enumerate(list(settings_of(json.loads(text)))[::2]):
        content = json.loads(text)
        place = content
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = ODD[number % len(ODD)]
        (source / "config.json").write_text(json.dumps(content))
        try:
            convert(source, source.parent / "out")
            shutil.rmtree(source.parent / "out")
        except UserError as error:
            assert "\n" not in str(error)
