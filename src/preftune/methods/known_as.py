"""What other code calls these methods: a library, its name, and which of its settings is which of ours.

Only what the public code says. TRL's names are not here: `preftune from-trl` has them with their versions. "beta" alone means
that beta is called beta there as well.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    library: str
    name: str
    here: str  # ours = theirs, and what differs


DPO_CODE = "authors' code (direct-preference-optimization)"
TURBO = "turbo-alignment"
FACTORY = "LLaMA-Factory"

KNOWN_AS: dict[str, tuple[Known, ...]] = {
    "sft": (
        Known("HALOs", "loss=sft", ""),
        Known("OpenRLHF", "train_sft", "its SFTLoss takes the token mean"),
        Known(FACTORY, "stage: sft", ""),
    ),
    "dpo": (
        Known(DPO_CODE, "loss=dpo", "beta, label_smoothing (above 0: cDPO)"),
        Known("HALOs", "loss=dpo, loss=cdpo", "beta; label_smoothing = epsilon (0.2)"),
        Known("OpenRLHF", "train_dpo", "beta = model.beta, label_smoothing = model.label_smoothing"),
        Known(FACTORY, "pref_loss: sigmoid", "beta = pref_beta, label_smoothing = dpo_label_smoothing"),
        Known(TURBO, "sigmoid", "beta, label_smoothing"),
        Known("open-instruct", "loss_type dpo", "beta, label_smoothing"),
    ),
    "dpo-reference-free": (Known(DPO_CODE, "loss=dpo loss.reference_free=true", "beta, label_smoothing"),),
    "dpo-norm": (Known("open-instruct", "loss_type dpo_norm", "beta (5 in Tulu 3, its field's default is 0.1)"),),
    "ld-dpo": (Known(FACTORY, "ld_alpha", "alpha = ld_alpha; it weighs the policy alone, so its loss has a constant offset"),),
    "dpop": (Known(TURBO, "dpop", "beta, lam (0.1 there)"),),
    "odpo": (Known(TURBO, "sigmoid_with_margin", "beta; its precomputed margins: f=linear, alpha=1, the margin as score beside a 0"),),
    "cal-dpo": (Known(TURBO, "cal_dpo", "beta (0.1 there), weight=1; it takes means over the micro-batch"),),
    "rpo": (
        Known("authors' code (Regularized-Preference-Optimization, alignment-handbook)", "rpo_trainer", "beta, eta"),
    ),
    "rpo-avg": (
        Known("authors' code (Regularized-Preference-Optimization, OpenRLHF)", "nll_loss_coef", "eta = nll_loss_coef (0.2)"),
        Known("OpenRLHF", "train_dpo with model.nll_loss_coef", "beta = model.beta, eta = model.nll_loss_coef"),
        Known(FACTORY, "pref_loss: sigmoid with pref_ftx", "beta = pref_beta, eta = pref_ftx"),
    ),
    "mpo-mixed": (
        Known(FACTORY, "pref_bco_weight = w with pref_ftx", "w_p = 1 / (1 + w), w_q = w / (1 + w), w_g = pref_ftx"),
    ),
    "modpo": (Known("authors' code (modpo)", "modpo_trainer", "beta; weights = w, the trained objective first"),),
    "wpo": (Known("open-instruct", "loss_type wpo", "beta, weights=plain; there the weights may carry a gradient"),),
    "tr-dpo": (Known(TURBO, "sync_ref_settings", "alpha, every = sync_steps (1 and 1 there: the reference is the policy)"),),
    "ipo": (
        Known(DPO_CODE, "loss=ipo", "tau = beta"),
        Known("OpenRLHF", "train_dpo with model.ipo_enable", "tau = model.beta"),
        Known(TURBO, "ipo", "tau = beta, as long as average_log_prob is false"),
    ),
    "ipo-avg": (
        Known("HALOs", "loss=ipo", "tau"),
        Known(FACTORY, "pref_loss: ipo", "tau = pref_beta"),
        Known(TURBO, "ipo with average_log_prob", "tau = beta"),
    ),
    "hinge": (
        Known(FACTORY, "pref_loss: hinge", "beta = pref_beta"),
        Known(TURBO, "hinge with norm", "beta; without norm it has no reference"),
    ),
    "slic": (
        Known("HALOs", "loss=slic", "delta = beta, lam = lambda_coef; its likelihood is taken per token"),
        Known(TURBO, "slic_hf", "delta; not this method: lam weighs a margin there, and there is no likelihood term"),
    ),
    "f-dpo": (Known("authors' code (f-divergence-dpo)", "divergence", "beta, alpha; jsd is js; no bound on forward KL and alpha"),),
    "nca": (Known(TURBO, "nca_pair", "beta (0.1 there)"),),
    "apo-zero": (Known(TURBO, "apo_zero", "beta"),),
    "apo-down": (Known(TURBO, "apo_down", "beta"),),
    "discopop": (Known("authors' code (DiscoPOP)", "log_ratio_modulated_loss", "beta, tau"),),
    "simpo": (
        Known("authors' code (SimPO)", "simpo_trainer", "beta, gamma_beta_ratio, label_smoothing, sft_weight"),
        Known("HALOs", "loss=simpo", "beta (10), gamma_beta_ratio (0.3)"),
        Known(FACTORY, "pref_loss: simpo", "beta = pref_beta, gamma = simpo_gamma: gamma itself, not the ratio"),
        Known(TURBO, "simpo", "beta, gamma_beta_ratio = gamma: its gamma is the ratio"),
        Known("open-instruct", "loss_type simpo", "beta, gamma_beta_ratio (0.3)"),
    ),
    "cpo": (
        Known("authors' code (ALMA)", "cpo_trainer", "beta, alpha; newer versions of it compute arpo"),
        Known(TURBO, "cpo", "beta; there the likelihood is summed and weighs 1, and with norm there is a reference"),
    ),
    "arpo": (Known("authors' code (ALMA)", "cpo_trainer", "k1 = relax_cofficient_1, k2 = relax_cofficient_2"),),
    "orpo": (
        Known("authors' code (orpo)", "orpo_trainer", "lam = alpha; likelihood over prompt and answer unless --disable_prompt_loss"),
        Known(FACTORY, "pref_loss: orpo", "lam = pref_beta; the same likelihood as here"),
        Known(TURBO, "orpo", "lam = lambda_ where its beta, which stands inside the sigmoid, and ce_coef are 1"),
    ),
    "asft": (Known(TURBO, "asft", "lam = lambda_, ce = ce_coef, beta"),),
    "kto": (
        Known("HALOs", "loss=kto", "beta, desirable_weight, undesirable_weight"),
        Known(FACTORY, "stage: kto", "beta = pref_beta, desirable_weight = kto_chosen_weight, undesirable_weight = kto_rejected_weight"),
    ),
    "sppo": (Known("authors' code (SPPO)", "the loss sppo", "eta = 1 / beta; its pipeline judges by one score per response"),),
    "tpo": (Known("authors' code (TPO)", "loss.py", "beta; the released loss has the opposite sign and other log-probs"),),
}  # fmt: skip
