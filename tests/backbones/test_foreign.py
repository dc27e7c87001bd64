"""What is no unified model is named in one line that says what it is and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from tests.tiny import shared_tiny_janus
from tests.tiny_composed import shared_llm_dit
from unigame.backbones import load_backbone
from unigame.backbones.foreign import hub_refusal
from unigame.errors import UserError


def config(model_type: str) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / "config.json").write_text(json.dumps({"model_type": model_type})) and None
    )


def adapter(base: str | None) -> Callable[[Path], None]:
    content = {"peft_type": "LORA", "base_model_name_or_path": base}
    return lambda folder: (folder / "adapter_config.json").write_text(json.dumps(content)) and None


def pipeline(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def one_line(place: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(place, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and str(place) in message
    return message


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (
            config("qwen2_5_vl"),
            ["a VLM of type 'qwen2_5_vl': it reads pictures but draws none", "--denoiser stable-"],
        ),
        (config("llava"), ["a VLM of type 'llava'", "`unigame compose OUT --language"]),
        (config("gemma3"), ["a VLM of type 'gemma3'", "to idefics3, llava, qwen2_5_vl"]),
        (config("llama"), ["a text-only LLM of type 'llama'", "--vision-encoder google/siglip2"]),
        (
            config("vit"),
            ["type 'vit'; supported families: bagel, chameleon, emu3", "unigame backbones"],
        ),
        (config("multi_modality"), ["DeepSeek's original layout", "`unigame convert"]),
        (pipeline, ["a diffusers pipeline: it draws but reads no pictures", "--language VLM"]),
        (adapter("some/base"), ["a PEFT adapter, not a model", "made for ('some/base')"]),
        (adapter(None), ["a PEFT adapter", "does not say which"]),
        (lambda folder: None, ["has no config.json; give a checkpoint in the Hub format"]),
    ],
)
def test_a_folder_that_is_no_unified_model(
    tmp_path: Path, make: Callable[[Path], None], fragments: list[str]
) -> None:
    make(tmp_path)
    message = one_line(tmp_path)
    for fragment in fragments:
        assert fragment in message


def test_the_commands_that_it_names_fit_a_path_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    config("qwen2_5_vl")(folder)
    assert f"--language '{folder}' --denoiser" in one_line(folder)


def test_real_folders_of_parts_are_told_apart() -> None:
    root = shared_llm_dit().parent
    assert "text-only LLM of type 'llama'" in one_line(root / "language")
    assert "a diffusers pipeline" in one_line(root / "pipeline")
    assert "type 'siglip_vision_model'; supported families" in one_line(root / "encoder")


def test_an_adapter_of_ours_is_told_from_a_model(tmp_path: Path) -> None:
    load_backbone(shared_tiny_janus(), device="cpu").add_lora().save_pretrained(tmp_path)
    assert f"made for ('{shared_tiny_janus()}')" in one_line(tmp_path)


# ---- the Hub -------------------------------------------------------------------------------------
def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error.\nMore", response=response)


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (refusal(GatedRepoError, 401), ["is gated", "huggingface.co/owner/name", "hf auth login"]),
        (refusal(GatedRepoError, 403), ["is gated", "hf auth login"]),
        (refusal(RepositoryNotFoundError, 401), ["on the Hub there is none, or it is private"]),
        (refusal(HfHubHTTPError, 403), ["it is private and you have no access"]),
        (refusal(HfHubHTTPError, 500), ["(500 Client Error.); check the spelling and the network"]),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, error: HfHubHTTPError, fragments: list[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    message = one_line("owner/name")
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    ("there", "fragment"),
    [
        ("model_index.json", "'owner/name' is a diffusers pipeline"),
        ("adapter_config.json", "'owner/name' is a PEFT adapter"),
        (None, "'owner/name' has no config.json"),
    ],
)
def test_a_repository_without_config_is_asked_what_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: str | None, fragment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")  # one here says nothing of the repository
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(repo: str, name: str) -> str:
        if name != there:
            raise refusal(RemoteEntryNotFoundError, 404)
        (cache / name).write_text("{}")
        return str(cache / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fragment in one_line("owner/name")


def test_a_hub_id_of_a_vlm_is_named_as_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config("qwen2_5_vl")(tmp_path)
    place = str(tmp_path / "config.json")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: place)
    assert "compose OUT --language owner/vlm --denoiser" in one_line("owner/vlm")


def test_a_refusal_is_known_behind_the_words_that_transformers_puts_around_it() -> None:
    try:
        try:
            raise refusal(GatedRepoError, 403)
        except GatedRepoError as inner:
            raise OSError("cannot load the configuration") from inner
    except OSError as error:
        message = str(hub_refusal("language", "owner/name", "config.json", error))
    assert message.startswith("language 'owner/name' is gated") and "hf auth login" in message
