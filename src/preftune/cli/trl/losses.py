"""What the names in TRL's configurations mean here: its losses, its options, and what changed under the same name.

Read in TRL 0.24, 0.28, 0.29, 1.0 and 1.9 (its public repository) and 1.16: DPOConfig, KTOConfig, CPOConfig, ORPOConfig, TPOConfig
(triple preference optimisation) and BCOConfig. In February 2026, between 0.28 and 0.29, TRL wrote its DPO trainer anew; several
names kept their spelling and lost or changed their meaning. `DPO_BEFORE` holds what they meant until then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...types import PreftuneError

REFACTORED = (0, 29)  # the first version of the new DPO trainer
NEWEST = "1.16"
OLDEST = (0, 24)

COMMON: dict[str, Any] = {  # defaults of transformers' TrainingArguments and of TRL's script options, of the keys that are translated
    "num_train_epochs": 3.0, "max_steps": -1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "warmup_steps": 0, "optim": "adamw_torch", "adam_beta1": 0.9, "weight_decay": 0.0,
    "max_grad_norm": 1.0, "seed": 42, "max_length": 1024, "truncation_mode": "keep_start", "save_strategy": "steps", "save_steps": 500,
    "eval_strategy": "no", "eval_steps": 500, "lora_r": 16, "lora_alpha": 32.0,
}  # fmt: skip

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Meaning:
    """A loss of TRL with whatever options change it, as a method."""

    method: str
    takes: Mapping[str, str]  #                       hyperparameter of the method -> TRL's key
    sets: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters that TRL's name implies
    says: tuple[str, ...] = ()  #                     where TRL's name does not mean what the paper says, or something is lost
    lacks: tuple[str, ...] = ()  #                    keys that TRL's loss reads and the method does not have
    derive: Callable[[Asked], Values] | None = None  # hyperparameters that have to be computed
    derives: str = ""  #                              the same in words
    warn: Callable[[Asked], Iterable[str]] | None = None  # what to say about certain values


@dataclass(frozen=True)
class Trainer:
    """One of TRL's configuration classes."""

    config: str
    defaults: Mapping[str, Any]  #       of the keys that the losses read, by TRL's newest version
    losses: Mapping[str, Meaning]  #     "loss_type, option, ..." -> meaning
    evidence: str  #                     keys and loss types that no other class has
    default_loss: str | None = "sigmoid"
    before: Mapping[str, Meaning] = field(default_factory=dict)  # the losses that meant something else before 0.29
    defaults_before: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A configuration with the defaults of its class, and the version that would read it."""

    given: Mapping[str, Any]
    trainer: Trainer
    version: tuple[int, ...]

    @property
    def old(self) -> bool:
        """Whether the DPO trainer is the one before it was written anew."""
        return self.version < REFACTORED

    def __getitem__(self, key: str) -> Any:
        value = self.given.get(key)
        if value is not None:
            return value
        before = self.trainer.defaults_before if self.old else {}
        return before.get(key, self.trainer.defaults.get(key, COMMON.get(key)))

    def number(self, key: str) -> float:
        """The value as a number: YAML reads 1e-6 as a text."""
        value = self[key]
        try:
            return float(value)
        except (TypeError, ValueError):
            raise PreftuneError(f"{key} is {value!r}, needed a number; correct it in the configuration") from None

    def flag(self, key: str) -> bool:
        """The value as true or false."""
        return str(self[key]).lower() in ("true", "1", "yes")

    @property
    def loss_types(self) -> list[str]:
        """The names of the losses, one or several."""
        found = self.given.get("loss_type") or self.trainer.default_loss
        return [] if found is None else [str(name) for name in found] if isinstance(found, list | tuple) else [str(found)]

    @property
    def weights(self) -> dict[str, float]:
        """Loss -> weight, in the order given."""
        given = self.given.get("loss_weights") or [1.0] * len(self.loss_types)
        if len(given) != len(self.loss_types):
            raise PreftuneError(
                f"loss_weights has {len(given)} numbers, needed {len(self.loss_types)}, one for each of loss_type; correct it"
            )
        return dict(zip(self.loss_types, map(float, given), strict=True))


# --- DPOTrainer -----------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Callable[[Asked], bool]] = {  # what makes another method of a loss, in the order in which keys of DPO name them
    "f_divergence_type": lambda asked: divergence(asked) != "reverse_kl",
    "ld_alpha": lambda asked: asked["ld_alpha"] is not None and asked.number("ld_alpha") != 1,
    "use_weighting": lambda asked: asked.flag("use_weighting"),
    "sync_ref_model": lambda asked: asked.flag("sync_ref_model"),
    "reference_free": lambda asked: asked.flag("reference_free"),
    "rpo_alpha": lambda asked: asked["rpo_alpha"] is not None and asked.number("rpo_alpha") != 0,
}
DIVERGENCES = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}


def divergence(asked: Asked) -> str:
    """The f-divergence, where alpha_divergence at its limits is what it tends to."""
    name = str(asked["f_divergence_type"]).rpartition(".")[2].lower()
    if name not in DIVERGENCES or (asked.old and name == "forward_kl"):
        known = [known for known in DIVERGENCES if not (asked.old and known == "forward_kl")]
        raise PreftuneError(f"f_divergence_type is {name!r}, needed one of {', '.join(known)} in this version of TRL; correct it")
    if name == "alpha_divergence":
        alpha = paper_alpha(asked)
        if not 0 <= alpha <= 1:
            raise PreftuneError(
                f"f_alpha_divergence_coef = {asked.number('f_alpha_divergence_coef'):g} is the paper's alpha {alpha:g}, needed "
                "0 <= alpha <= 1: beyond, the divergence is not valid for DPO (arXiv:2309.16240); choose another coefficient"
            )
        return {0.0: "reverse_kl", 1.0: "forward_kl"}.get(alpha, name)
    return name


def paper_alpha(asked: Asked) -> float:
    """TRL's coefficient in the paper's parametrisation: its meaning was inverted when the trainer was written anew."""
    coefficient = asked.number("f_alpha_divergence_coef")
    return coefficient if asked.old else 1 - coefficient


def _f_dpo(asked: Asked) -> Values:
    name = divergence(asked)
    which = "alpha" if asked.old else "alpha_trl"
    alpha = {which: asked.number("f_alpha_divergence_coef")} if name == "alpha_divergence" else {}
    return {"divergence": DIVERGENCES[name], **alpha}


def _f_dpo_says(asked: Asked) -> Iterable[str]:
    if str(asked["f_divergence_type"]).endswith("alpha_divergence"):
        coefficient = asked.number("f_alpha_divergence_coef")
        yield (
            f"f_alpha_divergence_coef = {coefficient:g} is the paper's alpha = {paper_alpha(asked):g} in this version of TRL: "
            "0.29 inverted its meaning (new = 1 - old), and its default went from 1.0 to 0.5"
        )
        yield "TRL caps the exponent of the alpha divergence, which silences the gradient far out; here such rows are named as an error"
    if divergence(asked) == "forward_kl":
        yield "forward KL pulls with the exponential of what a chosen response has lost: keep the learning rate small"


def _ratio(asked: Asked) -> Values:
    weights = asked.weights
    return {"eta": weights["sft"] / weights["sigmoid"]}


def _parts(asked: Asked) -> Values:
    weights = asked.weights
    return {"w_p": weights.get("sigmoid", 0.0), "w_q": weights.get("bco_pair", 0.0), "w_g": weights.get("sft", 0.0)}


def _scaled(asked: Asked) -> Iterable[str]:
    weight = asked.weights.get("sigmoid", 1.0)
    if weight != 1:
        yield (
            f"TRL's loss is {weight:g} times this one: AdamW takes the same steps, but max_grad_norm clips at {1 / weight:g} "
            "times the norm, and SGD needs lr times that weight"
        )


def _unsmoothed(asked: Asked) -> Iterable[str]:
    if asked.number("label_smoothing") == 0:
        yield "label_smoothing is 0, with which 'robust' is plain DPO: give the rate of flipped labels, --set label_smoothing=0.1"


def _exo_before(asked: Asked) -> Values:
    return {"label_smoothing": asked.number("label_smoothing") or 1e-3}


def _exo_before_says(asked: Asked) -> Iterable[str]:
    if asked.number("label_smoothing") == 0:
        yield "TRL before 0.29 replaced label_smoothing = 0 by 0.001 silently; so does this command, in writing (0.29 and later refuse 0)"


def _norm_says(asked: Asked) -> Iterable[str]:
    if asked.number("beta") < 1:
        yield (
            f"beta = {asked.number('beta'):g} scales log-ratios per token, which are smaller than sums by the length: Tulu 3 uses 5, and "
            "TRL's default 0.1 hardly moves the model"
        )


def _aot_says(asked: Asked) -> Iterable[str]:
    yield (
        f"TRL sorts within each device's micro-batch of {asked.number('per_device_train_batch_size'):g} pairs, here the whole "
        "batch is sorted: the loss of accumulated steps is another one"
    )


DIVERGENCE_NAMES = "divergence = f_divergence_type (js_divergence: js, alpha_divergence: alpha)"
RATIO = "eta = the weight of sft over that of sigmoid"
PARTS = "w_p, w_q, w_g = loss_weights"
SFT_TERM = (
    "TRL's 'sft' is the mean over the chosen tokens of a micro-batch, in which long responses count more; here every row counts alike"
)
IPO_MEANS = (
    "TRL's 'ipo' takes log-ratios per token, the paper sums: that is ipo-avg here. For the paper's loss take ipo, with tau of its own"
)
BETA_ONLY = {"beta": "beta"}
SMOOTHED = {"beta": "beta", "label_smoothing": "label_smoothing"}
SMOOTHED_AWAY = (
    "TRL 0.29 and later ignore label_smoothing with 'sigmoid', without a warning (0.24 ran cDPO): this command is the plain loss that ran. "
    "Where the method has label_smoothing (dpo, wpo, f-dpo, rpo-avg) --set label_smoothing={:g} gives what 0.24 ran: cDPO"
)
WEIGHTED = "TRL multiplies every loss by WPO's weights, the likelihood term of a mixture too"

DPO: dict[str, Meaning] = {
    "sigmoid": Meaning("dpo", BETA_ONLY),
    "hinge": Meaning(
        "hinge",
        BETA_ONLY,
        says=("TRL lists 'hinge' under SLiC-HF, but it has a reference, no likelihood term and a margin of 1/beta nats: hinge-norm of RSO "
              "(arXiv:2309.06657). SLiC-HF is the method slic",),
    ),
    "ipo": Meaning("ipo-avg", {"tau": "beta"}, says=(IPO_MEANS,)),
    "exo_pair": Meaning("exo", SMOOTHED),
    "nca_pair": Meaning("nca", BETA_ONLY),
    "robust": Meaning("rdpo", SMOOTHED, warn=_unsmoothed),
    "bco_pair": Meaning(
        "bco-pair",
        BETA_ONLY,
        sets={"shift": "none"},
        says=("TRL's 'bco_pair' lost the paper's running shift of the rewards in 0.29: this command is what runs there. "
              "For the paper's loss leave shift out",),
    ),
    "sppo_hard": Meaning(
        "sppo-hard", BETA_ONLY, says=("'sppo_hard' is one regression on given pairs; the paper samples and judges in rounds: sppo",)
    ),
    "aot": Meaning("aot", SMOOTHED, warn=_aot_says),
    "aot_unpaired": Meaning("aot-unpaired", SMOOTHED, warn=_aot_says),
    "apo_zero": Meaning("apo-zero", BETA_ONLY),
    "apo_down": Meaning("apo-down", BETA_ONLY),
    "discopop": Meaning("discopop", {"beta": "beta", "tau": "discopop_tau"}),
    "sft": Meaning("sft", {}, sets={"aggregation": "tok_mean"}, says=("TRL takes the token mean of each micro-batch, here of the batch",)),
    "sigmoid_norm": Meaning("dpo-norm", BETA_ONLY, warn=_norm_says),
    "sigmoid, f_divergence_type": Meaning(
        "f-dpo", BETA_ONLY, derive=_f_dpo, derives=f"{DIVERGENCE_NAMES}, alpha_trl = f_alpha_divergence_coef", warn=_f_dpo_says
    ),
    "sigmoid, ld_alpha": Meaning("ld-dpo", {"beta": "beta", "alpha": "ld_alpha"}),
    "sigmoid, use_weighting": Meaning("wpo", BETA_ONLY, sets={"weights": "aligned without limit"}),
    "sigmoid, sync_ref_model": Meaning(
        "tr-dpo", {"beta": "beta", "alpha": "ref_model_mixup_alpha", "every": "ref_model_sync_steps"},
    ),
    "sigmoid, sft": Meaning("rpo-avg", BETA_ONLY, derive=_ratio, derives=RATIO, warn=_scaled, says=(
        SFT_TERM,
        "rpo-avg is the per-token form, also called iterative RPO; the RPO paper's main form sums: rpo, whose eta is not this one",
    )),
    "sigmoid, bco_pair, sft": Meaning("mpo-mixed", BETA_ONLY, sets={"shift": "none"}, derive=_parts, derives=PARTS, says=(
        SFT_TERM, "TRL's 'bco_pair' lost the running shift of the rewards in 0.29; with shift=running this is the paper's mixture",
    )),
    "sigmoid, bco_pair": Meaning("mpo-mixed", BETA_ONLY, sets={"shift": "none"}, derive=_parts, derives=PARTS),
    "bco_pair, sft": Meaning("mpo-mixed", BETA_ONLY, sets={"shift": "none"}, derive=_parts, derives=PARTS, says=(SFT_TERM,)),
}  # fmt: skip

SMOOTHING = ("label_smoothing",)
DPO_BEFORE: dict[str, Meaning] = {
    "sigmoid": Meaning("dpo", SMOOTHED),
    "exo_pair": Meaning("exo", BETA_ONLY, derive=_exo_before, derives="label_smoothing, 0.001 where it is 0", warn=_exo_before_says),
    "bco_pair": Meaning("bco-pair", BETA_ONLY, sets={"shift": "running"}),
    "aot_pair": Meaning(
        "aot-unpaired", SMOOTHED, warn=_aot_says, says=("TRL's 'aot_pair' is the UNPAIRED form, called 'aot_unpaired' since 0.28",)
    ),
    "sigmoid, f_divergence_type": Meaning(
        "f-dpo", SMOOTHED, derive=_f_dpo, derives=f"{DIVERGENCE_NAMES}, alpha = f_alpha_divergence_coef", warn=_f_dpo_says
    ),
    "sigmoid, ld_alpha": Meaning("ld-dpo", {"beta": "beta", "alpha": "ld_alpha"}, lacks=SMOOTHING, says=(
        "TRL before 0.29 weighted the tail of the policy's log-probs but not of the reference's, and counted positions from the start of "
        "the prompt; ld-dpo is the paper's loss, which TRL has since 0.29",
    )),
    "sigmoid, use_weighting": Meaning("wpo", SMOOTHED, sets={"weights": "aligned"}),
    "sigmoid, sync_ref_model": Meaning(
        "tr-dpo", {"beta": "beta", "alpha": "ref_model_mixup_alpha", "every": "ref_model_sync_steps"}, lacks=SMOOTHING
    ),
    "sigmoid, reference_free": Meaning("dpo-reference-free", SMOOTHED, says=("TRL removed reference_free in 0.29",)),
    "sigmoid, rpo_alpha": Meaning("rpo-avg", {**SMOOTHED, "eta": "rpo_alpha"}, says=(
        "TRL removed rpo_alpha in 0.29; the same there is loss_type ['sigmoid', 'sft'] with loss_weights [1, rpo_alpha]",
        SFT_TERM,
    )),
    "sigmoid, sft": Meaning("rpo-avg", SMOOTHED, derive=_ratio, derives=RATIO, warn=_scaled, says=(SFT_TERM,)),
    "sigmoid, bco_pair, sft": Meaning(
        "mpo-mixed", BETA_ONLY, sets={"shift": "running"}, derive=_parts, derives=PARTS, says=(SFT_TERM,), lacks=SMOOTHING
    ),
    "sigmoid, bco_pair": Meaning("mpo-mixed", BETA_ONLY, sets={"shift": "running"}, derive=_parts, derives=PARTS, lacks=SMOOTHING),
    "bco_pair, sft": Meaning("mpo-mixed", BETA_ONLY, sets={"shift": "running"}, derive=_parts, derives=PARTS, says=(SFT_TERM,)),
}  # fmt: skip

GONE = {
    "kto_pair": "TRL removed it in 2024; split each pair into a desirable and an undesirable row and take kto",
    "aot_pair": "it is called 'aot_unpaired' since 0.28; for a configuration of an older version give --trl-version 0.24",
}

# --- the other trainers ---------------------------------------------------------------------------------------------


def _simpo_says(asked: Asked) -> Iterable[str]:
    gamma, beta, alpha = (asked.number(key) for key in ("simpo_gamma", "beta", "cpo_alpha"))
    yield f"simpo_gamma is gamma; the authors publish gamma / beta, which is {gamma / beta:g} here (they start at 0.5)"
    if gamma / beta > 2:
        yield f"a margin of {gamma / beta:g} nats per token is far from any published one: TRL's default beta 0.1 does not fit SimPO"
    if alpha:
        yield (
            f"cpo_alpha = {alpha:g} adds a likelihood term (CPO-SimPO), and 1.0 is TRL's default: SimPO needs cpo_alpha: 0; "
            "for the paper's loss leave sft_weight out"
        )


def _alphapo_says(asked: Asked) -> Iterable[str]:
    gamma, beta = asked.number("simpo_gamma"), asked.number("beta")
    yield f"simpo_gamma is gamma in reward units, gamma / beta = {gamma / beta:g}"
    if "simpo" in asked.loss_types:
        yield "alpha with 'simpo' and cpo_alpha 0 is what TRL calls 'alphapo'"


CPO_NLL = "TRL's likelihood term is the mean over the tokens of a micro-batch, here every row counts alike"
CPO_NOT_IPO = (
    "TRL's CPO 'ipo' has no reference and takes means per token: it is not IPO (ipo here), and not its DPO trainer's 'ipo' (ipo-avg)"
)
SIMPO = {"beta": "beta", "gamma": "simpo_gamma"}
CPO: dict[str, Meaning] = {
    "sigmoid": Meaning("cpo", {**SMOOTHED, "alpha": "cpo_alpha"}, says=(CPO_NLL,)),
    "hinge": Meaning("cpo", {**BETA_ONLY, "alpha": "cpo_alpha"}, sets={"link": "hinge"}, says=(
        CPO_NLL, "this is the nearest TRL has to SLiC-HF: beta times its hinge at delta = 1 / beta, with a token mean for its likelihood",
    )),
    "ipo": Meaning("cpo", {**BETA_ONLY, "alpha": "cpo_alpha"}, sets={"link": "squared", "per_token": True}, says=(CPO_NLL, CPO_NOT_IPO)),
    "simpo": Meaning("simpo", {**SIMPO, "label_smoothing": "label_smoothing", "sft_weight": "cpo_alpha"}, warn=_simpo_says),
    "alphapo": Meaning("alphapo", {**SIMPO, "alpha": "alpha"}, lacks=SMOOTHING, warn=_alphapo_says),
}  # fmt: skip

TPO_DATA = "rows need chosen, rejected and gold; TRL's column 'reference' is the gold response, no model, and is read where it is a text"
TPO_NLL = "TRL's likelihood of the gold response is a mean over the tokens of a micro-batch, here every row counts alike"
TRIPLE = {"beta": "beta", "alpha": "tpo_alpha"}


def _tpo_says(asked: Asked) -> Iterable[str]:
    if asked.number("beta") < 0.1:
        yield f"beta = {asked.number('beta'):g} on means per token makes the preference term nearly constant"


TPO: dict[str, Meaning] = {
    "sigmoid": Meaning("triple-po", {**TRIPLE, "label_smoothing": "label_smoothing"}, says=(TPO_DATA, TPO_NLL)),
    "hinge": Meaning("triple-po", TRIPLE, sets={"link": "hinge"}, says=(TPO_DATA, TPO_NLL)),
    "ipo": Meaning("triple-po", TRIPLE, sets={"link": "squared", "per_token": True}, says=(TPO_DATA, TPO_NLL)),
    "tpo-l": Meaning(
        "triple-po",
        {**TRIPLE, "label_smoothing": "label_smoothing", "gamma": "tpo_l_gamma"},
        sets={"per_token": True},
        says=(TPO_DATA, TPO_NLL, "tpo_l_gamma is gamma, not gamma / beta"),
        warn=_tpo_says,
    ),
}

KTO_BATCH = (
    "TRL takes the KL baseline of each device's micro-batch and keeps rows and their mismatched partners in one order over all epochs; "
    "here the whole batch gives the baseline, and rows and partners are drawn anew in every epoch"
)
KTO: dict[str, Meaning] = {
    "kto": Meaning(
        "kto",
        {name: name for name in ("beta", "desirable_weight", "undesirable_weight")},
        says=(KTO_BATCH,),
    ),
    "apo_zero_unpaired": Meaning("apo-zero-unpaired", BETA_ONLY, lacks=("desirable_weight", "undesirable_weight")),
}

ORPO: dict[str, Meaning] = {
    "": Meaning("orpo", {"lam": "beta"}, says=(
        "TRL's beta is the paper's lambda",
        "TRL's likelihood runs over prompt and completion, so that its balance with the odds ratio depends on the prompt's "
        "length; here it is "
        "the completion alone, each row alike",
    )),
}  # fmt: skip

BCO: dict[str, Meaning] = {
    "": Meaning("bco", BETA_ONLY, says=(
        "the weights for prompts of other classes (prompt_sample_size, density ratios; only with an embedding function) go "
        "into the column weight",
    )),
}  # fmt: skip

LENGTHS_BEFORE = {"max_prompt_length": 512, "truncation_mode": "keep_end"}
TRAINERS: dict[str, Trainer] = {
    "dpo": Trainer(
        "DPOConfig",
        {"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
         "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512, "learning_rate": 1e-6},
        DPO,
        "loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau rpo_alpha reference_free "
        "base_model_attribute_name force_use_ref_model padding_free "
        "exo_pair nca_pair robust bco_pair sppo_hard aot aot_pair aot_unpaired apo_zero apo_down discopop sft sigmoid_norm kto_pair",
        before=DPO_BEFORE,
        defaults_before={"f_alpha_divergence_coef": 1.0, **LENGTHS_BEFORE},
    ),
    "kto": Trainer(
        "KTOConfig",
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512,
         "learning_rate": 1e-6},
        KTO,
        "desirable_weight undesirable_weight kto apo_zero_unpaired",
        default_loss="kto",
        defaults_before=LENGTHS_BEFORE,
    ),
    "cpo": Trainer(
        "CPOConfig",
        {"beta": 0.1, "label_smoothing": 0.0, "cpo_alpha": 1.0, "simpo_gamma": 0.5, "alpha": 0.0, "learning_rate": 1e-6},
        CPO,
        "cpo_alpha simpo_gamma simpo alphapo",
        defaults_before=LENGTHS_BEFORE,
    ),
    "orpo": Trainer("ORPOConfig", {"beta": 0.1, "learning_rate": 1e-6}, ORPO, "", default_loss=None, defaults_before=LENGTHS_BEFORE),
    "tpo": Trainer(
        "TPOConfig",
        {"beta": 0.01, "label_smoothing": 0.0, "tpo_alpha": 1.0, "tpo_l_gamma": 0.5, "learning_rate": 5e-7},
        TPO,
        "tpo_alpha tpo_l_gamma tpo-l",
    ),
    "bco": Trainer(
        "BCOConfig", {"beta": 0.1, "learning_rate": 5e-7}, BCO, "prompt_sample_size min_density_ratio max_density_ratio", default_loss=None
    ),
}  # fmt: skip

NEUTRAL = {"label_smoothing": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}  # with which a key of `lacks` does nothing

OUT_OF_SCOPE = {  # other names of TRL, and why they are no method here
    "bema": "BEMA (a callback) keeps a bias-corrected average of the weights; the moving reference here is the mean of tr-dpo",
    "sft": "SFTConfig trains on single completions: preftune train sft takes the same data and few of its options",
    "reward": "RewardConfig trains a reward model, which is a judge here and no policy",
    "prm": "PRMConfig trains a process reward model, which is a judge here and no policy",
    "grpo": "GRPO samples and scores while it trains; the methods that from-trl knows learn from given responses",
    "rloo": "RLOO samples and scores while it trains; the methods that from-trl knows learn from given responses",
    "ppo": "PPO samples and scores while it trains; the methods that from-trl knows learn from given responses",
    "online_dpo": "online DPO compares the policy's own samples: see online-ipo and egpo",
    "nash_md": "Nash-MD compares the policy's own samples: see egpo",
    "xpo": "XPO compares the policy's own samples: see online-ipo and egpo",
    "gkd": "GKD distils from a teacher; no preferences are in it",
}

# --- a configuration ------------------------------------------------------------------------------------------------


def parse_version(text: str) -> tuple[int, ...]:
    """ "0.24" -> (0, 24)."""
    if not re.fullmatch(r"v?\d+(\.\d+)*(\.?(dev|rc|post)\d*)?", text):
        raise PreftuneError(f"--trl-version is {text!r}, needed a version such as 0.24, 0.29 or 1.16")
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


ONLY_BEFORE = frozenset(  # keys that DPOConfig had until 0.28
    ["rpo_alpha", "reference_free", "force_use_ref_model", "ref_model_init_kwargs", "model_adapter_name", "ref_adapter_name", "tools"]
    + ["base_model_attribute_name", "use_logits_to_keep", "use_liger_loss", "max_prompt_length", "max_completion_length", "padding_value"]
    + ["label_pad_token_id", "generate_during_eval"]
)


def kind_of(given: Mapping[str, Any]) -> str:
    """Which of TRL's classes a configuration is of, by the keys and loss types that only one of them has."""
    losses = given.get("loss_type") or []
    words = {*given, *(map(str, losses) if isinstance(losses, list) else [str(losses)])}
    found = {name: sorted(words & set(trainer.evidence.split())) for name, trainer in TRAINERS.items()}
    found = {name: keys for name, keys in found.items() if keys}
    if len(found) == 1:
        return next(iter(found))
    clues = "; ".join(f"{', '.join(keys[:4])} of {TRAINERS[name].config}" for name, keys in found.items())
    raise PreftuneError(
        f"the configuration may be of several trainers: {'it has ' + clues if clues else 'its keys are common to them'}, "
        f"needed to know which one; say --trainer with one of {', '.join(TRAINERS)}"
    )


