"""How self-play is doing: symptoms by logged figures, each with a threshold and its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unigame.methods.findings import Finding, Log, u_does_not_learn
from unigame.methods.selfplay.floor_check import ENOUGH

if TYPE_CHECKING:
    from unigame.methods.selfplay.method import SelfPlay
    from unigame.methods.selfplay.settings import SelfPlaySettings

DEAD_GRADIENT = 1e-8
"""AdamW's own epsilon: gradients below it move nothing."""
DEAD_CODES = 0.005
"""Share of image codes that C changes. At .0007 (absolute eps .02 on a small model) no answer was
lost in the trials, at .06 (relative eps .1) some were."""
TOO_LARGE = 1.0
"""Size of delta beside the states, without an anchor. At 1 random directions replace 46 % of the
codes, and a trained C left 18 % of the objects in the picture. An anchor holds the codes at any
size: what slips is then below the floor, or taken from nearly all answers."""
TOO_STRONG, ALONE = 0.95, 0.5
"""Right answers that C takes, where redrawing alone takes less than the other share: at 95 % no
candidate is left that U could learn to read, and the hardest are those that show nothing."""
DRIFTS = 0.75
"""Share below the floor. tau alone lets 40 % pass; with three of four rejected, those that are hard
are mostly hard because they show something else."""
INERT = 0.001
"""Share below the floor that is as good as none."""
FROZEN = 0.005
"""Share accepted. A buffer of 50 would take 10,000 candidates to be renewed."""


