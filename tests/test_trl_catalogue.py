"""Every name in TRL's lists of offline losses is a method here that computes TRL's loss, or is out of scope with a reason.

The names are listed, TRL is not imported. The formulas are TRL's, written down from what its losses compute: `a` and `b` are the
summed log-ratios of chosen and rejected, `pc` and `pr` the summed log-probs, `C` and `R` the lengths. What `preftune from-trl` makes
of a name is composed and compared with them, so a hyperparameter that arrives under the wrong name shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.api import prepare
from preftune.cli.trl.losses import DIVERGENCES, OPTIONS, OUT_OF_SCOPE, REFACTORED, TRAINERS
from preftune.cli.trl.run import translate
from preftune.methods import METHODS
from preftune.numerics import log1mexp, logsigmoid, sigmoid
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.types import Loss, PreftuneError, Rows, Scored

# --- the lists ------------------------------------------------------------------------------------------------------

LISTS = {
    "dpo": "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm",
    "kto": "kto apo_zero_unpaired",
    "cpo": "sigmoid hinge ipo simpo alphapo",
    "orpo": "",
    "tpo": "sigmoid hinge ipo tpo-l",
    "bco": "",
}
NEEDED: dict[str, dict[str, Any]] = {"exo_pair": {"label_smoothing": 1e-3}}  # what TRL itself insists on
MODIFIERS: dict[str, tuple[dict[str, Any], str]] = {  # of DPOConfig, with the method that DPO's loss becomes
    "f_divergence_type reverse_kl": ({"f_divergence_type": "reverse_kl"}, "dpo"),
    "f_divergence_type forward_kl": ({"f_divergence_type": "forward_kl"}, "f-dpo"),
    "f_divergence_type js_divergence": ({"f_divergence_type": "js_divergence"}, "f-dpo"),
    "f_divergence_type alpha_divergence": ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, "f-dpo"),
    "ld_alpha": ({"ld_alpha": 0.5}, "ld-dpo"),
    "use_weighting": ({"use_weighting": True}, "wpo"),
    "label_smoothing": ({"label_smoothing": 0.1}, "dpo"),
    "sync_ref_model": ({"sync_ref_model": True}, "tr-dpo"),
    "loss_weights, MPO": ({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}, "mpo-mixed"),
    "loss_weights, RPO": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005]}, "rpo-avg"),
    "loss_weights, iterative RPO": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}, "rpo-avg"),
}
BEFORE: dict[str, tuple[dict[str, Any], str]] = {  # names that 0.29 removed or renamed, read as 0.24
    "aot_pair": ({"loss_type": "aot_pair"}, "aot-unpaired"),
    "rpo_alpha": ({"rpo_alpha": 1.0}, "rpo-avg"),
    "reference_free": ({"reference_free": True}, "dpo-reference-free"),
}
NAMES = [(trainer, name) for trainer, names in LISTS.items() for name in names.split() or [""]]


def config(name: str, **more: Any) -> dict[str, Any]:
    return {**({"loss_type": name} if name else {}), **NEEDED.get(name, {}), **more}


@pytest.mark.parametrize(("trainer", "name"), NAMES, ids=[f"{t} {n}" for t, n in NAMES])
def test_every_loss_of_every_list_is_a_method_that_composes(trainer: str, name: str) -> None:
    asked = translate(config(name), trainer=trainer)
    assert asked.method in METHODS
    assert prepare(asked.method, asked.settings).method.objective is not None


@pytest.mark.parametrize("name", MODIFIERS)
def test_every_modifier_is_a_method_that_composes(name: str) -> None:
    given, method = MODIFIERS[name]
    asked = translate(given, trainer="dpo")
    assert asked.method == method
    prepare(asked.method, asked.settings)


@pytest.mark.parametrize("name", BEFORE)
def test_every_name_that_was_removed_is_still_a_method(name: str) -> None:
    given, method = BEFORE[name]
    asked = translate(given, trainer="dpo")
    assert (asked.method, asked.version) == (method, "0.24")
    prepare(asked.method, asked.settings)


def test_the_lists_and_the_table_of_from_trl_name_the_same_losses() -> None:
    for trainer, names in LISTS.items():
        table = {part for key in TRAINERS[trainer].losses for part in key.split(", ") if part not in OPTIONS}
        assert table == set(names.split() or [""])
    assert set(OPTIONS) == {"f_divergence_type", "ld_alpha", "use_weighting", "sync_ref_model", "reference_free", "rpo_alpha"}
    assert set(DIVERGENCES) == {"reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"}


def test_the_remaining_modifier_is_out_of_scope_with_a_reason() -> None:
    assert "bias-corrected average" in OUT_OF_SCOPE["bema"]
    with pytest.raises(PreftuneError, match="bias-corrected average"):
        translate({"beta": 0.1}, trainer="bema")


@pytest.mark.parametrize("option", ["f_divergence_type", "ld_alpha", "use_weighting", "sync_ref_model"])
@pytest.mark.parametrize("name", [name for name in LISTS["dpo"].split() if name != "sigmoid"])
def test_an_option_on_another_loss_is_no_single_method_and_says_so(name: str, option: str) -> None:
    on = {"f_divergence_type": "js_divergence", "ld_alpha": 0.5, "use_weighting": True, "sync_ref_model": True}
    with pytest.raises(PreftuneError, match="is no single method here"):
        translate(config(name, **{option: on[option]}), trainer="dpo")


# --- the formulas ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """Five rows of three responses: chosen, rejected, gold."""

    s: Scored
    a: Tensor
    b: Tensor
    pc: Tensor
    pr: Tensor
    pg: Tensor
    C: Tensor
    R: Tensor
    G: Tensor


def numbers(columns: int) -> Numbers:
    """Log-probs of a few nats, lengths of a few tokens; with labels where a method reads them."""
    logp = torch.tensor([[-7.0, -9.5, -6.0], [-12.0, -8.0, -11.0], [-5.5, -5.0, -7.5], [-20.0, -28.0, -22.0], [-3.0, -6.0, -4.5]])
    ref = torch.tensor([[-8.0, -9.0, -7.0], [-10.0, -10.5, -9.0], [-5.0, -5.5, -7.0], [-24.0, -25.0, -21.0], [-3.5, -4.0, -4.0]])
    length = torch.tensor([[4, 5, 3], [9, 6, 8], [3, 3, 5], [12, 16, 13], [2, 4, 3]])
    logp, ref, length = (x[:, :columns].double() for x in (logp, ref, length))
    ids = tuple("abcde")
    rows = Rows(ids, ids, TableResponses(torch.arange(columns).expand(5, columns)), ranked=True)
    s = Scored(rows, logp, ref, length)
    (pc, pr, *_), (rc, rr, *_), (C, R, *_) = logp.T, ref.T, length.T
    return Numbers(s, pc - rc, pr - rr, pc, pr, logp[:, -1], C, R, length[:, -1])


def L(x: Tensor) -> Tensor:
    """The logistic loss."""
    return -logsigmoid(x)


def smooth(x: Tensor, e: float) -> Tensor:
    return (1 - e) * L(x) + e * L(-x)


def odds(m: Tensor) -> Tensor:
    return m - log1mexp(m)


def alpha_score(a: Tensor, coefficient: float) -> Tensor:
    """TRL since 0.29: (u^(c-1) - 1) / (c - 1), constant dropped."""
    return torch.exp((coefficient - 1) * a) / (coefficient - 1)


def alpha_score_before(a: Tensor, coefficient: float) -> Tensor:
    """TRL until 0.28: (1 - u^-c) / c, constant dropped."""
    return -torch.exp(-coefficient * a) / coefficient


def exo(h: Tensor, e: float) -> Tensor:
    """KL(sigmoid(h) || 1 - e) of two-point distributions."""
    q = sigmoid(h)
    return q * (torch.log(q) - math.log(1 - e)) + (1 - q) * (torch.log(1 - q) - math.log(e))


def sorted_gap(n: Numbers) -> Tensor:
    """Paired: the k-th smallest margin of the policy against the k-th smallest of the reference."""
    assert n.s.ref_logp is not None
    return torch.sort(n.pc - n.pr).values - torch.sort(n.s.ref_logp[:, 0] - n.s.ref_logp[:, 1]).values


Formula = Callable[[Numbers], Tensor]
NEW, OLD = "1.16", "0.24"
COMPUTED: dict[str, tuple[str, str, Mapping[str, Any], Formula]] = {  # trainer, version, configuration, TRL's loss
    "sigmoid": ("dpo", NEW, config("sigmoid", beta=0.3), lambda n: L(0.3 * (n.a - n.b))),
    "sigmoid, smoothing ignored": ("dpo", NEW, config("sigmoid", beta=0.3, label_smoothing=0.2), lambda n: L(0.3 * (n.a - n.b))),
    "sigmoid, smoothed": ("dpo", OLD, config("sigmoid", beta=0.3, label_smoothing=0.2), lambda n: smooth(0.3 * (n.a - n.b), 0.2)),
    "hinge": ("dpo", NEW, config("hinge", beta=0.3), lambda n: torch.relu(1 - 0.3 * (n.a - n.b))),
    "ipo": ("dpo", NEW, config("ipo", beta=0.3), lambda n: (n.a / n.C - n.b / n.R - 1 / 0.6) ** 2),
    "ipo before": ("dpo", OLD, config("ipo", beta=0.3), lambda n: (n.a / n.C - n.b / n.R - 1 / 0.6) ** 2),
    "exo_pair": ("dpo", NEW, config("exo_pair", beta=0.3, label_smoothing=0.01), lambda n: exo(0.3 * (n.a - n.b), 0.01)),
    "exo_pair, eps 0 before": ("dpo", OLD, {"loss_type": "exo_pair", "beta": 0.3}, lambda n: exo(0.3 * (n.a - n.b), 1e-3)),
    "nca_pair": ("dpo", NEW, config("nca_pair", beta=0.3), lambda n: L(0.3 * n.a) + L(-0.3 * n.a) / 2 + L(-0.3 * n.b) / 2),
    "robust": (
        "dpo", NEW, config("robust", beta=0.3, label_smoothing=0.2),
        lambda n: (0.8 * L(0.3 * (n.a - n.b)) - 0.2 * L(-0.3 * (n.a - n.b))) / 0.6,
    ),
    "bco_pair": ("dpo", NEW, config("bco_pair", beta=0.3), lambda n: L(0.3 * n.a) + L(-0.3 * n.b)),
    "sppo_hard": ("dpo", NEW, config("sppo_hard", beta=0.3), lambda n: (n.a - 0.5 / 0.3) ** 2 + (n.b + 0.5 / 0.3) ** 2),
    "aot": ("dpo", NEW, config("aot", beta=0.3, label_smoothing=0.2), lambda n: smooth(0.3 * sorted_gap(n), 0.2)),
    "aot_unpaired": (
        "dpo", NEW, config("aot_unpaired", beta=0.3), lambda n: L(0.3 * (torch.sort(n.a).values - torch.sort(n.b).values)),
    ),
    "aot_pair before": (
        "dpo", OLD, config("aot_pair", beta=0.3), lambda n: L(0.3 * (torch.sort(n.a).values - torch.sort(n.b).values)),
    ),
    "apo_zero": ("dpo", NEW, config("apo_zero", beta=0.3), lambda n: 1 - sigmoid(0.3 * n.a) + sigmoid(0.3 * n.b)),
    "apo_down": ("dpo", NEW, config("apo_down", beta=0.3), lambda n: sigmoid(0.3 * n.a) + 1 - sigmoid(0.3 * (n.a - n.b))),
    "discopop": (
        "dpo", NEW, config("discopop", beta=0.3, discopop_tau=0.2),
        lambda n: (1 - sigmoid(1.5 * (n.a - n.b))) * L(0.3 * (n.a - n.b)) + sigmoid(1.5 * (n.a - n.b)) * torch.exp(-0.3 * (n.a - n.b)),
    ),
    "sft": ("dpo", NEW, config("sft"), lambda n: -n.pc / n.C.mean()),  # the mean over rows is the mean over tokens
    "sigmoid_norm": ("dpo", NEW, config("sigmoid_norm", beta=3.0), lambda n: L(3 * (n.a / n.C - n.b / n.R))),
    "forward_kl": (
        "dpo", NEW, config("sigmoid", beta=0.3, f_divergence_type="forward_kl"), lambda n: L(0.3 * (-torch.exp(-n.a) + torch.exp(-n.b))),
    ),
    "js_divergence": (
        "dpo", NEW, config("sigmoid", beta=0.3, f_divergence_type="js_divergence"), lambda n: L(0.3 * (logsigmoid(n.a) - logsigmoid(n.b))),
    ),
    "js_divergence before": (
        "dpo", OLD, config("sigmoid", beta=0.3, f_divergence_type="js_divergence", label_smoothing=0.2),
        lambda n: smooth(0.3 * (logsigmoid(n.a) - logsigmoid(n.b)), 0.2),
    ),
    "alpha_divergence": (
        "dpo", NEW, config("sigmoid", beta=0.3, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3),
        lambda n: L(0.3 * (alpha_score(n.a, 0.3) - alpha_score(n.b, 0.3))),
    ),
    "alpha_divergence before": (
        "dpo", OLD, config("sigmoid", beta=0.3, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3),
        lambda n: L(0.3 * (alpha_score_before(n.a, 0.3) - alpha_score_before(n.b, 0.3))),
    ),
    "alpha_divergence at its default before": (
        "dpo", OLD, config("sigmoid", beta=0.3, f_divergence_type="alpha_divergence"),
        lambda n: L(0.3 * (alpha_score_before(n.a, 1.0) - alpha_score_before(n.b, 1.0))),
    ),
    "alpha_divergence at its default": (
        "dpo", NEW, config("sigmoid", beta=0.3, f_divergence_type="alpha_divergence"),
        lambda n: L(0.3 * (alpha_score(n.a, 0.5) - alpha_score(n.b, 0.5))),
    ),
    "reference_free": ("dpo", OLD, config("sigmoid", beta=0.3, reference_free=True), lambda n: L(0.3 * (n.pc - n.pr))),
    "rpo_alpha, each row alike": (
        "dpo", OLD, config("sigmoid", beta=0.3, rpo_alpha=0.7), lambda n: L(0.3 * (n.a - n.b)) - 0.7 * n.pc / n.C,
    ),
    "sigmoid + sft, each row alike": (
        "dpo", NEW, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.005], "beta": 0.3},
        lambda n: L(0.3 * (n.a - n.b)) - 0.005 * n.pc / n.C,
    ),
    "MPO, each row alike": (
        "dpo", NEW, {"loss_type": ["sft", "sigmoid", "bco_pair"], "loss_weights": [1.0, 0.8, 0.2], "beta": 0.3},
        lambda n: 0.8 * L(0.3 * (n.a - n.b)) + 0.2 * (L(0.3 * n.a) + L(-0.3 * n.b)) - n.pc / n.C,
    ),
    "cpo sigmoid": (
        "cpo", NEW, config("sigmoid", beta=0.3, cpo_alpha=0.7, label_smoothing=0.2),
        lambda n: smooth(0.3 * (n.pc - n.pr), 0.2) - 0.7 * n.pc / n.C,
    ),
    "cpo hinge": ("cpo", NEW, config("hinge", beta=0.3), lambda n: torch.relu(1 - 0.3 * (n.pc - n.pr)) - n.pc / n.C),
    "cpo ipo": ("cpo", NEW, config("ipo", beta=0.3, cpo_alpha=0.7), lambda n: (n.pc / n.C - n.pr / n.R - 1 / 0.6) ** 2 - 0.7 * n.pc / n.C),
    "cpo simpo": (
        "cpo", NEW, config("simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0), lambda n: L(2 * (n.pc / n.C - n.pr / n.R - 0.7 / 2.0)),
    ),
    "cpo simpo with TRL's defaults": (
        "cpo", NEW, config("simpo"), lambda n: L(0.1 * (n.pc / n.C - n.pr / n.R - 0.5 / 0.1)) - n.pc / n.C,
    ),
    "cpo alphapo": (
        "cpo", NEW, config("alphapo", beta=2.0, simpo_gamma=0.7, alpha=0.25),
        lambda n: L(2 * ((1 - torch.exp(-0.25 * n.pc / n.C)) / 0.25 - (1 - torch.exp(-0.25 * n.pr / n.R)) / 0.25) - 0.7),
    ),
    "cpo alphapo as TRL saves it": (
        "cpo", NEW, config("simpo", beta=2.0, simpo_gamma=0.7, alpha=0.25, cpo_alpha=0.0),
        lambda n: L(2 * ((1 - torch.exp(-0.25 * n.pc / n.C)) / 0.25 - (1 - torch.exp(-0.25 * n.pr / n.R)) / 0.25) - 0.7),
    ),
    "orpo, completion alone": ("orpo", NEW, {"beta": 0.3}, lambda n: -n.pc / n.C + 0.3 * L(odds(n.pc / n.C) - odds(n.pr / n.R))),
    "tpo sigmoid": (
        "tpo", NEW, config("sigmoid", beta=0.3, tpo_alpha=0.7, label_smoothing=0.2),
        lambda n: smooth(0.3 * (n.pc - n.pr), 0.2) - 0.7 * n.pg / n.G,
    ),
    "tpo hinge": ("tpo", NEW, config("hinge", beta=0.3), lambda n: torch.relu(1 - 0.3 * (n.pc - n.pr)) - n.pg / n.G),
    "tpo ipo": ("tpo", NEW, config("ipo", beta=0.3), lambda n: (n.pc / n.C - n.pr / n.R - 1 / 0.6) ** 2 - n.pg / n.G),
    "tpo tpo-l": (
        "tpo", NEW, config("tpo-l", beta=0.3, tpo_l_gamma=0.7, label_smoothing=0.2),
        lambda n: smooth(0.3 * (n.pc / n.C - n.pr / n.R) - 0.7, 0.2) - n.pg / n.G,
    ),
}  # fmt: skip


def value(loss: Loss) -> Tensor:
    """What the learner minimises."""
    return loss.row.sum() / (len(loss.row) if loss.count is None else loss.count.sum())


@pytest.mark.parametrize("name", COMPUTED)
def test_the_command_computes_the_loss_that_trl_computes(name: str) -> None:
    """Means over the batch, since sorting changes the order of the rows and token means their weights."""
    trainer, version, given, formula = COMPUTED[name]
    asked = translate(given, trainer=trainer, version=version)
    n = numbers(3 if trainer == "tpo" else 2)
    objective = prepare(asked.method, asked.settings).method.objective
    assert value(objective(n.s)).item() == pytest.approx(formula(n).mean().item(), rel=1e-12)


def test_every_loss_of_the_lists_has_its_formula_compared() -> None:
    compared = {
        (trainer, names if isinstance(names, str) else "+".join(names))
        for trainer, _, given, _ in COMPUTED.values()
        for names in [given.get("loss_type", "")]
    }
    unpaired = {("kto", "kto"), ("kto", "apo_zero_unpaired"), ("bco", "")}  # below
    assert {(trainer, name) for trainer, name in NAMES} <= compared | unpaired


def labelled(z0: float) -> Scored:
    """Rows of two responses, one good and one bad, and two mismatched ones whose log-ratio is z0."""
    n = numbers(2)
    assert n.s.ref_logp is not None
    rows = Rows(n.s.rows.id, n.s.rows.prompt, TableResponses(torch.arange(4).expand(5, 4)), desirable=torch.tensor([[True, False]] * 5))
    return Scored(rows, torch.cat([n.s.logp, n.s.ref_logp + z0], 1), torch.cat([n.s.ref_logp, n.s.ref_logp], 1), torch.ones(5, 4))


def test_kto_computes_the_loss_that_trl_computes() -> None:
    asked = translate({"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}, trainer="kto")
    loss = prepare(asked.method, asked.settings).method.objective(labelled(0.8))
    n = numbers(2)
    formula = torch.cat([1.5 * (1 - sigmoid(0.3 * (n.a - 0.8))), 0.5 * (1 - sigmoid(0.3 * (0.8 - n.b)))])
    assert value(loss).item() == pytest.approx(formula.mean().item(), rel=1e-12)


def single(s: Scored) -> Scored:
    """The labelled responses alone."""
    rows = s.rows.replace(response=TableResponses(torch.arange(2).expand(5, 2)))
    assert s.ref_logp is not None
    return Scored(rows, s.logp[:, :2], s.ref_logp[:, :2], torch.ones(5, 2))


def test_apo_zero_unpaired_computes_the_loss_that_trl_computes() -> None:
    asked = translate({"loss_type": "apo_zero_unpaired", "beta": 0.3}, trainer="kto")
    loss = prepare(asked.method, asked.settings).method.objective(single(labelled(0.0)))
    n = numbers(2)
    formula = torch.cat([1 - sigmoid(0.3 * n.a), sigmoid(0.3 * n.b)])
    assert value(loss).item() == pytest.approx(formula.mean().item(), rel=1e-12)


def test_bco_computes_the_loss_of_its_first_step() -> None:
    """delta is the mean of all rewards so far, this batch's included."""
    asked = translate({"beta": 0.3}, trainer="bco")
    loss = prepare(asked.method, asked.settings).method.objective(single(labelled(0.0)))
    n = numbers(2)
    delta = 0.3 * torch.cat([n.a, n.b]).mean()
    formula = torch.cat([L(0.3 * n.a - delta), L(-(0.3 * n.b - delta))])
    assert value(loss).item() == pytest.approx(formula.mean().item(), rel=1e-12)