def version_of(trainer: str, given: Mapping[str, Any], asked: str | None) -> tuple[tuple[int, ...], list[str]]:
    """The version that reads the configuration, and what has to be said about it."""
    losses = given.get("loss_type") or []
    losses = list(map(str, losses)) if isinstance(losses, list) else [str(losses)]
    old = [key for key in given if key in ONLY_BEFORE] + ["aot_pair"] * ("aot_pair" in losses)
    if asked is None:
        if trainer == "dpo" and old:
            return OLDEST, [f"{', '.join(old[:3])}: only TRL before 0.29 knows them, so this is read as 0.24 (or say --trl-version)"]
        changed = ", and DPO's names changed their meaning in 0.29: say --trl-version if it was written for an older one"
        return parse_version(NEWEST), [f"read as TRL {NEWEST}{changed if trainer == 'dpo' else ''}"]
    version = parse_version(asked)
    if trainer == "dpo" and version >= REFACTORED and set(old) - {"aot_pair"}:
        raise PreftuneError(
            f"the configuration has {', '.join(old)}, which DPOConfig of TRL {asked} does not know, needed a version before 0.29; "
            "say --trl-version 0.24, or drop the key"
        )
    said = [f"TRL {asked} is read like 0.24, the oldest version known here; its defaults may differ"] if version < OLDEST else []
    return version, said


