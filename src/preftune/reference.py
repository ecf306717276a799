"""How the reference moves: functions roles -> roles, called as often as a method's `reference_every` says."""

from __future__ import annotations

from .types import PreftuneError, Reference, Roles


def frozen(roles: Roles) -> Roles:
    """The reference stays what it was when the run began."""
    return roles


def none(roles: Roles) -> Roles:
    """No reference is kept, so none is loaded."""
    return {name: policy for name, policy in roles.items() if name != "reference"}


def soft(alpha: float) -> Reference:
    """reference <- (1 - alpha) reference + alpha current, in parameters; alpha = 1 copies the policy.

    Source  TR-DPO, arXiv:2404.09656 eq. 8, 9
    """
    if not 0 <= alpha <= 1:
        raise PreftuneError(f"alpha is {alpha}, needed 0 <= alpha <= 1: the share of the policy that enters the reference")

    def move(roles: Roles) -> Roles:
        return {**roles, "reference": roles["reference"].lerp(roles["current"], alpha)}

    return move


def previous(roles: Roles) -> Roles:
    """previous <- current: the policy that the round ended with; the reference stays."""
    return {**roles, "previous": roles["current"].copy()}


def ema(decay: float) -> Reference:
    """slow <- decay slow + (1 - decay) current, in parameters; the reference stays.

    Source  the opponent of Nash-EMA-PG, arXiv:2312.00886
    """
    if not 0 <= decay <= 1:
        raise PreftuneError(f"decay is {decay}, needed 0 <= decay <= 1: the share of the slow policy that stays")

    def move(roles: Roles) -> Roles:
        return {**roles, "slow": roles["slow"].lerp(roles["current"], 1 - decay)}

    return move


def extrapolated(alpha: float) -> Reference:
    """Nesterov's step between rounds: beyond what the round solved, along the way from the solution of the round before.

    current, reference <- hat_t+1 + alpha (hat_t+1 - hat_t), in parameters;   hat_t+1 what current was, hat_t the role "hat"

    Moves the policy that trains, in place. hat_0 is the first policy: the first round has no momentum. The optimiser's moments stay.
    Limits  alpha = 0: `soft(1.0)`. With the same increment g of every round's solution: hat moves by g / (1 - alpha) a round
    Not     an extrapolation of log-probs, which it equals on tables only
    Source  arXiv:2410.06293
    """
    if not 0 <= alpha < 1:
        raise PreftuneError(f"alpha is {alpha}, needed 0 <= alpha < 1: the share of a round's move that is made once more")

    def move(roles: Roles) -> Roles:
        hat = roles["current"].copy()
        ahead = roles["hat"].lerp(hat, 1 + alpha)
        roles["current"].load(ahead.state())
        return {**roles, "hat": hat, "reference": ahead}

    return move
