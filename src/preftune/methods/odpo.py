"""DPO with an offset (Amini, Vieira, Cotterell 2024), arXiv:2402.10571."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from ..collect.draw import given
from ..objectives import modifiers
from ..ranking import choose
from ..reference import frozen
from ..types import Loss, Method
from ..update import plain

FORMS: dict[str, Callable[..., Loss]] = {"linear": modifiers.odpo, "log": modifiers.odpo_log}


def odpo(beta: float = 0.1, alpha: float = 1.0, f: Literal["linear", "log"] = "log") -> Method:
    """DPO that asks for the margin alpha f(score of the chosen - score of the rejected), from the data's scores alone.

    A file that knows a margin and no scores gives it as the chosen response's score beside a 0. alpha = 0 under
    f = "linear" is dpo. f = "log" is the authors' (with alpha 1 or 0.5, beta 0.05 to 0.7): scores that differ by less than 1
    lower the margin below 0, and rows whose scores do not favour the chosen response count 0. TRL-like libraries take the
    difference itself, f = "linear".
    """
    return Method(partial(choose("f", FORMS, f), beta=beta, alpha=alpha), given, frozen, plain)