def test_the_trainer_was_written_anew_in_0_29() -> None:
    assert REFACTORED == (0, 29)


@pytest.mark.parametrize(("version", "limit"), [(NEW, math.inf), (OLD, 1.0)])
def test_wpo_computes_the_weights_that_trl_computes(version: str, limit: float) -> None:
    """exp of the mean of log pi - log sum_v pi(v)^2 over each response's tokens; 0.24 held the product at 1."""
    asked = translate(config("sigmoid", beta=0.3, use_weighting=True), trainer="dpo", version=version)
    n = numbers(2)
    collision = torch.tensor([[-8.0, -12.0], [-13.0, -9.0], [-9.0, -7.0], [-21.0, -29.0], [-2.0, -5.0]], dtype=torch.float64)
    loss = prepare(asked.method, asked.settings).method.objective(replace(n.s, collision=collision))
    assert n.s.length is not None
    weight = torch.exp(((n.s.logp - collision) / n.s.length).sum(1)).clamp(max=limit)
    assert (weight > 1).any() == (limit == math.inf)
    assert value(loss).item() == pytest.approx((weight * L(0.3 * (n.a - n.b))).mean().item(), rel=1e-12)


def test_ld_dpo_computes_the_loss_that_trl_computes() -> None:
    """The log-probs of the tokens beyond the shorter length count ld_alpha times, in policy and reference."""
    asked = translate(config("sigmoid", beta=0.3, ld_alpha=0.4), trainer="dpo")
    n = numbers(2)
    assert n.s.ref_logp is not None
    share = torch.tensor([0.25, 0.75], dtype=torch.float64)  # of the log-probs, before and behind the common length
    scored = replace(n.s, segment_logp=n.s.logp[:, :, None] * share, segment_ref_logp=n.s.ref_logp[:, :, None] * share)
    loss = prepare(asked.method, asked.settings).method.objective(scored)
    kept = 0.25 + 0.4 * 0.75
    assert value(loss).item() == pytest.approx(L(0.3 * kept * (n.a - n.b)).mean().item(), rel=1e-12)


def test_tr_dpo_moves_the_reference_as_trl_does() -> None:
    """reference <- alpha policy + (1 - alpha) reference, every so many steps."""
    asked = translate(config("sigmoid", sync_ref_model=True, ref_model_mixup_alpha=0.25, ref_model_sync_steps=7), trainer="dpo")
    method = prepare(asked.method, asked.settings).method
    policy, reference = TabularPolicy(torch.tensor([[4.0, 0.0]])), TabularPolicy(torch.zeros(1, 2)).copy()
    moved = method.reference({"current": policy, "reference": reference})["reference"]
    assert isinstance(moved, TabularPolicy) and moved.logits.tolist() == [[1.0, 0.0]]
    assert method.reference_every == 7