def diagnose(game: SelfPlay, entries: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The symptoms of a run; one that explains another stands for both."""
    log, settings = Log(entries), game.settings
    if not log:
        return []
    if log.mean("adversarial_ce") is None:
        says = f"no challenge in {len(log)} logs"
        return [Finding("off", says, "give rows with answers, or lower challenge_every")]
    about_c = _perturber(settings, log)
    # Of a C that destroys its pictures none passes the floor.
    off = [] if any(found.symptom == "C too strong" for found in about_c) else _off(game, log)
    inert = [] if off or about_c or game.tally.candidates < ENOUGH else _filter(settings, log)
    frozen = [] if off or about_c else _buffer(game, log)
    return [*off, *about_c, *inert, *frozen, *u_does_not_learn(log)]


def _off(game: SelfPlay, log: Log) -> list[Finding]:
    """U has learned from no hard sample, and it is not for want of room in the buffer."""
    if game.settings.beta == 0:
        return [Finding("off", "beta is 0, so hard samples weigh nothing", "raise beta")]
    below, accepted = log.mean("below_floor"), log.mean("acceptance_rate")
    if not log.never("replayed") or accepted:
        return []
    why = game.tally.why_not(game.settings, game.batch_size)
    figures = {"replayed": 0.0, "acceptance_rate": accepted or 0.0, "below_floor": below or 0.0}
    says = f"no hard sample was replayed: {why.partition(';')[0]}"
    floor = f"below_floor was {below or 0:.2f}: lower clip_floor={game.settings.clip_floor:g}"
    quantile = f"lower hard_quantile={game.settings.hard_quantile:g}, or play longer"
    return [Finding("off", says, floor if (below or 0) > 0.5 else quantile, figures)]


def _perturber(settings: SelfPlaySettings, log: Log) -> list[Finding]:
    """C does nothing, or too much, or wins by changing what the picture shows."""
    if settings.perturbation == "none":
        return []
    if settings.perturbation == "learned":
        for name, least in (
            ("perturber_learning_rate", 0.0),
            ("perturber_grad_norm", DEAD_GRADIENT),
        ):
            values = log.values(name)
            if values and max(values) <= least:
                says = f"{name} was at most {max(values):.1g} throughout, so C never moved"
                knob = "raise perturber_learning_rate"
                if name == "perturber_grad_norm":
                    knob = "raise temperature, or lower anchor: no gradient reaches C"
                return [Finding("C dead", says, knob, {name: max(values)})]
    changed = log.late("attack_codes_changed")
    if changed is not None and changed < DEAD_CODES:
        says = f"C changes {100 * changed:.2f} % of the image codes (attack_codes_changed)"
        knob = "raise eps_max and eps_init"
        if not _finds_eps(settings):
            weak = settings.candidates_differ and min(settings.strengths) < 1
            knob = (
                f"raise eps_init{' or strengths' if weak else ''}; eps_max must be above eps_init"
            )
        return [Finding("C dead", says, knob, {"attack_codes_changed": changed})]
    return _too_strong(settings, log) or _drifts(settings, log)


def _finds_eps(settings: SelfPlaySettings) -> bool:
    """Whether C sets the length of its perturbation.

    Else it is ``eps_init``. Then ``eps_max`` only bounds that, and a price on length moves nothing.
    """
    return settings.learns and settings.eps_gate == "learned"


def _shorter(settings: SelfPlaySettings) -> str:
    """What to do for a shorter perturbation."""
    if _finds_eps(settings):
        return "lower eps_max"
    # A single strength is drawn only beside several heads.
    return "lower eps_init or strengths" if settings.candidates_differ else "lower eps_init"


def _too_strong(settings: SelfPlaySettings, log: Log) -> list[Finding]:
    size = log.late("delta_relative")
    knob = _shorter(settings)
    if _finds_eps(settings):
        knob += ", or raise lambda_norm"
    anchored = settings.draws and settings.anchor > 0  # tokens are not drawn
    if size is not None and size >= TOO_LARGE and not anchored:
        says = f"the perturbation is {size:.1f} times as long as the states (delta_relative)"
        return [Finding("C too strong", says, knob, {"delta_relative": size})]
    lost, alone = log.late("attack_success_rate"), log.late("redrawn_success_rate")
    if lost is None or alone is None or lost < TOO_STRONG or alone >= ALONE:
        return []
    says = f"the attack takes {100 * lost:.0f} % of right answers, redrawing {100 * alone:.0f} %"
    figures = {"attack_success_rate": lost, "redrawn_success_rate": alone}
    return [Finding("C too strong", says, knob, figures)]


def _drifts(settings: SelfPlaySettings, log: Log) -> list[Finding]:
    below, plain = log.late("below_floor"), log.late("redrawn_similarity")
    if below is None or below < DRIFTS or (plain is not None and plain < settings.clip_floor):
        return []
    if not log.mean("acceptance_rate"):  # the floor lets nothing pass: that is "off"
        return []
    says = f"{100 * below:.0f} % of the candidates are below the floor (below_floor)"
    # Random directions pay for nothing, and tokens are not drawn.
    acts = {"label_weight": settings.learns, "anchor": settings.draws}
    raised = " or ".join(name for name in acts if acts[name])
    knob = f"raise {raised}, or {_shorter(settings)}" if raised else _shorter(settings)
    return [Finding("content drifts", says, knob, {"below_floor": below})]


def _filter(settings: SelfPlaySettings, log: Log) -> list[Finding]:
    below = log.mean("below_floor")
    wanted = settings.clip_floor > -1 and settings.similarity != "none"
    if not wanted or below is None or below > INERT:
        return []
    seen = log.mean("similarity")
    beside = "" if seen is None else f"; similarities are {seen:.3f} in the mean"
    says = f"clip_floor={settings.clip_floor:g} rejects {100 * below:.1f} % (below_floor){beside}"
    knob = "raise clip_floor toward the lower end of similarity, or set similarity=none"
    return [Finding("filter inert", says, knob, {"below_floor": below})]


def _buffer(game: SelfPlay, log: Log) -> list[Finding]:
    settings, needed = game.settings, game.settings.min_size(game.batch_size)
    if not settings.buffer:
        return []
    size, accepted = log.late("buffer_size") or 0.0, log.late("acceptance_rate")
    if log.never("replayed") and not game.tally.replayed:  # the log may end before replay begins
        says = f"it holds {size:.0f} samples and replay needs {needed}, so nothing was replayed"
        knob = "lower buffer_min_size, raise buffer_per_source, or play longer"
        return [Finding("buffer frozen", says, knob, {"buffer_size": size})]
    if accepted is None or accepted >= FROZEN:
        return []
    says = f"it is not renewed: {100 * accepted:.2f} % are accepted (acceptance_rate)"
    knob = "lower hard_quantile or clip_floor"
    return [Finding("buffer frozen", says, knob, {"acceptance_rate": accepted})]
