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
