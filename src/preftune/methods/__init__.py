"""One file per paper; METHODS maps a name to the function that composes it."""

from __future__ import annotations

from collections.abc import Callable

from ..types import Method
from .dpo import dpo
from .egpo import egpo
from .ipo import ipo, ipo_avg
from .kto import kto
from .online_ipo import online_ipo
from .orpo import orpo
from .rdpo import rdpo
from .rpo import rpo, rpo_avg
from .sft import sft
from .simpo import simpo
from .tr_dpo import tr_dpo

METHODS: dict[str, Callable[..., Method]] = {
    "sft": sft,
    "dpo": dpo,
    "ipo": ipo,
    "ipo-avg": ipo_avg,
    "simpo": simpo,
    "kto": kto,
    "orpo": orpo,
    "rdpo": rdpo,
    "rpo": rpo,
    "rpo-avg": rpo_avg,
    "tr-dpo": tr_dpo,
    "online-ipo": online_ipo,
    "egpo": egpo,
}

ALIASES = {"robust-dpo": "rdpo", "extragradient": "egpo", "nll": "sft"}
