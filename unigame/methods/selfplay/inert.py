"""Settings of self-play that are set and cannot act, because another one switches their part off.

A reader of a recipe would believe that they do something. Each is named once, with what stops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unigame.methods.selfplay.settings import SelfPlaySettings

_OF_LEARNING = (
    "perturber_steps perturber_learning_rate perturber_weight_decay perturber_lr_scheduler_type "
    "perturber_warmup_steps perturber_max_grad_norm perturber_width perturber_depth "
    "perturber_heads diversity_weight restart_below restart_window eps_gate lambda_norm l2 tv "
    "label_weight label_floor label_similarity content_weight verified_target perturber_loss "
    "ce_cap gradient_candidates"
)
_OF_PICTURES = (
    "redrawn_every anchor anchor_mode anchor_width temperature sample_candidates missing_captions "
    "verifier_check keep_examples examples_every keep_tokens_mb"
)
_OF_STYLES = "styled_share style_temperature guidance_scale"
_OF_CHOICE = "style_memory style_entropy"
_OF_VERIFYING = "clip_weight clip_floor verified_target restart_below restart_window verifier_check"
_OF_QUANTILE = "hardness_window clip_weight"
_OF_BUFFER = "buffer_capacity buffer_min_size drop_learned max_replays"
# Values that switch off: they ask for nothing, so nothing is missing where they cannot act.
_OFF = {
    "redrawn_every": 0,
    "clip_floor": -1,
    "verifier_check": 0,
    "keep_examples": 0,
    "keep_tokens_mb": 0,
}


def inert(settings: SelfPlaySettings) -> list[str]:
    """Settings that are set and cannot act in this game, each once, with what stops it.

    What they would change beside the game does not count: a figure of the log, the noise of the
    draws, the time it takes, or an attack of ``unigame evaluate`` by this recipe.
    """
    return _named(settings, _stopped(settings))


def inert_in_short(settings: SelfPlaySettings) -> list[str]:
    """The same; of a control, which has no C to set, such settings are counted in one phrase."""
    kind, stopped = _kind(settings), _stopped(settings)
    of_c = [name for name, why in stopped.items() if why == kind]
    if len(of_c) < 2:
        return _named(settings, stopped)
    others = {name: why for name, why in stopped.items() if why != kind}
    return [*_named(settings, others), f"{len(of_c)} settings of C ({kind})"]


def _named(settings: SelfPlaySettings, stopped: Mapping[str, str]) -> list[str]:
    return [f"{name}={getattr(settings, name)} ({why})" for name, why in stopped.items()]


def _stopped(settings: SelfPlaySettings) -> dict[str, str]:
    """What stops them, by name, in the order of the fields."""
    stopped: dict[str, str] = {}
    parts = (_idle_of_c(settings), _idle_drawing(settings), _idle_mining(settings))
    for stops, why, names in chain.from_iterable(parts):
        if stops:
            for name in names.split():
                stopped.setdefault(name, why)  # the first reason is enough
    return {
        item.name: stopped[item.name]
        for item in fields(settings)
        if item.name in stopped and _asks(settings, item.name, item.default)
    }


def _kind(settings: SelfPlaySettings) -> str:
    return f"perturbation={settings.perturbation}"


def _asks(settings: SelfPlaySettings, name: str, default: Any) -> bool:
    """Whether a setting is given a value that asks for something."""
    value = getattr(settings, name)
    value = tuple(value) if isinstance(value, list) else value  # as defaults of lists are
    return value not in (default, _OFF.get(name, default))


def _idle_of_c(settings: SelfPlaySettings) -> list[tuple[bool, str, str]]:
    """When settings of C and of what it pays are idle, why, and which ones.

    Under a fixed gate the length is ``eps_init``, so that no price moves it. ``eps_max`` is
    what that must be below, and idle only where its default would do.
    """
    none, fixed = settings.perturbation == "none", settings.eps_gate == "fixed"
    spare = settings.eps_init < type(settings).eps_max
    kind = _kind(settings)
    scope, depth = (
        f"{name}={getattr(settings, name)}" for name in ("perturber_scope", "perturber_depth")
    )
    unpaid = "label_weight=0, content_weight=0"
    return [
        (none, kind, "perturber_scope strengths eps_max eps_init eps_mode"),
        (not settings.learns, kind, _OF_LEARNING),
        (not settings.learns and spare, kind, "eps_max"),
        (fixed, "eps_gate=fixed", "lambda_norm l2"),
        (fixed and spare, "eps_gate=fixed", "eps_max"),
        (not settings.candidates_differ, "a single one, without heads", "strengths"),
        (settings.perturber_scope != "token", f"{scope}, all tokens alike", "tv"),
        (settings.perturber_scope != "heads", scope, "perturber_heads"),
        (settings.perturber_depth < 2, depth, "perturber_width"),
        (settings.restart_below == 0, "restart_below=0", "restart_window"),
        (not settings.uses_label, unpaid, "label_similarity label_floor"),
    ]


def _idle_drawing(settings: SelfPlaySettings) -> list[tuple[bool, str, str]]:
    """Likewise of how candidates are drawn, in the states and in styles."""
    kind = _kind(settings)
    count = f"num_candidates={settings.num_candidates}"
    several = settings.num_candidates > 1
    # Then the likeliest picture is drawn, and the temperature is that of C's gradient alone.
    likeliest = not several and not settings.sample_candidates
    beyond = (settings.gradient_candidates or 0) > settings.num_candidates
    return [
        (not settings.draws, f"perturb_space={settings.perturb_space}", _OF_PICTURES),
        (likeliest and not settings.learns, f"{kind}, sample_candidates=False", "temperature"),
        (beyond, f"no more than {count}", "gradient_candidates"),
        (several, f"{count} are always sampled", "sample_candidates"),
        (settings.anchor_mode != "near", f"anchor_mode={settings.anchor_mode}", "anchor_width"),
        (not settings.styles, "styles=[]", f"{_OF_STYLES} {_OF_CHOICE}"),
        (not settings.learns, kind, _OF_CHOICE),
        (len(settings.styles) == 1, "one style", _OF_CHOICE),
        (settings.style_memory == 0, "style_memory=0", "style_entropy"),
    ]


def _idle_mining(settings: SelfPlaySettings) -> list[tuple[bool, str, str]]:
    """Likewise of what is kept of the candidates, and of looks at them.

    Without a lasting buffer ``buffer_per_source`` still holds in each micro-batch.
    """
    by = f"similarity={settings.similarity}"
    # These settings do not know of a scorer that Python gave in the place of "none".
    unjudged = f"{by}, unless a scorer is given"
    return [
        (settings.similarity == "none", unjudged, _OF_VERIFYING),
        (not settings.uses_clip, by, "similarity_model similarity_mode"),
        (settings.accept == "missed", "accept=missed", f"hard_quantile {_OF_QUANTILE}"),
        (settings.hard_quantile == 0, "hard_quantile=0", _OF_QUANTILE),
        (not settings.buffer, "buffer=False", _OF_BUFFER),
        (settings.max_replays == 1, "max_replays=1", "drop_learned"),
        (settings.keep_examples == 0, "keep_examples=0", "examples_every"),
    ]