def meaning_of(asked: Asked) -> tuple[str, Meaning]:
    """The entry of the table for a configuration: its losses with the options that are on."""
    trainer = asked.trainer
    table = {**trainer.losses, **(trainer.before if asked.old else {})}
    if asked.version < (1, 4):
        table.pop("sigmoid_norm", None)
    names = [name for name in asked.loss_types if asked.weights[name] != 0] if trainer.default_loss else []
    alone = {key for key in table if "," not in key}
    for name in names:
        if name in GONE and name not in alone:
            raise PreftuneError(f"loss_type is {name!r}, which this version of TRL does not have: {GONE[name]}")
        if name not in alone:
            raise PreftuneError(f"loss_type is {name!r}, needed one of {', '.join(sorted(alone))} in {trainer.config}; correct it")
    on = [name for name, is_on in OPTIONS.items() if trainer is TRAINERS["dpo"] and is_on(asked)]
    if trainer is TRAINERS["kto"] and asked.flag("sync_ref_model"):
        on.append("sync_ref_model")
    key = ", ".join([*sorted(names, key=list(table).index), *on])
    if trainer is TRAINERS["cpo"] and asked.number("alpha") != 0:
        key = _alphapo_key(asked, key)
    if key not in table:
        raise PreftuneError(_no_single(asked, names, on))
    return key, table[key]


