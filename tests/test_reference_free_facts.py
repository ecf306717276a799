"""Facts of the reference-free losses that fit no table."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from facts import DRAW, B, at, close, gradient, pairs, row
from facts_reference_free import triples
from preftune import methods
from preftune.objectives.reference_free import LINKS, alphapo, arpo, asft, cpo, gold_nll, simpo
from preftune.policies.tabular import TableResponses
from preftune.types import PreftuneError, Rows, Scored, needs_of


def one(logp: list[float], length: list[float], dtype: torch.dtype = torch.float64) -> Scored:
    tensor = lambda values: torch.tensor([values], dtype=dtype)
    rows = Rows(("this row",), (0,), TableResponses(torch.arange(len(logp))[None]), ranked=True)
    return Scored(rows, tensor(logp).requires_grad_(), None, tensor(length))


@pytest.mark.parametrize("link", LINKS)
def test_links_of_cpo_at_a_lead_of_4_nats(link: str) -> None:
    """logp (-10, -14), beta .1: z = .4. log(1 + e^-.4) = .513015; 1 - .4 = .6; (4 - 5)^2 = 1."""
    expected = {"logistic": 0.513015, "hinge": 0.6, "squared": 1.0}[link]
    assert cpo(one([-10.0, -14.0], [5.0, 7.0]), link=link).row.item() == pytest.approx(expected, abs=1e-6)


def test_cpo_reads_no_lengths_where_it_sums() -> None:
    s = replace(pairs(), length=None)
    assert cpo(s).row.isfinite().all()
    with pytest.raises(PreftuneError, match="lengths"):
        cpo(s, per_token=True)


def test_a_smoothed_cpo_turns_back_at_logit_of_the_flip_rate() -> None:
    s = pairs()
    for z, sign in [(math.log(9) - 0.1, -1), (math.log(9) + 0.1, 1)]:
        moved = at(s, s.logp[:, 1:] + torch.tensor([[z, 0.0]]))
        assert (gradient(row(partial(cpo, beta=1.0, label_smoothing=0.1)), moved)[:, 0].sign() == sign).all()


def test_per_token_losses_move_winner_and_loser_by_their_own_lengths() -> None:
    s = pairs()
    for loss in (partial(cpo, per_token=True), partial(simpo, label_smoothing=0.1), partial(alphapo, alpha=0.0)):
        pull = gradient(row(loss), s) * s.length
        close(pull[:, 0], -pull[:, 1])


# --- alphapo ----------------------------------------------------------------------------------------------------------


def test_alphapo_pulls_unlikely_responses_harder_with_a_positive_alpha_and_softer_with_a_negative_one() -> None:
    """d r / d m = e^(-alpha m): between tokens of probability e^-1 and e^-3 it grows by e^(2 alpha)."""
    s = one([-10.0, -30.0], [10.0, 10.0])
    for alpha in (-0.5, 0.25, 1.0):
        pull = gradient(row(partial(alphapo, alpha=alpha)), s)[0]
        assert pull[1].item() / -pull[0].item() == pytest.approx(math.exp(2 * alpha), rel=1e-12)


@pytest.mark.parametrize(("dtype", "inside", "outside"), [(torch.float32, -340.0, -360.0), (torch.float64, -2800.0, -2860.0)])
def test_alphapo_is_finite_up_to_its_stated_mean_and_names_the_row_beyond(dtype: torch.dtype, inside: float, outside: float) -> None:
    """alpha |m| < log of the largest number: 88.7 and 709.8, that is |m| < 355 and 2839 at alpha .25."""
    s = one([inside, -2.0], [1.0, 1.0], dtype)
    assert alphapo(s).row.isfinite().all() and gradient(row(alphapo), s).isfinite().all()
    with pytest.raises(PreftuneError, match=r"\['this row'\].*lower alpha"):
        alphapo(one([outside, -2.0], [1.0, 1.0], dtype))


def test_alphapo_with_a_negative_alpha_is_finite_everywhere() -> None:
    s = one([-1e8, -2.0], [1.0, 1.0], torch.float32)
    assert alphapo(s, alpha=-0.5).row.isfinite().all() and gradient(row(partial(alphapo, alpha=-0.5)), s).isfinite().all()


# --- arpo -------------------------------------------------------------------------------------------------------------


def test_arpo_rejects_more_the_further_the_two_are_apart_and_never_more_than_cpo() -> None:
    """k1 = .9, k2 = .4: q = -.1 at no distance, 1 from log(2 / .9) / .4 = 1.99627 nats a token on."""
    rejection = [
        arpo(one([-100.0, -100.0 - 50 * gap], [50.0, 50.0])).metrics["rejection"].item() for gap in (0.0, 0.5, 1.0, 1.9, 2.0, 30.0)
    ]
    assert rejection == sorted(rejection) and rejection[0] == pytest.approx(-0.1) and rejection[-2:] == pytest.approx([1.0, 1.0])


def test_arpo_pulls_an_equally_likely_rejected_response_up_and_cpo_does_not() -> None:
    s = one([-45.0, -45.0], [30.0, 30.0])
    assert gradient(row(arpo), s)[0, 1] < 0 < gradient(row(cpo), s)[0, 1]


def test_the_gradient_through_arpos_rejection_can_push_a_trailing_short_winner_down() -> None:
    """m = (-1.6, -1.4), lengths 15 and 60: d z / d logp0 = beta (1 + |logp1| d q / d logp0) < 0. The loser's term outweighs it."""
    s = one([-24.0, -84.0], [15.0, 60.0])
    q = 0.9 * math.exp(0.4 * 0.2)
    slope = 1 + 84.0 * -0.4 * q / 15  # dq/dm0 = -k2 (q + 1) on the trailing side
    assert slope < 0 and gradient(row(arpo), s)[0, 0] > 0


