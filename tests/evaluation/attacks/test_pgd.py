import pytest
import torch

from tests.tiny import random_images, stir_lora, tiny_backbone
from unigame.errors import UserError
from unigame.evaluation.attacks.pgd import PGDConfig, pgd

QUESTIONS = ["what colour is the circle", "how many squares are there", "is the object red"]
ANSWERS = ["red", "two", "yes"]
QUICK = PGDConfig(eps=4 / 255, steps=4)


@pytest.fixture(scope="module")
def backbone():
    model = tiny_backbone().add_lora()
    stir_lora(model)
    return model.eval()


@pytest.fixture
def images():
    return (random_images(3) * 255).round() / 255


def losses(backbone, images):
    with torch.no_grad():
        return backbone.answer_loss(images, QUESTIONS, ANSWERS)


def levels(images):
    return (images * 255).round().long()


@pytest.mark.parametrize("random_start", [True, False])
def test_it_raises_every_loss(backbone, images, random_start):
    config = PGDConfig(eps=8 / 255, steps=6, random_start=random_start)
    attacked = pgd(backbone, images, QUESTIONS, ANSWERS, config)
    assert (losses(backbone, attacked) > losses(backbone, images) + 1e-3).all()


def test_it_beats_noise_of_the_same_size(backbone, images):
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    noisy = (images + QUICK.eps * signs).clamp(0, 1)
    attacked = pgd(backbone, images, QUESTIONS, ANSWERS, QUICK)
    assert losses(backbone, attacked).mean() > losses(backbone, noisy).mean()


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_bound_is_kept_exactly_in_eight_bits(backbone, images, size):
    images[0, :, :4], images[0, :, 4:8] = 0.0, 1.0  # where the range of pixels is the tighter bound
    config = PGDConfig(eps=size / 255, steps=3, step_size=1.0)
    attacked = pgd(backbone, images, QUESTIONS, ANSWERS, config)
    assert torch.equal(attacked, levels(attacked) / 255)
    moved = (levels(attacked) - levels(images)).abs()
    assert moved.max() == size
    assert attacked.min() >= 0 and attacked.max() <= 1


def test_without_rounding_the_bound_holds_off_the_grid(backbone):
    images = random_images(3)
    config = PGDConfig(eps=0.5 / 255, steps=3, eight_bit=False)
    attacked = pgd(backbone, images, QUESTIONS, ANSWERS, config)
    assert (attacked - images).abs().max() <= config.eps + 1e-7
    assert not torch.equal(attacked, levels(attacked) / 255)


def test_pictures_off_the_grid_come_out_on_it_and_within_the_bound(backbone):
    images = random_images(3)
    attacked = pgd(backbone, images, QUESTIONS, ANSWERS, QUICK)
    assert torch.equal(attacked, levels(attacked) / 255)
    assert (attacked - images).abs().max() <= QUICK.eps + 1e-5


def test_the_model_is_left_as_it_is(backbone, images):
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    for weight in backbone.trainable_parameters():
        weight.grad = torch.full_like(weight, 7.0)
    state = torch.random.get_rng_state()
    backbone.train()
    try:
        pgd(backbone, images, QUESTIONS, ANSWERS, QUICK)
        assert backbone.training
    finally:
        backbone.eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], w) for name, w in backbone.state_dict().items())
    assert all((weight.grad == 7).all() for weight in backbone.trainable_parameters())
    for weight in backbone.trainable_parameters():
        weight.grad = None


def test_a_sample_is_attacked_alike_in_any_batch(backbone, images):
    keys = ["a", "b", "c"]
    together = pgd(backbone, images, QUESTIONS, ANSWERS, QUICK, keys)
    alone = pgd(backbone, images[2:], QUESTIONS[2:], ANSWERS[2:], QUICK, keys[2:])
    assert (levels(together[2:]) == levels(alone)).float().mean() > 0.99
    other = pgd(backbone, images[2:], QUESTIONS[2:], ANSWERS[2:], QUICK, ["d"])
    assert (levels(other) == levels(alone)).float().mean() < 0.99


def test_more_steps_are_not_weaker(backbone, images):
    one, many = (
        losses(backbone, pgd(backbone, images, QUESTIONS, ANSWERS, PGDConfig(steps=steps)))
        for steps in (1, 10)
    )
    assert many.mean() > one.mean()


def test_a_model_without_a_gradient_is_refused(backbone, images, monkeypatch):
    monkeypatch.setattr(
        type(backbone), "embed_images", torch.no_grad()(type(backbone).embed_images)
    )
    for weight in backbone.trainable_parameters():
        weight.requires_grad_(False)
    try:
        with pytest.raises(UserError, match="no gradient from the answer loss to the picture"):
            pgd(backbone, images, QUESTIONS, ANSWERS, QUICK)
    finally:
        for name, weight in backbone.named_parameters():
            weight.requires_grad_("lora_" in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "eps is 0"),
        ({"eps": 8}, "eps is 8"),
        ({"eps": 0.3 / 255}, "less than one of 255 levels"),
        ({"steps": 0}, "steps is 0"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"step_size": float("inf")}, "step_size is inf"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        PGDConfig(**settings)


def test_names_and_default_step():
    assert PGDConfig().name == "pgd_8"
    assert PGDConfig(eps=0.5 / 255, eight_bit=False).name == "pgd_0.5"
    assert PGDConfig(eps=0.1, steps=10).resolved_step_size == pytest.approx(0.025)
