"""One file per paper; METHODS maps a name to the function that composes it."""

from __future__ import annotations

from collections.abc import Callable

from ..types import Method
from .alphapo import alphapo
from .aot import aot, aot_unpaired
from .apo import apo_down, apo_zero
from .apo_nesterov import apo_nesterov
from .apo_zero_unpaired import apo_zero_unpaired
from .arpo import arpo
from .asft import asft
from .attribute_regression import attribute_regression
from .bco import bco
from .bco_pair import bco_pair
from .best_of_n import best_of_n
from .c_advipo import c_advipo
from .c_advul import c_advul
from .cal_dpo import cal_dpo
from .copg import copg
from .cpo import cpo
from .curry_dpo import curry_dpo
from .discopop import discopop
from .dno import dno
from .dno_prct import dno_prct
from .dpo import dpo
from .dpo_norm import dpo_norm
from .dpo_reference_free import dpo_reference_free
from .dpop import dpop
from .egpo import egpo
from .egpo_optimistic import egpo_optimistic
from .exo import exo
from .f_dpo import f_dpo
from .flex_dpo import flex_dpo
from .general_preference import general_preference
from .gpo import gpo
from .grpo import grpo
from .hinge import hinge
from .hypo import hypo
from .inpo import inpo
from .ipo import ipo, ipo_avg
from .ipo_md import ipo_md
from .k_wise import k_wise
from .kto import kto
from .ld_dpo import ld_dpo
from .lipo import lipo
from .list_mle import list_mle
from .list_softmax import list_softmax
from .logic import logic
from .modpo import modpo
from .mpo import mpo
from .mpo_mixed import mpo_mixed
from .nash_ema_pg import nash_ema_pg
from .nash_md import nash_md
from .nash_md_pg import nash_md_pg
from .nca import nca
from .odpo import odpo
from .ofs_dpo import ofs_dpo
from .on_policy import on_policy
from .online_dpo import online_dpo
from .online_ipo import online_ipo
from .orpo import orpo
from .osp import osp
from .pair_logistic import pair_hinge, pair_logistic
from .pairwise_preference import pairwise_preference
from .ppo import ppo
from .rdpo import rdpo
from .rdpo_length import rdpo_length
from .reward_augmented import reward_augmented
from .reward_model import reward_model
from .rlhf_secrets_2 import rlhf_secrets_2
from .rloo import rloo
from .rpo import rpo, rpo_avg
from .rso import rso
from .self_rewarding import self_rewarding
from .sft import sft
from .simpo import simpo
from .slic import slic
from .spo_degree import spo_degree
from .spo_minimax import spo_minimax
from .sppo import sppo
from .sppo_hard import sppo_hard
from .srpo import srpo
from .tpo import tpo
from .tr_dpo import tr_dpo
from .triple_po import triple_po
from .vpo import vpo
from .wpo import wpo
from .xpo import xpo
from .zo_ranksgd import zo_ranksgd

METHODS: dict[str, Callable[..., Method]] = {
    # likelihood alone
    "sft": sft,
    # pairs, with a reference
    "dpo": dpo,
    "ipo": ipo,
    "ipo-avg": ipo_avg,
    "hinge": hinge,
    "exo": exo,
    "rdpo": rdpo,
    "f-dpo": f_dpo,
    "discopop": discopop,
    "aot": aot,
    "aot-unpaired": aot_unpaired,
    "tr-dpo": tr_dpo,
    # pairs, each response by itself
    "nca": nca,
    "bco-pair": bco_pair,
    "apo-zero": apo_zero,
    "apo-down": apo_down,
    "sppo-hard": sppo_hard,
    # small changes of dpo
    "dpo-norm": dpo_norm,
    "ld-dpo": ld_dpo,
    "rdpo-length": rdpo_length,
    "odpo": odpo,
    "rlhf-secrets-2": rlhf_secrets_2,
    "modpo": modpo,
    "dpop": dpop,
    "flex-dpo": flex_dpo,
    "cal-dpo": cal_dpo,
    "dpo-reference-free": dpo_reference_free,
    "wpo": wpo,
    # dpo with a likelihood or quality term
    "rpo": rpo,
    "rpo-avg": rpo_avg,
    "mpo-mixed": mpo_mixed,
    "spo-degree": spo_degree,
    # pairs, without a reference
    "simpo": simpo,
    "cpo": cpo,
    "orpo": orpo,
    "slic": slic,
    "asft": asft,
    "alphapo": alphapo,
    "arpo": arpo,
    "triple-po": triple_po,
    # graded lists and trees
    "lipo": lipo,
    "list-mle": list_mle,
    "list-softmax": list_softmax,
    "pair-logistic": pair_logistic,
    "pair-hinge": pair_hinge,
    "tpo": tpo,
    # single responses with a label
    "kto": kto,
    "bco": bco,
    "apo-zero-unpaired": apo_zero_unpaired,
    # data in another order or with goals
    "curry-dpo": curry_dpo,
    "reward-augmented": reward_augmented,
    # self-play against a judge
    "online-ipo": online_ipo,
    "egpo": egpo,
    "egpo-optimistic": egpo_optimistic,
    "ipo-md": ipo_md,
    "nash-md": nash_md,
    "nash-md-pg": nash_md_pg,
    "nash-ema-pg": nash_ema_pg,
    "mpo": mpo,
    "sppo": sppo,
    "gpo": gpo,
    "dno": dno,
    "dno-prct": dno_prct,
    "self-rewarding": self_rewarding,
    "inpo": inpo,
    "apo-nesterov": apo_nesterov,
    "osp": osp,
    "online-dpo": online_dpo,
    "xpo": xpo,
    "vpo": vpo,
    "hypo": hypo,
    "ofs-dpo": ofs_dpo,
    "srpo": srpo,
    "on-policy": on_policy,
    "best-of-n": best_of_n,
    "rso": rso,
    "zo-ranksgd": zo_ranksgd,
    # rewards: policy gradients and regression
    "ppo": ppo,
    "grpo": grpo,
    "rloo": rloo,
    "copg": copg,
    "spo-minimax": spo_minimax,
    # judges
    "reward-model": reward_model,
    "general-preference": general_preference,
    "pairwise-preference": pairwise_preference,
    "attribute-regression": attribute_regression,
    "k-wise": k_wise,
    # under attack
    "c-advipo": c_advipo,
    "c-advul": c_advul,
    # a formula of your own
    "logic": logic,
}

ALIASES = {
    "robust-dpo": "rdpo",
    "r-dpo": "rdpo-length",
    "sigmoid-norm": "dpo-norm",
    "extragradient": "egpo",
    "nll": "sft",
    "mpo-magnetic": "mpo",
    "oaif": "online-dpo",
    "raft": "best-of-n",
}