def test_arpo_is_finite_where_its_exponential_is_not() -> None:
    s = one([-1.0, -1e6], [1.0, 1.0], torch.float32)
    assert arpo(s).row.isfinite().all() and gradient(row(arpo), s).isfinite().all()


# --- asft and triple-po -----------------------------------------------------------------------------------------------


def test_asft_pushes_each_response_by_itself() -> None:
    s = pairs()
    other = at(s, torch.stack([s.logp[:, 0], s.logp[:, 1] * (1 + torch.rand(B, generator=DRAW))], 1))
    close(gradient(row(asft), s)[:, 0], gradient(row(asft), other)[:, 0])
    assert (gradient(row(asft), s)[:, 1] > 0).all()


def test_asfts_unlikelihood_is_mild_for_long_unlikely_responses_and_steep_for_certain_ones() -> None:
    """d align / d logp1 = e^m / (1 - e^m) / L: .00857 at m = log .3, L = 50; 19.5 at m = -.001, L = 50."""
    pull = lambda m: gradient(row(asft), one([-20.0, 50 * m], [20.0, 50.0]))[0, 1].item()
    assert pull(math.log(0.3)) == pytest.approx(0.3 / 0.7 / 50, rel=1e-12)
    assert pull(-0.001) == pytest.approx(1 / math.expm1(0.001) / 50, rel=1e-9)


def test_a_certain_rejected_response_has_an_infinite_loss_in_asft_and_no_clamp_hides_it() -> None:
    assert asft(one([-20.0, 0.0], [20.0, 20.0])).row.isinf().all()


def test_triple_po_pulls_the_gold_response_up_by_alpha_over_its_length_and_leaves_it_out_of_the_pair() -> None:
    s = triples()
    pull = gradient(row(methods.triple_po(0.5, 0.3).objective), s)
    close(pull[:, 2], -0.3 / s.length[:, 2])
    close(pull[:, :2], gradient(row(partial(cpo, beta=0.5)), s)[:, :2])
    close(gold_nll(s).metrics["nll"], -s.mean_logp[:, 2])


def test_triple_po_reads_three_responses_and_no_reference() -> None:
    needs = needs_of(methods.triple_po().objective)
    assert needs.columns == 3 and not needs.reference and needs.labels == ("ranked",)
    assert needs_of(methods.cpo().objective).columns == 2


def test_tpo_l_at_trls_defaults_is_nearly_constant() -> None:
    """beta .01 on means: over all of these pairs the loss stays within 1 % of log(1 + e^.5) = .974."""
    found = cpo(pairs(), beta=0.01, gamma=0.5, per_token=True).row
    assert (found - math.log1p(math.exp(0.5))).abs().max() < 0.01


def test_simpos_two_ways_to_say_its_margin_hold_with_its_options() -> None:
    s = pairs()
    by_gamma = methods.simpo(2.5, gamma=1.0, label_smoothing=0.1, sft_weight=0.2)
    by_ratio = methods.simpo(2.5, gamma_beta_ratio=0.4, label_smoothing=0.1, sft_weight=0.2)
    close(by_gamma.objective(s).row, by_ratio.objective(s).row)
    assert by_gamma.notes == by_ratio.notes == ("simpo: gamma = 1, gamma / beta = 0.4",)