def _alphapo_key(asked: Asked, key: str) -> str:
    """TRL applies `alpha` to every loss of its CPO trainer; one of them is a published method."""
    if key == "alphapo" or (key == "simpo" and asked.number("cpo_alpha") == 0):
        return "alphapo"
    why = "with a likelihood term beside it" if key == "simpo" else f"on the reward of {key!r}, where it exponentiates other log-probs"
    raise PreftuneError(
        f"alpha = {asked.number('alpha'):g} is set {why}, no single method: AlphaPO is loss_type 'alphapo'; "
        "leave alpha out, or write a method of your own from `preftune copy alphapo mine.py`"
    )


def _no_single(asked: Asked, names: Sequence[str], on: Sequence[str]) -> str:
    """Why a combination is no method, and what to do."""
    what = " + ".join([f"{asked.weights[name]:g} {name}" if len(names) > 1 else name for name in names])
    why = []
    if len(names) > 1 and "use_weighting" in on:
        why.append(WEIGHTED)
    if len(names) > 1 and "ipo" in names and asked.old:
        why.append("before 0.29 'ipo' in a list made the log-probs of all its losses means per token")
    if "f_divergence_type" in on and names != ["sigmoid"]:
        why.append("f-dpo is DPO's loss; under others the divergence's constants matter, and TRL's versions differ in them")
    reasons = f" ({' and '.join(why).replace('; ', ', ')})" if why else ""  # a semicolon would end the error's first part
    return (
        f"{what}{' with ' + ' and '.join(on) if on else ''} is no single method here{reasons}, needed a loss of one paper or a "
        "known mixture; write it as a method of your own from add(scale(objective, weight), ...), as `preftune copy rpo mine.py` shows"
    )


