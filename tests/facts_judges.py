"""Facts of methods that train judges. Their losses read heads, so nothing pulls at log-probs: see test_judge_training.py."""

from __future__ import annotations

from facts import Facts
from preftune import methods

# not apart: no gradient reaches log-probs, with which these tests ask who is pulled up
SHIPPED = {
    "reward-model": Facts(methods.reward_model(), apart=False, shift=True),
    "reward-model centred": Facts(methods.reward_model(centring=0.01), apart=False, shift=True),
    "reward-model with margins": Facts(methods.reward_model(margin="subtract"), apart=False, shift=True),
    "general-preference": Facts(methods.general_preference(), apart=False, shift=True),
    "general-preference gated": Facts(methods.general_preference(gated=True), apart=False, shift=True),
    "pairwise-preference": Facts(methods.pairwise_preference(), apart=False, shift=True),
    "attribute-regression": Facts(methods.attribute_regression(), apart=False, shift=True),
    "k-wise": Facts(methods.k_wise(), apart=False, shift=True),
    "k-wise plackett-luce": Facts(methods.k_wise(form="plackett_luce"), apart=False, shift=True),
}
