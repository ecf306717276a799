"""One file per paper; METHODS maps a name to the function that composes it."""

from __future__ import annotations

from collections.abc import Callable

from ..types import Method
from .aot import aot, aot_unpaired
from .apo import apo_down, apo_zero
from .apo_zero_unpaired import apo_zero_unpaired
from .bco import bco
from .bco_pair import bco_pair
from .discopop import discopop
from .dpo import dpo
from .egpo import egpo
from .exo import exo
from .f_dpo import f_dpo
from .hinge import hinge
from .ipo import ipo, ipo_avg
from .kto import kto
from .nca import nca
from .online_ipo import online_ipo
from .orpo import orpo
from .rdpo import rdpo
from .rpo import rpo, rpo_avg
from .sft import sft
from .simpo import simpo
from .slic import slic
from .spo_degree import spo_degree
from .sppo import sppo
from .sppo_hard import sppo_hard
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
    "apo-zero-unpaired": apo_zero_unpaired,
    "bco": bco,
    "sppo": sppo,
    "hinge": hinge,
    "slic": slic,
    "f-dpo": f_dpo,
    "exo": exo,
    "nca": nca,
    "apo-zero": apo_zero,
    "apo-down": apo_down,
    "bco-pair": bco_pair,
    "sppo-hard": sppo_hard,
    "discopop": discopop,
    "aot": aot,
    "aot-unpaired": aot_unpaired,
    "spo-degree": spo_degree,
}

ALIASES = {"robust-dpo": "rdpo", "extragradient": "egpo", "nll": "sft"}