@dataclass(frozen=True)
class Loss:
    """What a configuration's loss is here."""

    method: str
    values: dict[str, Any]  #   hyperparameters
    said: list[str]
    unread: list[str]  #        keys of TRL's that its loss does not read


def loss_of(asked: Asked) -> Loss:
    """The method of a configuration with its hyperparameters."""
    key, meaning = meaning_of(asked)
    for name in meaning.lacks:
        if asked.number(name) != NEUTRAL[name]:
            raise PreftuneError(
                f"{name} = {asked.number(name):g} with {key} is no single method here: {meaning.method} has no {name}, "
                f"needed {NEUTRAL[name]:g}; write a method of your own from `preftune copy {meaning.method} mine.py`"
            )
    values: dict[str, Any] = {ours: asked.number(theirs) for ours, theirs in meaning.takes.items()}
    values |= meaning.sets
    values |= meaning.derive(asked) if meaning.derive else {}
    if "every" in values:
        values["every"] = int(values["every"])
    said = [*meaning.says, *(meaning.warn(asked) if meaning.warn else ())]
    weights = list(asked.weights.values())
    if len(weights) == 1 and weights[0] != 1:
        said.append(f"loss_weights = {weights[0]:g} on one loss scales its gradient, which AdamW undoes: it is left out")
    read = {*meaning.takes.values(), *(("f_divergence_type", "f_alpha_divergence_coef") if meaning.method == "f-dpo" else ())}
    smoothing = asked.number("label_smoothing") if "label_smoothing" in asked.trainer.defaults else 0
    if smoothing and "label_smoothing" not in values:
        gone = not asked.old and "sigmoid" in asked.loss_types and asked.trainer is TRAINERS["dpo"]
        said.append(SMOOTHED_AWAY.format(smoothing) if gone else f"TRL ignores label_smoothing with {key!r}, and so does this command")
    told = {"learning_rate", *(["label_smoothing"] if smoothing else [])}
    unread = [name for name in asked.trainer.defaults if name in asked.given and name not in {*read, *told}]
    return Loss(meaning.method, values, said, unread)


