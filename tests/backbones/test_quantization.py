"""4- and 8-bit bases of every family: what is packed, gradients, LoRA, files, and refusals."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.conftest import loaded
from tests.tiny import random_images, shared_tiny_janus, stir_lora
from unigame.backbones import load_backbone
from unigame.backbones.base import Backbone
from unigame.backbones.common import quantization
from unigame.backbones.common.adapter_files import read_base
from unigame.backbones.common.packing import language_linears, pack
from unigame.backbones.memory import Setting, estimate, size_of
from unigame.backbones.merging import merge
from unigame.errors import UserError

QUESTIONS, ANSWERS = ["what colour is the circle", "is it red"], ["red", "no"]
COSINE = {"nf4": 0.85, "int8": 0.995}
"""Of the challenge's gradient to the unquantised model's, at the same states, in float32. Tiny
random weights are rounded more coarsely than trained ones: 0.87 to 0.98 and 0.9997 were found."""
COSINE_OF_LAYERS = {"nf4": 0.93, "int8": 0.9995}
"""The same at the input of each layer of the language model: 0.950 to 0.989 and 0.9998 to 1.0000
were found."""
TRAINED = {"nf4": (0.95, 0.985), "int8": (0.999, 0.9995)}
"""Of the bundled model, at the states and at its layers: 0.973 and 0.994 were found with nf4."""


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    if "absent" not in request.node.name:
        pytest.importorskip("bitsandbytes", reason='needs pip install "unigame[quantization]"')


@functools.cache
def reads_narrow_layers() -> bool:
    """Whether bitsandbytes reads 4-bit layers narrower than a block (64) as it wrote them.

    Version 0.50.2 does not on CPUs with AVX-512: it takes the scale of another block.
    """
    from bitsandbytes import functional

    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    read = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
    return bool((read - weight).norm() < 0.15 * weight.norm())


@functools.cache
def packed(checkpoint: Path, kind: str) -> Backbone:
    return load_backbone(checkpoint, device="cpu", quantization=kind)


def is_packed(layer: nn.Module) -> bool:
    return type(layer).__name__ in ("Linear4bit", "Int8Linear")


def whole_weight(layer: nn.Module) -> Tensor:
    """What the layer multiplies by, as bitsandbytes itself writes it out."""
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))


def challenge_gradients(backbone: Backbone, reference: Backbone) -> list[Tensor]:
    """Of the answers' loss to the states that the reference draws from: redrawn, then read.

    After it, that at the input of each layer of the language model, first layer first.
    """
    images = random_images(2, reference.facts.image_size)
    torch.manual_seed(0)  # of a noised latent
    visual = reference.visual_states(images, ANSWERS)
    states = visual.states_BNH.detach().clone().requires_grad_()
    drawn = backbone.draw(states, visual.codes).images
    inputs: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        hidden.retain_grad()
        inputs.append(hidden)

    layers = backbone.language_model.layers  # type: ignore[union-attr]
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]  # type: ignore[union-attr]
    loss = backbone.answer_loss(drawn, QUESTIONS, ANSWERS).sum()
    for handle in handles:
        handle.remove()
    loss.backward()
    assert len(inputs) == len(handles) >= 2
    found = [states.grad, *(hidden.grad for hidden in inputs)]
    return [gradient.flatten() for gradient in found if gradient is not None]


def cosines(gradients: list[Tensor], true: list[Tensor]) -> list[float]:
    pairs = zip(gradients, true, strict=True)
    return [float(torch.cosine_similarity(one, other, dim=0)) for one, other in pairs]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_challenge_s_gradient_is_that_of_the_rounded_weights(
    checkpoint: Path, kind: str
) -> None:
    if kind == "nf4" and not reads_narrow_layers():
        pytest.skip("bitsandbytes reads 4-bit layers narrower than 64 wrongly on this CPU")
    backbone, whole = packed(checkpoint, kind), loaded(checkpoint)
    names = {name for name, _ in language_linears(whole.model, whole.language_name)}  # type: ignore[arg-type]
    found = {name for name, m in backbone.model.named_modules() if is_packed(m)}  # type: ignore[union-attr]
    assert found == names and len(names) >= 14
    for name, weight in backbone.named_parameters():  # all else is as it was
        if not any(name == f"model.{layer}.weight" for layer in names):
            assert torch.equal(weight, whole.get_parameter(name)), name
    gradients, true = (challenge_gradients(one, whole) for one in (backbone, whole))
    cosine, *of_layers = cosines(gradients, true)
    assert cosine > COSINE[kind]
    assert min(of_layers) > COSINE_OF_LAYERS[kind]
    # The sharp check: a plain model of the rounded weights has the same gradient.
    rounded = copy.deepcopy(whole)
    with torch.no_grad():
        for name in names:
            layer = backbone.model.get_submodule(name)  # type: ignore[union-attr]
            rounded.model.get_submodule(name).weight.copy_(whole_weight(layer))  # type: ignore[union-attr]
    torch.testing.assert_close(
        gradients[0],
        challenge_gradients(rounded, whole)[0],
        rtol=1e-3,
        atol=1e-5 * float(true[0].norm()),
    )


def test_trained_weights_keep_the_challenge_s_gradient_layer_by_layer() -> None:
    whole = load_backbone("janus-nano", device="cpu")
    true = challenge_gradients(whole, whole)
    for kind, (least, least_of_layers) in TRAINED.items():
        backbone = load_backbone("janus-nano", device="cpu", quantization=kind)
        cosine, *of_layers = cosines(challenge_gradients(backbone, whole), true)
        assert cosine > least and min(of_layers) > least_of_layers, (kind, cosine, of_layers)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_doctor_counts_what_a_packed_model_takes(checkpoint: Path, kind: str) -> None:
    counted = estimate(size_of(str(checkpoint)), Setting(False, 1), "float32", kind).weights
    taken = sum(p.numel() * p.element_size() for p in packed(checkpoint, kind).parameters())
    assert counted == pytest.approx(taken, rel=0.02)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_sample_s_loss_does_not_depend_on_its_batch_or_on_the_mode(kind: str) -> None:
    backbone = load_backbone(shared_tiny_janus(), device="cpu", quantization=kind)
    images = random_images(2, 16)
    both = backbone.answer_loss(images, QUESTIONS, ANSWERS)
    alone = backbone.answer_loss(images[:1], QUESTIONS[:1], ANSWERS[:1])
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4)
    learning = backbone.train().answer_loss(images, QUESTIONS, ANSWERS)
    torch.testing.assert_close(learning, both)
    # CPUs with AVX512-BF16 would otherwise rearrange weights at a pass without gradient.
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in backbone.modules())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_says_what_it_learned_on_and_merges_into_the_whole_base(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load_backbone(shared_tiny_janus(), device="cpu", quantization=kind, dtype="bfloat16")
    backbone.add_lora().eval()
    stir_lora(backbone)
    assert {weight.dtype for weight in backbone.trainable_parameters()} == {torch.float32}
    asked = (random_images(2, 16), QUESTIONS, ANSWERS)
    before = backbone.answer_loss(*asked)
    with backbone.lora_merged():  # packed weights take no part: the sum would be rounded
        assert torch.equal(backbone.answer_loss(*asked), before)
    backbone.save_pretrained(tmp_path / "adapter")
    base = read_base(tmp_path / "adapter")
    assert base.quantization == kind
    assert base.digest == load_backbone(shared_tiny_janus(), device="cpu").weights_digest()
    with pytest.raises(UserError, match=rf"{kind}.*unigame merge"):
        backbone.save_merged(tmp_path / "merged")
    again = load_backbone(
        shared_tiny_janus(),
        device="cpu",
        quantization=kind,
        dtype="bfloat16",
        adapter=tmp_path / "adapter",
    )
    assert torch.equal(again.answer_loss(*asked), before)
    assert all("wrongly on this CPU" in text for text in caplog.messages), "no other base"
    done = merge(tmp_path / "adapter", tmp_path / "out", dtype="float32", device="cpu")
    assert done.loss_gap < 1e-3
    assert f"quantization={kind}" in caplog.text and "quantization=none" in caplog.text


def test_a_packed_model_is_not_saved_nor_packed_again(tmp_path: Path) -> None:
    backbone = packed(shared_tiny_janus(), "nf4")
    with pytest.raises(UserError, match="nf4.*quantization=none"):
        backbone.save_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match="int8.*already"):
        backbone.quantize("int8", torch.device("cpu"))


def test_absent_bitsandbytes_and_unknown_words_are_refused_before_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unigame.backbones.loading.resolve", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="fp4.*nf4, int8"):
        load_backbone(shared_tiny_janus(), quantization="fp4")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'nf4.*pip install "unigame\[quantization\]"'):
        load_backbone(shared_tiny_janus(), quantization="nf4")


def test_a_cpu_that_reads_narrow_layers_wrongly_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitsandbytes import functional

    def say_of(*widths: int) -> list[str]:
        caplog.clear()
        layers = {f"up_{width}": nn.Linear(width, 32) for width in widths}
        model = nn.ModuleDict({"language": nn.ModuleDict(layers)})
        pack(model, "language", "nf4", torch.device("cpu"))
        return [text for text in caplog.messages if "wrongly on this CPU" in text]

    def misread_at_96(packed: Tensor, state: Any) -> Tensor:
        return read(packed, state) * (state.shape[1] != 96)

    assert bool(say_of(96)) != reads_narrow_layers()
    read = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", misread_at_96)
    (said,) = say_of(200, 96)
    assert "1 4-bit layers" in said and "language.up_96, 96 wide" in said and "error 1.00" in said
    assert not say_of(200, 128)
