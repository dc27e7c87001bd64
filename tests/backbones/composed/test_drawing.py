"""How composed models draw: noise levels, the redrawing and its gradient, seeds, warm-up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from tests.backbones.conftest import loaded
from tests.tiny import random_images
from tests.tiny_composed import shared_llm_dit, shared_vlm_unet
from unigame.backbones import load_backbone
from unigame.backbones.composed.diffusion import ImageBranch, NoiseLevels
from unigame.backbones.composed.model import ComposedBackbone
from unigame.errors import UserError
from unigame.training import UniGameConfig, UniGameTrainer
from unigame.training.run import main as train

PROMPTS = ["a red circle", "two small green squares left of a blue cross"]
QUESTIONS, ANSWERS = ["what colour is the circle", "is it red"], ["red", "no"]
FAMILIES = {"unet": shared_vlm_unet, "dit": shared_llm_dit}


def load(make: Callable[[], Path]) -> ComposedBackbone:
    backbone = copy.deepcopy(loaded(make()))
    assert isinstance(backbone, ComposedBackbone)
    return backbone


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> ComposedBackbone:
    return load(FAMILIES[request.param])


# ---- the gradient of player C -------------------------------------------------------------------
def test_the_perturbers_gradient_is_that_of_finite_differences(backbone: ComposedBackbone) -> None:
    """From the answer's CE through eyes, VAE and denoiser to the perturbation, in float64.

    Some layers of the libraries compute in float32 whatever they are given, hence the long step,
    and the gradient's own direction, in which the change is largest.
    """
    backbone.double()
    images = random_images(2).double()
    visual = backbone.visual_states(images, PROMPTS)
    states_BNH = visual.states_BNH.double()
    weights = torch.randn(
        4, *images.shape[1:], generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )

    def draw(at: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return backbone.draw(at, visual.codes, num_candidates=2, generator=generator).images

    def pixels(at: Tensor) -> Tensor:
        return (draw(at) * weights).sum()

    def loss(at: Tensor) -> Tensor:
        return backbone.answer_loss(draw(at), QUESTIONS, ANSWERS).sum()

    step = 1e-3
    for function, tolerance in ((pixels, 1e-3), (loss, 1e-2)):
        at = states_BNH.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(at), [at])
        assert (gradient.abs().sum(-1) > 0).all()
        ahead = step * gradient / gradient.norm()
        with torch.no_grad():
            change = function(states_BNH + ahead) - function(states_BNH - ahead)
        measured = float(change) / (2 * step)
        assert measured == pytest.approx(float(gradient.norm()), rel=tolerance)


def test_several_steps_are_differentiable_and_differ_from_one(backbone: ComposedBackbone) -> None:
    visual = backbone.visual_states(random_images(2), PROMPTS)
    condition = backbone.trained.connector(visual.states_BNH).detach().requires_grad_()
    eps = torch.randn(visual.codes.shape, generator=torch.Generator().manual_seed(0))
    one, three = (
        backbone.branch.redraw(visual.codes, condition, eps, 0.5, steps) for steps in (1, 3)
    )
    (gradient,) = torch.autograd.grad(three.sum(), [condition])
    assert (gradient.abs().sum(-1) > 0).all()
    assert not torch.allclose(one, three)


# ---- noise levels --------------------------------------------------------------------------------
def perfect(levels: NoiseLevels, clean: Tensor, noisy: Tensor, clock_B: Tensor) -> Tensor:
    """What a denoiser that knows the clean latent predicts."""
    scale_B = clock_B / levels.steps if levels.alphas_T is None else (clock_B + 1) / levels.steps
    level = levels.at(scale_B, noisy)
    assert torch.equal(level.timestep_B.double(), clock_B.double())
    return levels.target(clean, (noisy - level.signal * clean) / level.noise, level)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler"},
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        {"_class_name": "DDIMScheduler", "prediction_type": "sample"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 3.0,
        },
    ],
    ids=lambda config: f"{config['_class_name'][:4]}-{config.get('prediction_type', '')}",
)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_perfect_prediction_gives_the_clean_latent(
    config: dict[str, object], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = NoiseLevels(config)
    branch = ImageBranch(torch.nn.Identity(), AutoencoderKL(norm_num_groups=1), levels, 16)
    clean, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()

    def oracle(noisy: Tensor, clock_B: Tensor, condition: Tensor) -> Tensor:
        return perfect(levels, clean, noisy, clock_B)

    monkeypatch.setattr(branch, "predict", oracle)
    redrawn = branch.redraw(clean, torch.zeros(2, 1, 1), eps, 0.75, steps)
    torch.testing.assert_close(redrawn, clean, rtol=1e-6, atol=1e-6)


def test_noise_levels_run_from_image_to_noise() -> None:
    for name in ("DDPMScheduler", "FlowMatchEulerDiscreteScheduler"):
        levels = NoiseLevels({"_class_name": name})
        level = levels.at(torch.linspace(0, 1, 9), torch.zeros(9, 1, 1, 1))
        signal, noise = level.signal.flatten(), level.noise.flatten()
        assert signal[0] > 0.99 and noise[-1] > 0.99
        assert (signal.diff() < 0).all() and (noise.diff() > 0).all()
    with pytest.raises(UserError, match="prediction_type='score'"):
        NoiseLevels({"_class_name": "DDPMScheduler", "prediction_type": "score"})
    with pytest.raises(UserError, match="'Foo' is not one of diffusers"):
        NoiseLevels({"_class_name": "Foo"})


def test_the_sampler_agrees_with_the_noise_levels(backbone: ComposedBackbone) -> None:
    """Latents of diffusers' scheduler for a perfect denoiser are the clean ones: one clock."""
    branch, levels = backbone.branch, backbone.branch.levels
    clean = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    branch.predict = lambda noisy, clock_B, _: perfect(levels, clean, noisy, clock_B)  # type: ignore[method-assign]
    sampled = branch.sample(
        torch.zeros(2, 1, 1),
        None,
        latent_shape=backbone.latent_shape,
        steps=8,
        guidance_scale=1.0,
        temperature=1.0,
        seeds=[0, 1],
    )
    torch.testing.assert_close(sampled, clean.expand(2, -1, -1, -1), rtol=0, atol=0.15)


