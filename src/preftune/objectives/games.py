"""Objectives of self-play against an opponent, whose win rates come with the rows."""

from __future__ import annotations

from dataclasses import replace

from ..numerics import average, not_negative, positive, sigmoid, variance
from ..types import Loss, PreftuneError, Scored, needs
from .online import judged_pairs
from .pairwise import PULL
from .pointwise import sppo


@needs(columns="K", labels=("winrate",), optional=("law",))
def online_ipo(s: Scored, *, beta: float = 0.1) -> Loss:
    """Online IPO: regress differences of log-ratios to differences of win rates over beta.

    loss = E_{y, y'} [(u(y) - u(y'))^2] = 2 Var(u),   u = logratio - winrate / beta

    Over an enumerated law [B, K] the expectation is exact; over K drawn responses it is the unbiased estimate, and for
    K = 2 the familiar squared pair loss.

    Reads   winrate [B, K] = P(response beats the opponent); law [B, K] where the columns enumerate a distribution
    Limits  0 at log pi = log pi_ref + winrate / beta + const: the best answer to that opponent. With uniform law over n
            actions an SGD step lr is the mirror-descent step eta with eta beta = 4 lr / n
    Not     offline IPO, whose target 1 / (2 beta) is a hard label; here a sure win moves the target by 1 / beta at most
    Source  arXiv:2403.08635 eq. 10 and arXiv:2503.08942 (generic online IPO loss)
    """
    positive("beta", beta, PULL)
    if s.rows.winrate is None:
        raise PreftuneError("online_ipo reads winrate, but the rows carry none; collect with a judge against an opponent")
    winrate = s.rows.winrate.to(s.logratio.dtype)
    spread = 2 * variance(s.logratio - winrate / beta, s.rows.law)
    return Loss(spread, {"winrate": average(winrate, s.rows.law)})


# --- by rounds, from the policy that the last round ended with ---------------------------------------------------------


def between(s: Scored, beta: float, inertia: float) -> Scored:
    """The same rows with pi_ref^beta pi_previous^inertia, to the power 1 / (beta + inertia), in the place of the reference."""
    not_negative("beta", beta, PULL)
    not_negative("inertia", inertia, "it is the pull towards the policy of the last round, which weighs what beta leaves")
    positive("beta + inertia", beta + inertia, "it is the pull towards both, and its inverse the step")
    if s.ref_logp is None or "previous" not in s.other:
        raise PreftuneError("this objective reads log-probs under the reference and under the role previous; keep both, see `inpo`")
    pulls = beta * s.ref_logp.detach() + inertia * s.other["previous"].to(s.logp)
    return replace(s, ref_logp=pulls / (beta + inertia))


@needs(columns="K", labels=("winrate",), optional=("law",), other=("previous",))
def inpo(s: Scored, *, beta: float = 0.1, inertia: float = 0.2) -> Loss:
    """A step of mirror descent as a regression: `online_ipo` with pull beta to the reference and pull inertia to the last round's policy.

    loss = E_{y, y'} [(h - (winrate(y) - winrate(y')) / (beta + inertia))^2] = 2 Var(u) as there
    h = log pi(y) / pi(y') - [beta log pi_ref(y) / pi_ref(y') + inertia log pi_t(y) / pi_t(y')] / (beta + inertia)

    Reads   winrate [B, K] = P(response beats pi_t), pi_t the role previous; law [B, K] where the columns enumerate a distribution
    Limits  0 at pi_ref^(beta / sum) pi_t^(inertia / sum) exp(winrate / sum) / Z, sum = beta + inertia: mirror descent with step
            1 / sum. inertia 0: `online_ipo`; beta 0: multiplicative weights
    Not     a pull to the reference of 1 / (2 tau), as a later survey prints the target: it is 1 / (2 (beta + inertia))
    Source  arXiv:2407.00617 prop. 6 (its tau is our beta, its eta our beta + inertia)
    """
    return online_ipo(between(s, beta, inertia), beta=beta + inertia)


@needs(columns="K", labels=("beats",), optional=("law",), other=("previous",))
def inpo_pairs(s: Scored, *, beta: float = 0.1, inertia: float = 0.2) -> Loss:
    """`inpo` with hard labels: the winner's h is regressed to 1 / (2 (beta + inertia)).

    loss = E_{w, l} [(h(w, l) - 1 / (2 (beta + inertia)))^2],   h as in `inpo`

    Reads   beats [B, K, K], where P_ij is 1 or 0 as the labels fell (or the probability itself: the expectation over labels)
    Limits  the loss of `inpo` up to a constant in expectation, if both responses are draws of pi_t and the label is drawn with the
            judge's probability. Best against worst of many, or the likelier as the winner, breaks both conditions
    Source  arXiv:2407.00617 eq. 10, alg. 1
    """
    return judged_pairs(between(s, beta, inertia), beta=beta + inertia, loss="ipo")


@needs(columns="K", labels=("winrate",), optional=("law",))
def dno(s: Scored, *, beta: float = 0.1) -> Loss:
    """Direct Nash optimisation: the differences of implicit rewards explain the differences of win rates, by cross-entropy over all pairs.

    loss = -E_{i, j} [z log sigmoid(D) + (1 - z) log sigmoid(-D)]
    D = beta (logratio_i - logratio_j),   z = sigmoid(winrate_i - winrate_j)

    Reads   winrate [B, K] = P(response beats pi_t), pi_t the reference of the round; law [B, K] where the columns enumerate a distribution
    Limits  least at pi_t exp(winrate / beta) / Z, whatever the law of the pairs if it has full support: multiplicative weights with
            step 1 / beta. z = 1 or 0: `dpo` against pi_t
    Not     dpo with the judge's probability as a soft label: z lies in [.27, .73], since win rates differ by 1 at most
    Source  arXiv:2404.03715 alg. 1 (its eta is our beta)
    """
    if s.rows.winrate is None:
        raise PreftuneError("dno reads winrate, but the rows carry none; collect with a judge against the policy of the round")
    winrate = s.rows.winrate.to(s.logp)
    explained = s.rows.replace(beats=sigmoid(winrate[:, :, None] - winrate[:, None, :]))
    return judged_pairs(replace(s, rows=explained), beta=beta)


@needs(columns="K", labels=("score",), optional=("law",))
def gpo(s: Scored, *, beta: float = 0.001, centred: bool = False) -> Loss:
    """General preference optimisation: `sppo` with a mean preference score in the place of the win rate over one half.

    loss = E_y[u^2],   u = logratio - score / beta,   score_i = E_j s(i > j);   centred: loss = E_y[(u - E u)^2]

    Reads   score [B, K], means over pi_t, skew: s(i > j) = -s(j > i)
    Limits  centred, over a law: least at pi_t exp(score / beta) / Z. With s = P - 1/2 it is `sppo`
    Not     a reward: under cyclic preferences the mean score of a response moves with pi_t
    Source  arXiv:2410.02197; `sppo_score` of its code, which stores s(i > j) - s(j > i) = 2 s: its beta .001 is this .0005
    """
    if s.rows.score is None:
        raise PreftuneError("gpo reads score, but the rows carry none; collect with a judge and take mean preference scores")
    shifted = s.rows.replace(winrate=s.rows.score + 0.5)
    loss = sppo(replace(s, rows=shifted), beta=beta, centred=centred)
    return Loss(loss.row, {"score": loss.metrics["winrate"] - 0.5})
