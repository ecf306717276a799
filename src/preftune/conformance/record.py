"""The table: every method with its composition, closed form and limit, and what its paper states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .. import methods
from ..exact import nash
from ..exact.optimum import dpo_optimum
from ..types import Method
from .forms import (
    ALPHA,
    DECAY,
    B,
    K,
    Limit,
    Setting,
    Step,
    ascend,
    at_rest,
    average_step,
    beaten,
    biased,
    equilibrium,
    lottery,
    lottery_of_log_odds,
    magnet_step,
    mixed,
    momentum_step,
    optimistic_step,
    own_pairs,
    sppo_step,
    standardised_step,
    surprise,
    vpo_step,
    xpo_step,
)

# --- the record ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A method on exact games. Its name in RECORDS is that of the method, then what tells it from others of this name."""

    compose: Callable[[float, float], Method]  #      eta, beta -> the method
    step: Step
    theory: str  #                                    what the paper says of its iterates, and where
    source: str
    limit: Limit | None = equilibrium  #              where its last iterate rests if anywhere
    lr: Callable[[Setting], float] | None = None  #   of plain gradient steps; None: by rounds, each solved exactly
    states: int = 1
    pulled: bool = True  #                            plays the game with the pull to mu; False: the one without
    period: int = 1  #                                steps after which its map is the same
    sure: bool = True  #                              can be asked about games where a win is certain
    smooth: bool = True  #            its closed form has a derivative here


def uniform(g: Setting) -> float:
    return g.eta * g.beta * g.n / 4


def likely(times: float) -> Callable[[Setting], float]:
    """The rate at which a policy gradient of that size steps by eta n p: mirror descent where p is uniform."""
    return lambda g: g.eta * g.n / times


def paired(g: Setting) -> float:
    return g.eta * g.n / (2 * g.beta)


def once(rule: Callable[[Setting, Tensor], Tensor]) -> Step:
    return lambda s, g, t: (rule(g, s[0]),)


MIRROR = once(lambda g, x: nash.mirror_descent_step(x, g.log_mu, g.P, g.eta, g.beta))
HEDGE = once(lambda g, x: nash.hedge_step(x, g.P, g.eta))
GRADIENT = once(lambda g, x: ascend(g, x, x.softmax(-1), x))
DISAGREE = once(lambda g, x: x + surprise(g, x, own_pairs(x)))
AVERAGE = "the average of the iterates goes to a minimax winner"