# ---- seeds ---------------------------------------------------------------------------------------
def test_a_generated_picture_depends_on_its_seed_alone(backbone: ComposedBackbone) -> None:
    together = backbone.generate(PROMPTS, seeds=[5, 9])
    alone = backbone.generate(PROMPTS[1:], seeds=[9])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(together, backbone.generate(PROMPTS, seeds=[5, 9]))
    by_row = backbone.generate(PROMPTS, seed=4)
    assert not torch.allclose(by_row[1:], backbone.generate(PROMPTS[1:], seed=5), atol=1e-3)
    assert not torch.allclose(together, by_row, atol=1e-3)
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        backbone.generate(PROMPTS, seeds=[1])


def test_guidance_is_the_difference_to_the_empty_prompt(backbone: ComposedBackbone) -> None:
    assert torch.allclose(
        backbone.generate([""], guidance_scale=7.0),
        backbone.generate([""], guidance_scale=1.0),
        atol=1e-4,
    )
    nothing = backbone.generate(PROMPTS, guidance_scale=0.0)
    empty = backbone.generate(["", ""], guidance_scale=1.0)
    torch.testing.assert_close(nothing, empty, atol=1e-4, rtol=0)
    guided, plain = (backbone.generate(PROMPTS, guidance_scale=g) for g in (7.0, 1.0))
    assert not torch.allclose(guided, plain, atol=1e-3)


def test_strength_and_anchor_set_how_far_a_redrawing_goes(backbone: ComposedBackbone) -> None:
    visual = backbone.visual_states(random_images(2), PROMPTS)
    free = backbone.draw(visual.states_BNH, visual.codes)
    half = backbone.draw(visual.states_BNH, visual.codes, anchor=1.0)
    torch.testing.assert_close(half.compact, (free.compact + visual.codes) / 2)
    eps = torch.randn(visual.codes.shape, generator=torch.Generator().manual_seed(0))
    condition = backbone.trained.connector(visual.states_BNH)
    near, far = (
        (backbone.branch.redraw(visual.codes, condition, eps, strength, 1) - visual.codes).norm()
        for strength in (0.01, 0.9)
    )
    assert near < 0.3 * far


def test_training_noise_is_new_each_time_and_evaluation_noise_is_not(
    backbone: ComposedBackbone,
) -> None:
    images = random_images(2)
    torch.manual_seed(0)
    backbone.train()
    first, second = (backbone.generation_loss(images, PROMPTS) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(backbone.generation_loss(images, PROMPTS), first)
    assert not torch.equal(first, second)
    backbone.eval()
    assert torch.equal(*(backbone.generation_loss(images, PROMPTS) for _ in range(2)))


def test_training_sees_the_empty_prompt_at_times(backbone: ComposedBackbone) -> None:
    images = random_images(2)
    backbone.train()

    def loss(captions: list[str], dropout: float) -> Tensor:
        backbone.settings = replace(backbone.settings, caption_dropout=dropout)
        torch.manual_seed(0)
        return backbone.generation_loss(images, captions)

    assert torch.equal(loss(PROMPTS, 1.0), loss(["", ""], 0.0))
    assert not torch.equal(loss(PROMPTS, 0.0), loss(["", ""], 0.0))


# ---- memory --------------------------------------------------------------------------------------
def test_checkpointing_recomputes_denoiser_and_eyes(backbone: ComposedBackbone) -> None:
    backbone.add_lora().train()
    visual = backbone.visual_states(random_images(2), PROMPTS)
    calls = {"denoiser": 0, "eyes": 0, "decoder": 0}
    inner = {
        "denoiser": next(
            m for n, m in backbone.branch.denoiser.named_modules() if n.endswith("attn2.to_k")
        ),
        "eyes": next(
            m
            for n, m in backbone.reader.vision(backbone).named_modules()
            if n.endswith(("attn.qkv", "self_attn.q_proj"))
        ),
        "decoder": backbone.branch.vae.decoder.conv_in,
    }
    for name, module in inner.items():
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))

    def play() -> dict[str, int]:
        calls.update(dict.fromkeys(calls, 0))
        states = visual.states_BNH.clone().requires_grad_()
        with backbone.without_dropout():
            drawn = backbone.draw(states, visual.codes)
            loss = backbone.answer_loss(drawn.images, QUESTIONS, ANSWERS).sum()
            torch.autograd.grad(loss, [states])
        return dict(calls)

    assert play() == dict.fromkeys(calls, 1)
    backbone.gradient_checkpointing_enable()
    assert min(play().values()) >= 2