def names_in_trl(method: str) -> list[tuple[str, str]]:
    """What TRL calls a method, and which of its keys is which hyperparameter; with the version where the meaning changed."""
    found = []
    for trainer in TRAINERS.values():
        for table, version in ((trainer.losses, " since 0.29" if trainer.before else ""), (trainer.before, " until 0.28")):
            for key, meaning in table.items():
                if meaning.method != method:
                    continue
                twin = trainer.before.get(key) if table is trainer.losses else trainer.losses.get(key)
                when = version if twin is not None or table is trainer.before else ""
                here = [ours if ours == theirs else f"{ours} = {theirs}" for ours, theirs in meaning.takes.items()]
                here += [meaning.derives] * bool(meaning.derives) + [f"{name} = {value}" for name, value in meaning.sets.items()]
                found.append((f"{trainer.config}{when}: {_in_words(key)}".removesuffix(": "), ", ".join(here)))
    return found


def _in_words(key: str) -> str:
    """ "sigmoid, sft" -> "loss_type [sigmoid, sft]", "sigmoid, ld_alpha" -> "loss_type sigmoid with ld_alpha"."""
    names = [name for name in key.split(", ") if name and name not in OPTIONS]
    on = [name for name in key.split(", ") if name in OPTIONS]
    if not names:
        return ""
    return f"loss_type {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}" + (f" with {', '.join(on)}" if on else "")