RECORDS: dict[str, Record] = {
    "online-ipo, uniform pairs": Record(
        lambda eta, beta: methods.online_ipo(beta, pairs="uniform"),
        MIRROR,
        "the equilibrium is its only fixed point (prop. 4.1); mirror descent, for which a rate needs small steps",
        "2403.08635",
        lr=uniform,
    ),
    "online-ipo": Record(
        lambda eta, beta: methods.online_ipo(beta),
        GRADIENT,
        "the equilibrium is its only fixed point (prop. 4.1)",
        "2403.08635",
        lr=uniform,
    ),
    "inpo": Record(
        lambda eta, beta: methods.inpo(beta, eta=1 / eta),
        MIRROR,
        "KL(p*, p_t) <= (1 - eta beta)^t KL(p*, p_0) + 8 C^2 eta / beta; to p* for steps 2 / (beta (t + 2))",
        "2407.00617",
        states=1,
    ),
    "egpo": Record(
        lambda eta, beta: methods.egpo(beta),
        once(lambda g, x: nash.extragradient_step(x, g.log_mu, g.P, g.eta, g.beta)),
        "KL(p*, p_t) <= (1 - eta beta)^t KL(p*, p_0) for steps below a constant",
        "2503.08942",
        lr=uniform,
    ),
    "egpo-optimistic": Record(
        lambda eta, beta: methods.egpo_optimistic(beta, momentum=1 - eta * beta),
        optimistic_step,
        "ours; contracts by 1 - eta beta a step from every start up to `nash.optimistic_safe`",
        "none",
        lr=uniform,
        states=2,
    ),
    "nash-md": Record(
        lambda eta, beta: methods.nash_md(beta, mixture=eta * beta),
        once(lambda g, x: nash.nash_md_step(x, g.log_mu, g.P, g.eta, g.beta)),
        "KL(p*, p_t) <= (1 - eta beta)^t KL(p*, p_0) + 2 eta / beta; to p* for steps 2 / (beta (t + 2)) (theorem 1)",
        "2312.00886",
        limit=biased(lambda g: g.eta * g.beta),
        lr=uniform,
    ),
    "nash-md-pg": Record(
        lambda eta, beta: methods.nash_md_pg(beta, mixture=B),
        once(lambda g, x: ascend(g, x, x.softmax(-1), mixed(g, x, B))),
        "none for a constant mixture",
        "2312.00886",
        limit=biased(lambda g: B),
        lr=likely(1),
    ),
    "nash-ema-pg": Record(
        lambda eta, beta: methods.nash_ema_pg(beta, decay=DECAY),
        average_step,
        "none",
        "2312.00886",
        lr=likely(1),
        states=2,
    ),
    "ipo-md": Record(
        lambda eta, beta: methods.ipo_md(beta, b=B),
        once(lambda g, x: ascend(g, x, mixed(g, x, B).softmax(-1), mixed(g, x, B))),
        "its fixed point is that of nash-md-pg (prop. 5.2)",
        "2403.08635",
        limit=biased(lambda g: B),
        lr=uniform,
    ),
    "mpo": Record(
        lambda eta, beta: methods.mpo(beta, K=K),
        magnet_step,
        "the last iterate goes to the equilibrium without a pull; linearly between two moves of the magnet",
        "2410.16714",
        limit=lottery,
        lr=lambda g: uniform(g) / (1 + g.eta * g.beta),
        states=2,
        pulled=False,
        period=K,
    ),
    "sppo, centred": Record(
        lambda eta, beta: methods.sppo(eta, train_on="all", centred=True), HEDGE, AVERAGE, "2405.00675", limit=lottery, pulled=False
    ),
    "sppo": Record(
        lambda eta, beta: methods.sppo(eta, train_on="all"), sppo_step, AVERAGE, "2405.00675", limit=lottery, pulled=False, smooth=False
    ),
    "dno": Record(lambda eta, beta: methods.dno(1 / eta), HEDGE, AVERAGE, "2404.03715", limit=lottery, pulled=False),
    "gpo": Record(
        lambda eta, beta: methods.gpo(1 / eta, train_on="all", centred=True),
        once(lambda g, x: x + g.eta * beaten(g.P.logit(), x)),
        "none; multiplicative weights in the game of log-odds, whose equilibrium is another unless there is a sure winner",
        "2410.02197",
        limit=lottery_of_log_odds,
        pulled=False,
        sure=False,
    ),
    "spo-minimax": Record(
        lambda eta, beta: methods.spo_minimax(0.0),
        once(lambda g, x: ascend(g, x, x.softmax(-1), x, beta=0.0)),
        AVERAGE + ", with any learner without regret",
        "2401.04056",
        limit=lottery,
        lr=likely(1),
        pulled=False,
    ),
    "apo-nesterov": Record(
        lambda eta, beta: methods.apo_nesterov(ALPHA, 1 / eta, inner="sppo"),
        momentum_step,
        "the sub-optimality under a fixed reward falls faster by 1 - alpha",
        "2410.06293",
        limit=lottery,
        states=2,
        pulled=False,
    ),
    "grpo": Record(
        lambda eta, beta: methods.grpo(reward="winrate"),
        standardised_step,
        "none for games",
        "2402.03300",
        limit=None,
        lr=likely(10),
        pulled=False,
    ),
    "rloo": Record(lambda eta, beta: methods.rloo(beta, reward="winrate"), GRADIENT, "none for games", "2402.14740", lr=likely(1)),
    "copg": Record(
        lambda eta, beta: methods.copg(beta, reward="winrate"), GRADIENT, "none for games (theorem 1: rewards)", "2406.19185", lr=likely(2)
    ),
    "ppo": Record(
        lambda eta, beta: methods.ppo(kl_coef=beta, whiten=False, vf_coef=0.0, lam=1.0, collect_every="step", reward="winrate"),
        GRADIENT,
        "none for games",
        "1707.06347",
        lr=likely(1),
    ),
    "osp": Record(
        lambda eta, beta: methods.osp(beta),
        once(lambda g, x: dpo_optimum(g.P, g.log_mu, g.beta, law=own_pairs(x))),
        "none for games",
        "2405.14103",
        limit=at_rest(DISAGREE),
        smooth=False,
    ),
    "online-dpo": Record(
        lambda eta, beta: methods.online_dpo(beta),
        DISAGREE,
        "none for games; 2403.08635 (app. F): not the equilibrium",
        "2402.04792",
        limit=at_rest(DISAGREE),
        lr=paired,
    ),
    "xpo": Record(
        lambda eta, beta: methods.xpo(beta),
        xpo_step,
        "few samples under Bradley-Terry; none for games",
        "2405.21046",
        limit=at_rest(xpo_step, lambda p, mu: mu),
        lr=paired,
    ),
    "vpo": Record(
        lambda eta, beta: methods.vpo(beta),
        vpo_step,
        "few samples under Bradley-Terry; none for games",
        "2405.19320",
        limit=at_rest(vpo_step),
        lr=paired,
    ),
}

# What plays no game, or has no exact step: where it ends instead, and the source.
OTHERS: dict[str, tuple[str, str]] = {
    "hypo": (
        "given pairs: the minimum of dpo + lam KL(p, mu), which leaves the responses that no pair names where mu has them",
        "2406.01462",
    ),
    "srpo": (
        "given pairs: p ~ mu / Z, Z the normaliser of the best improver on a draft: the draft that is hardest to improve on",
        "2406.01660",
    ),
    "ofs-dpo": (
        "given pairs: dpo's minimum with labels P + gamma (P - 1/2), or dpo's own for the gap penalty; a reading of summaries",
        "2406.05534",
    ),
    "on-policy": (
        "rewards or wins: the best responses, first by best against worst, which settle short of best-of-n fine-tuning",
        "2404.14367",
    ),
    "best-of-n": ("rewards or wins: after R rounds the law of the best of n^R draws of mu", "2304.06767"),
    "rso": (
        "pairs of mu exp(r / beta) / Z; soft labels of Bradley-Terry lead to mu exp(r / gamma) / Z, sure ones have no minimum on a table",
        "2309.06657",
    ),
    "self-rewarding": (
        "sure labels have no minimum on a table; short rounds climb the judge's grades, and of a judge by chance nothing on average",
        "2401.10020",
    ),
    "zo-ranksgd": ("ranks of perturbed policies by how seldom the policy beats them: a winner where there is one", "2303.03751"),
    "dno-prct": (
        "sure labels have no minimum on a table: its rounds are refused when solved exactly, and stopped early on text",
        "2404.03715",
    ),
}