def test_under_bfloat16_what_lies_between_states_and_pixels_is_float32() -> None:
    backbone = load_backbone(shared_vlm_unet(), dtype="bfloat16", device="cpu")
    assert isinstance(backbone, ComposedBackbone)
    assert backbone.facts.dtype == torch.bfloat16
    parts = (backbone.branch, backbone.trained)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    visual = backbone.visual_states(random_images(1), PROMPTS[:1])
    nudge = 1e-4 * torch.randn(visual.states_BNH.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, nudged = (
            backbone.draw(visual.states_BNH + d, visual.codes).compact for d in (0.0, nudge)
        )
    assert plain.dtype == torch.float32
    assert (nudged != plain).float().mean() > 0.9


# ---- warm-up -------------------------------------------------------------------------------------
def test_the_warm_up_trains_the_named_parts_alone(backbone: ComposedBackbone) -> None:
    backbone.unfreeze(["connector"])
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert names and all(name.startswith("trained.connector.") for name in names)
    backbone.generation_loss(random_images(2), PROMPTS).sum().backward()
    moved = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == names
    assert backbone.reads_frozen


def test_the_projector_of_an_llm_can_be_warmed_up_too() -> None:
    backbone = load(shared_llm_dit).unfreeze(["projector"])
    assert not backbone.reads_frozen
    backbone.answer_loss(random_images(2), QUESTIONS, ANSWERS).sum().backward()
    assert all(p.grad is not None for p in backbone.trained.projector.parameters())
    with pytest.raises(UserError, match="has no projector"):
        load(shared_vlm_unet).unfreeze(["projector"])
    with pytest.raises(UserError, match="unknown part 'denoiser'"):
        load(shared_vlm_unet).unfreeze(["denoiser"])


def test_warm_up_by_recipe_resumes_exactly_and_the_game_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "warm.yaml"
    recipe.write_text(
        f"model: {shared_llm_dit()}\n"
        "data: [{type: synthetic, size: 8}]\n"
        "methods: [sft]\n"
        "training: {train_parts: [connector, projector], generation_weight: 1,"
        " max_steps: 3, save_steps: 1, per_device_train_batch_size: 2, learning_rate: 1e-2,"
        " use_cpu: true, disable_tqdm: true}\n"
    )
    out, resumed = tmp_path / "warm", tmp_path / "resumed"
    train(recipe, ["--output_dir", str(out)])
    assert f"--model {out}" in capsys.readouterr().out
    before, after = load(shared_llm_dit), load_backbone(out, device="cpu")
    for name, value in before.trained.named_parameters():
        assert not torch.equal(value, after.trained.get_parameter(name)), name
    images = random_images(1)
    assert torch.equal(before.encode_images(images), after.encode_images(images))
    checkpoint = str(out / "checkpoint-2")
    train(recipe, ["--output_dir", str(resumed), "--resume_from_checkpoint", checkpoint])
    whole, parts = (load_file(folder / "connector.safetensors") for folder in (out, resumed))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # C and LoRA then play on the warmed model.
    game = "--train_parts null --methods selfplay --max_steps 1 --eps_mode relative"
    train(recipe, ["--model", str(out), "--output_dir", str(tmp_path / "game"), *game.split()])
    assert (tmp_path / "game" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "game" / "perturber.safetensors").is_file()


def test_a_warm_up_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the warm-up comes before the game"):
        UniGameTrainer("janus-nano", UniGameConfig(str(tmp_path), train_parts=["projector"]))
    nothing_drawn = UniGameConfig(str(tmp_path), train_parts="connector", use_cpu=True)
    with pytest.raises(UserError, match="learns from drawing alone"):
        UniGameTrainer("janus-nano", nothing_drawn, methods=["sft"])
    args = UniGameConfig(str(tmp_path), train_parts="projector", use_cpu=True)
    with pytest.raises(UserError, match="'janus' has no part that trains on its own"):
        UniGameTrainer("janus-nano", args, methods=["sft"])
    with pytest.raises(UserError, match="warm the connector up first"):
        load(shared_vlm_unet).add_lora().unfreeze(["connector"])
