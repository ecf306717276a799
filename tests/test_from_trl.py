"""preftune from-trl: configurations as TRL saves them and as people write them, the command that is printed, and every warning."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from conftest import Run
from preftune.api import prepare
from preftune.cli import application
from preftune.cli.from_trl import lines, read_config
from preftune.cli.options import loading, pairs, reading
from preftune.cli.train import OPTIONS as TRAIN_OPTIONS
from preftune.cli.trl.losses import TRAINERS, kind_of
from preftune.cli.trl.run import LEFT, WITHOUT_EFFECT, Request, translate
from preftune.data import save
from preftune.data.synthetic import arithmetic
from preftune.types import PreftuneError
from text_fixtures import tiny_folder, tiny_model


def parsed(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """What `preftune train` itself reads from a command: the method and its settings. Everything but the model is checked."""
    assert arguments[:2] == ["preftune", "train"]
    command = typer.main.get_command(application("train")).commands["train"]  # type: ignore[attr-defined]
    read = command.make_context("train", list(arguments[2:])).params
    settings = pairs(read["setting"] or [])
    prepare(read["method"], settings)
    loading(pairs(read["load"] or [], "--load"))
    reading(pairs(read["read"] or [], "--read"), {})
    assert read["model"] and read["data"] and not set(settings) & set(TRAIN_OPTIONS)
    return read["method"], settings


def training(given: dict[str, Any], trainer: str = "dpo", **more: Any) -> dict[str, Any]:
    return translate(given, trainer=trainer, **more).training


# --- the command parses ---------------------------------------------------------------------------------------------

ON = {
    "f_divergence_type": {"f_divergence_type": "js_divergence"},
    "ld_alpha": {"ld_alpha": 0.3},
    "use_weighting": {"use_weighting": True},
    "sync_ref_model": {"sync_ref_model": True},
    "reference_free": {"reference_free": True},
    "rpo_alpha": {"rpo_alpha": 0.5},
}
EVERY = [
    (trainer, key, version)
    for trainer, class_ in TRAINERS.items()
    for table, version in ((class_.losses, "1.16"), (class_.before, "0.24"))
    for key in table
]


@pytest.mark.parametrize(("trainer", "key", "version"), EVERY, ids=[" ".join(row) for row in EVERY])
def test_every_command_is_one_that_train_reads(trainer: str, key: str, version: str) -> None:
    names = [name for name in key.split(", ") if name and name not in ON]
    given: dict[str, Any] = {"learning_rate": "5e-7"}
    if names:
        given["loss_type"] = names if len(names) > 1 else names[0]
    if names == ["exo_pair"]:
        given["label_smoothing"] = 0.01
    for name in set(key.split(", ")) & set(ON):
        given |= ON[name]
    asked = translate(given, trainer=trainer, version=version)
    method, settings = parsed(asked.arguments)
    assert method == {**TRAINERS[trainer].losses, **(TRAINERS[trainer].before if version == "0.24" else {})}[key].method
    assert settings["lr"] == "5e-07" and settings == asked.settings


def test_a_printed_command_runs_as_it_stands(preftune: Run, tmp_path: Path) -> None:
    """Copied from the terminal into a shell, with --dry-run behind it."""
    tiny_folder(tmp_path / "model")
    save(arithmetic(16), tmp_path / "pairs.jsonl")
    given = {
        "model_name_or_path": "model", "dataset_name": "pairs.jsonl", "loss_type": ["sigmoid"], "beta": 0.05, "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4, "warmup_steps": 2, "max_steps": 10, "bf16": True, "use_cpu": True,
    }  # fmt: skip
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(given))
    code, said, _ = preftune("from-trl", "dpo.yaml", "--trainer", "dpo")
    assert code == 0
    command = shlex.split(said.partition("\n\n")[0].replace("\\\n", " "))
    code, planned, _ = preftune(*command[1:], "--dry-run", "--json")
    facts = json.loads(planned)
    assert code == 0 and facts["method"] == "dpo" and facts["hyperparameters"]["beta"] == 0.05 and facts["steps"] == 10
    adapted = 3 * 4 * ((32 + 32) + (32 + 16))  # layers x r x (in + out) of q_proj [32 -> 32] and v_proj [32 -> 16]
    assert facts["parameters"] == adapted


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], "o_proj"])
def test_lora_targets_adapt_the_layers_that_peft_adapts(targets: list[str] | str) -> None:
    from peft import LoraConfig, get_peft_model

    ours = translate({"use_peft": True, "lora_target_modules": targets}, trainer="dpo").load["lora_targets"]
    theirs = [targets] if isinstance(targets, str) else targets
    adapted = [
        sorted(
            name for name, _ in get_peft_model(tiny_model(layers=1), LoraConfig(target_modules=chosen)).named_parameters() if "lora" in name
        )
        for chosen in (ours, theirs)
    ]
    assert adapted[0] == adapted[1] != []


# --- how it trains --------------------------------------------------------------------------------------------------


def test_what_is_not_written_is_trls_default() -> None:
    asked = translate({"beta": 0.1}, trainer="dpo")
    assert asked.hyperparameters == {"beta": 0.1}
    assert asked.training == {
        "lr": 1e-6, "epochs": 3.0, "schedule": "linear", "warmup": 0.0, "batch": 8, "micro_batch": 8, "optimiser": "adamw", "seed": 42,
    }  # fmt: skip
    assert asked.options == {"model": "MODEL", "data": "DATA", "max_prompt": 1024, "max_response": 1024}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"learning_rate": "5.0e-7"}, {"lr": 5e-7}),
        ({"num_train_epochs": 1}, {"epochs": 1.0}),
        ({"max_steps": 100}, {"steps": 100}),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, {"batch": 16, "micro_batch": 2}),
        ({"per_device_train_batch_size": 2, "num_processes": 4}, {"batch": 8, "micro_batch": 2}),
        ({"lr_scheduler_type": "cosine", "warmup_ratio": 0.1}, {"schedule": "cosine", "warmup": 0.1}),
        ({"lr_scheduler_type": "SchedulerType.LINEAR"}, {"schedule": "linear"}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"schedule": "constant", "warmup": 0.0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, {"schedule": "constant", "warmup": 0.1}),
        ({"warmup_steps": 0.2}, {"warmup": 0.2}),  # a share since transformers 5
        ({"warmup_steps": 25, "max_steps": 100}, {"warmup": 0.25}),
        ({"max_grad_norm": 0.3}, {"clip": 0.3}),
        ({"max_grad_norm": 0}, {"clip": 0.0}),
        ({"seed": 7}, {"seed": 7}),
        ({"optim": "adamw_torch_fused", "adam_beta1": 0.95}, {"optimiser": "adamw", "beta1": 0.95}),
        ({"optim": "paged_adamw_8bit"}, {"optimiser": "adamw8bit"}),
        ({"optim": "adamw_torch_4bit"}, {"optimiser": "adamw"}),
        ({"optim": "rmsprop"}, {"optimiser": "rmsprop"}),
        ({"optim": "sgd"}, {"optimiser": "sgd"}),
        ({"weight_decay": 0.01}, {"weight_decay": 0.01}),
        ({"save_steps": 50, "save_total_limit": 3}, {"save_every": 50, "keep": 3}),
    ],
)
def test_a_training_setting_is_carried_over(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = training(given)
    assert {name: found[name] for name in expected} == expected
    parsed(translate(given, trainer="dpo").arguments)


@pytest.mark.parametrize("steps", [1, 3, 7, 100, 333])
@pytest.mark.parametrize("total", [400, 997, 12345])
def test_steps_of_warm_up_become_the_share_that_gives_them_back(steps: int, total: int) -> None:
    share = training({"warmup_steps": steps, "max_steps": total})["warmup"]
    assert math.ceil(share * total) == steps  # how training.schedule counts them


def test_steps_of_warm_up_need_the_number_of_rows() -> None:
    given = {"warmup_steps": 10, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    assert "--rows" in " ".join(translate(given, trainer="dpo").warnings)
    found = translate(given, trainer="dpo", rows=100, devices=2)  # 2 x 100 rows in batches of 8: 25 steps
    assert math.ceil(found.training["warmup"] * 25) == 10 and "--rows" not in " ".join(found.warnings)
    with pytest.raises(PreftuneError, match="never reach its peak"):
        translate(given, trainer="dpo", rows=20)


def test_devices_multiply_the_batch() -> None:
    found = translate({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, trainer="dpo", devices=8)
    assert found.training["batch"] == 64
    assert any("4 rows x 2 accumulated x 8 devices" in note for note in found.notes)


def test_the_model_is_loaded_as_asked() -> None:
    given = {"use_peft": True, "use_dora": True, "lora_r": 8, "lora_alpha": 16, "load_in_4bit": True, "dtype": "bfloat16"}
    assert translate(given, trainer="dpo").load == {
        "dtype": "bfloat16", "train": "dora", "lora_r": 8, "lora_alpha": 16.0, "quantize": 4
    }  # fmt: skip
    given = {"model_init_kwargs": {"torch_dtype": "torch.float16", "trust_remote_code": True, "attn_implementation": "flash_attention_2"}}
    found = translate({**given, "gradient_checkpointing": True}, trainer="dpo")
    assert found.load == {"dtype": "float16", "checkpointing": True, "trust_remote_code": True}
    assert found.left == {"model_init_kwargs.attn_implementation": LEFT["attn_implementation"][1]}


def test_rank_stabilised_adapters_scale_alike() -> None:
    load = translate({"use_peft": True, "use_rslora": True, "lora_r": 16, "lora_alpha": 32}, trainer="dpo").load
    assert load["lora_alpha"] / load["lora_r"] == 32 / math.sqrt(16)


def test_adapter_keys_without_use_peft_do_nothing() -> None:
    """TRL's ModelConfig lists them in every saved configuration."""
    found = translate({"use_peft": False, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}, trainer="dpo")
    assert not found.load and not found.left and {"lora_r", "lora_alpha", "lora_dropout"} <= set(found.without_effect)


@pytest.mark.parametrize(
    ("given", "version", "bounds"),
    [
        ({}, "1.16", (1024, 1024)),
        ({"max_length": 512}, "1.16", (512, 512)),
        ({"max_length": None}, "1.16", (None, None)),
        ({}, "0.24", (512, 1024)),
        ({"max_prompt_length": 256, "max_completion_length": 128}, "0.24", (256, 128)),
    ],
)
def test_lengths_become_bounds(given: dict[str, Any], version: str, bounds: tuple[int | None, int | None]) -> None:
    options = translate(given, trainer="dpo", version=version).options
    assert (options.get("max_prompt"), options.get("max_response")) == bounds


# --- every key is accounted for -------------------------------------------------------------------------------------


def accounted(found: Request, given: dict[str, Any]) -> None:
    listed = {*found.left, *found.without_effect, *found.unknown}
    told = " ".join([*found.warnings, *found.notes, *found.arguments])
    handled = set(given) - listed
    assert not set(found.unknown) & ({*LEFT} | WITHOUT_EFFECT), "a known key was called unknown"
    assert told and handled | listed == set(given)


def test_everything_that_transformers_saves_is_known(tmp_path: Path) -> None:
    """The fields of TrainingArguments, which every configuration of TRL inherits, as `to_dict` writes them."""
    from transformers import TrainingArguments

    given = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none").to_dict()
    found = translate({**given, "beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None}, trainer="dpo")
    assert found.unknown == [] and found.left == {}
    assert found.warnings == []
    parsed(found.arguments)
    accounted(found, given)


SAVED = {  # fields of TRL's own classes with their defaults
    "dpo": (
        "1.16",
        dict(model_init_kwargs=None, trust_remote_code=False, router_aux_loss_coef=0.001, disable_dropout=True, dataset_num_proc=None,
             max_length=1024, truncation_mode="keep_start", padding_free=False, pad_to_multiple_of=None, precompute_ref_log_probs=False,
             precompute_ref_batch_size=None, loss_type=["sigmoid"], loss_weights=None, ld_alpha=None, f_divergence_type="reverse_kl",
             f_alpha_divergence_coef=0.5, label_smoothing=0.0, beta=0.1, use_weighting=False, discopop_tau=0.05,
             activation_offloading=False,
             sync_ref_model=False, ref_model_mixup_alpha=0.6, ref_model_sync_steps=512, pad_token="<PAD_TOKEN>"),
    ),
    "dpo before": (
        "0.24",
        dict(model_init_kwargs=None, ref_model_init_kwargs=None, model_adapter_name=None, ref_adapter_name=None, force_use_ref_model=False,
             disable_dropout=True, use_logits_to_keep=False, dataset_num_proc=None, pad_token=None, label_pad_token_id=-100,
             max_prompt_length=512, max_completion_length=None, max_length=1024, truncation_mode="keep_end", padding_free=False,
             precompute_ref_log_probs=False, precompute_ref_batch_size=None, tools=None, loss_type="sigmoid", use_liger_loss=False,
             base_model_attribute_name="model", beta=0.1, f_divergence_type="reverse_kl", f_alpha_divergence_coef=1.0, reference_free=False,
             label_smoothing=0.0, use_weighting=False, rpo_alpha=None, ld_alpha=None, discopop_tau=0.05, loss_weights=None,
             sync_ref_model=False, ref_model_mixup_alpha=0.6, ref_model_sync_steps=512, generate_during_eval=False, padding_value=None),
    ),
    "kto": (
        "1.16",
        dict(train_sampling_strategy="sequential", model_init_kwargs=None, trust_remote_code=False, router_aux_loss_coef=0.001,
             disable_dropout=True, dataset_num_proc=None, max_length=1024, pad_to_multiple_of=None, precompute_ref_log_probs=False,
             precompute_ref_batch_size=None, loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0,
             activation_offloading=False, sync_ref_model=False, ref_model_mixup_alpha=0.6, ref_model_sync_steps=512),
    ),
    "cpo": (
        "1.16",
        dict(max_length=1024, max_completion_length=None, beta=0.1, label_smoothing=0.0, loss_type="sigmoid", disable_dropout=True,
             cpo_alpha=1.0, simpo_gamma=0.5, alpha=0.0, generate_during_eval=False, is_encoder_decoder=None, model_init_kwargs=None,
             trust_remote_code=False, dataset_num_proc=None),
    ),
    "orpo": (
        "1.16",
        dict(max_length=1024, max_completion_length=None, beta=0.1, disable_dropout=True, padding_value=None, generate_during_eval=False,
             is_encoder_decoder=None, model_init_kwargs=None, trust_remote_code=False, dataset_num_proc=None),
    ),
    "tpo": (
        "1.16",
        dict(model_init_kwargs=None, trust_remote_code=False, disable_dropout=True, dataset_num_proc=None, max_length=1024,
             truncation_mode="keep_start", pad_to_multiple_of=None, loss_type="sigmoid", beta=0.01, label_smoothing=0.0, tpo_alpha=1.0,
             tpo_l_gamma=0.5),
    ),
    "bco": (
        "0.24",
        dict(max_length=1024, max_completion_length=None, beta=0.1, disable_dropout=True, generate_during_eval=False,
             is_encoder_decoder=None, precompute_ref_log_probs=False, model_init_kwargs=None, trust_remote_code=False,
             dataset_num_proc=None,
             prompt_sample_size=1024, min_density_ratio=0.5, max_density_ratio=10.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_everything_that_trl_saves_is_known_and_its_kind_is_told(name: str) -> None:
    version, given = SAVED[name]
    trainer = name.split()[0]
    if trainer != "orpo":  # its keys are those of the others
        assert kind_of(given) == trainer
    found = translate(given, trainer=trainer)
    assert found.unknown == [] and set(found.left) <= {"train_sampling_strategy"}
    if trainer == "dpo":
        assert found.version == version  # told by keys that one of the two versions does not have
    parsed(found.arguments)
    accounted(found, given)


def test_an_unknown_key_is_listed(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("beta: 0.1\nloss_typ: hinge\nld_alpha: null\n")
    code, said, _ = preftune("from-trl", "c.yaml")
    assert code == 0 and re.search(r"unknown +loss_typ", said)
    _, said, _ = preftune("from-trl", "c.yaml", "--json")
    assert json.loads(said)["unknown"] == ["loss_typ"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("adam_beta2", 0.95), ("neftune_noise_alpha", 5), ("disable_dropout", False), ("deepspeed", "zero3.json"), ("data_seed", 3),
     ("router_aux_loss_coef", 0.01), ("load_best_model_at_end", True), ("dataset_config", "en")],
)  # fmt: skip
def test_a_key_without_counterpart_is_listed_with_its_reason(key: str, value: Any) -> None:
    assert translate({key: value}, trainer="dpo").left == {key: LEFT[key][1]}
    assert translate({key: LEFT[key][0]}, trainer="dpo").left == {}


# --- where a name means something else ------------------------------------------------------------------------------

WARNED: dict[str, tuple[str, str | None, dict[str, Any], str]] = {  # trainer, version, configuration, what is said
    "label smoothing is ignored": ("dpo", None, {"label_smoothing": 0.1}, "ignore label_smoothing with 'sigmoid'.*label_smoothing=0.1"),
    "hinge is not SLiC-HF": ("dpo", None, {"loss_type": "hinge"}, "hinge-norm of RSO.*slic"),
    "hinge ignores smoothing": ("dpo", None, {"loss_type": "hinge", "label_smoothing": 0.1}, "ignores label_smoothing with 'hinge'"),
    "ipo is per token": ("dpo", None, {"loss_type": "ipo"}, "per token, the paper sums.*ipo-avg"),
    "alpha is inverted": (
        "dpo", None, {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, "paper's alpha = 0.7.*inverted",
    ),
    "alpha was the paper's": (
        "dpo", "0.24", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, "paper's alpha = 0.3",
    ),
    "bco_pair lost its shift": ("dpo", None, {"loss_type": "bco_pair"}, "lost the paper's running shift"),
    "exo takes no 0": ("dpo", "0.24", {"loss_type": "exo_pair"}, "label_smoothing = 0 by 0.001 silently"),
    "robust without a rate is dpo": ("dpo", None, {"loss_type": "robust"}, "plain DPO"),
    "sppo_hard is one round": ("dpo", None, {"loss_type": "sppo_hard"}, "samples and judges in rounds"),
    "sigmoid_norm wants another beta": ("dpo", None, {"loss_type": "sigmoid_norm"}, "Tulu 3 uses 5"),
    "aot sorts micro-batches": ("dpo", None, {"loss_type": "aot"}, "micro-batch of 8 pairs"),
    "aot_pair was unpaired": ("dpo", "0.24", {"loss_type": "aot_pair"}, "UNPAIRED.*'aot_unpaired' since 0.28"),
    "rpo_alpha is gone": ("dpo", None, {"rpo_alpha": 1.0}, "removed rpo_alpha in 0.29"),
    "ld_alpha was half": ("dpo", "0.24", {"ld_alpha": 0.5}, "policy's log-probs but not of the reference's"),
    "the sft term counts tokens": ("dpo", None, {"loss_type": ["sigmoid", "sft"]}, "mean over the chosen tokens of a micro-batch"),
    "a weight on the first loss scales": (
        "dpo", None, {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 1.0]}, "0.5 times this one.*clips at 2 times",
    ),
    "a weight on one loss is left out": ("dpo", None, {"loss_type": ["sigmoid"], "loss_weights": [0.5]}, "AdamW undoes"),
    "padding_free is ignored": ("dpo", None, {"padding_free": True}, "ignores padding_free since 0.29"),
    "keep_end cuts the prompt": ("dpo", None, {"truncation_mode": "keep_end"}, "keep_end cuts the beginning of the sequence"),
    "kto pairs and samples in order": ("kto", None, {"beta": 0.1}, "one order over all epochs"),
    "simpo_gamma is gamma": ("cpo", None, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, "gamma / beta, which is 0.5 here"),
    "simpo needs cpo_alpha 0": ("cpo", None, {"loss_type": "simpo"}, "SimPO needs cpo_alpha: 0"),
    "simpo at TRL's defaults": ("cpo", None, {"loss_type": "simpo"}, "5 nats per token"),
    "cpo's ipo is not IPO": ("cpo", None, {"loss_type": "ipo"}, "has no reference.*not IPO"),
    "cpo's hinge is nearly SLiC-HF": ("cpo", None, {"loss_type": "hinge"}, "nearest TRL has to SLiC-HF"),
    "orpo counts the prompt": ("orpo", None, {"beta": 0.1}, "prompt and completion"),
    "tpo's column is no model": ("tpo", None, {"beta": 0.1}, "gold response, no model"),
    "tpo-l at its default": ("tpo", None, {"loss_type": "tpo-l"}, "nearly constant"),
    "an optimiser without counterpart": ("dpo", None, {"optim": "adafactor"}, "'adafactor' has no counterpart"),
    "a schedule without counterpart": ("dpo", None, {"lr_scheduler_type": "inverse_sqrt"}, "'inverse_sqrt' has no counterpart"),
    "adapters go everywhere": ("dpo", None, {"use_peft": True}, "lora_target_modules is not set"),
    "transformers' smoothing": ("dpo", None, {"label_smoothing_factor": 0.1}, "transformers' own loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_a_name_that_means_something_else_is_warned_of(name: str) -> None:
    trainer, version, given, said = WARNED[name]
    found = translate(given, trainer=trainer, version=version)
    assert any(re.search(said, warning) for warning in found.warnings), found.warnings
    parsed(found.arguments)


def test_a_plain_configuration_gets_no_warning() -> None:
    assert translate({"loss_type": "sigmoid", "beta": 0.1}, trainer="dpo").warnings == []
    assert translate({"loss_type": "apo_zero", "beta": 0.1, "bf16": True}, trainer="dpo").warnings == []


@pytest.mark.parametrize(
    ("trainer", "version", "given", "said"),
    [
        ("dpo", None, {"loss_type": ["sigmoid", "hinge"]}, "1 sigmoid \\+ 1 hinge is no single method"),
        ("dpo", None, {"loss_type": ["sigmoid", "sft"], "use_weighting": True}, "multiplies every loss"),
        ("dpo", "0.24", {"loss_type": ["sigmoid", "ipo"]}, "log-probs of all its losses means per token"),
        ("dpo", None, {"loss_type": "hinge", "f_divergence_type": "js_divergence"}, "f-dpo is DPO's loss"),
        ("dpo", None, {"sync_ref_model": True, "use_weighting": True}, "use_weighting and sync_ref_model is no single method"),
        ("dpo", "0.24", {"sync_ref_model": True, "label_smoothing": 0.1}, "tr-dpo has no label_smoothing"),
        ("kto", None, {"loss_type": "apo_zero_unpaired", "desirable_weight": 2.0}, "apo-zero-unpaired has no desirable_weight"),
        ("kto", None, {"sync_ref_model": True}, "no single method"),
        ("cpo", None, {"loss_type": "simpo", "alpha": 0.5}, "AlphaPO is loss_type 'alphapo'"),
        ("cpo", None, {"loss_type": "sigmoid", "alpha": 0.5}, "exponentiates other log-probs"),
        ("cpo", None, {"loss_type": "alphapo", "alpha": 0.5, "label_smoothing": 0.1}, "alphapo has no label_smoothing"),
    ],
)
def test_what_is_no_single_method_is_refused_with_a_reason(trainer: str, version: str | None, given: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        translate(given, trainer=trainer, version=version)


@pytest.mark.parametrize(
    ("trainer", "version", "given", "said"),
    [
        ("dpo", None, {"loss_type": "sigmod"}, "loss_type is 'sigmod', needed one of"),
        ("dpo", None, {"loss_type": "kto_pair"}, "removed it in 2024"),
        ("dpo", "1.16", {"loss_type": "aot_pair"}, "called 'aot_unpaired' since 0.28"),
        ("dpo", "1.0", {"loss_type": "sigmoid_norm"}, "needed one of"),
        ("dpo", "1.16", {"rpo_alpha": 1.0}, "does not know, needed a version before 0.29"),
        ("dpo", "0.24", {"f_divergence_type": "forward_kl"}, "f_divergence_type is 'forward_kl'"),
        ("dpo", None, {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2.0}, "needed 0 <= alpha <= 1"),
        ("dpo", None, {"loss_weights": [1, 2]}, "loss_weights has 2 numbers, needed 1"),
        ("dpo", None, {"beta": "much"}, "beta is 'much', needed a number"),
        (None, None, {"loss_type": 5}, "may be of several trainers"),
        ("dpo", None, {"loss_type": 5}, "loss_type is .*5.*needed one of"),
        ("dpo", "newest", {}, "--trl-version is 'newest'"),
        ("ppo", None, {}, "PPO samples and scores"),
        ("nonsense", None, {}, "needed one of dpo, kto"),
    ],
)
def test_a_mistake_is_answered_in_words(trainer: str | None, version: str | None, given: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        translate(given, trainer=trainer, version=version)


@pytest.mark.parametrize(("coefficient", "method"), [(0.0, "f-dpo"), (1.0, "dpo"), (0.5, "f-dpo")])
def test_the_alpha_divergence_at_its_limits_is_what_it_tends_to(coefficient: float, method: str) -> None:
    found = translate({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coefficient}, trainer="dpo")
    assert found.method == method
    assert found.hyperparameters.get("divergence", "reverse_kl") == {0.0: "forward_kl", 1.0: "reverse_kl", 0.5: "alpha"}[coefficient]


# --- versions and kinds ---------------------------------------------------------------------------------------------


def test_keys_that_were_removed_tell_the_version() -> None:
    assert translate({"label_smoothing": 0.1}, trainer="dpo").hyperparameters == {"beta": 0.1}
    old = translate({"label_smoothing": 0.1, "reference_free": False}, trainer="dpo")
    assert old.version == "0.24" and old.hyperparameters == {"beta": 0.1, "label_smoothing": 0.1}
    assert any("reference_free: only TRL before 0.29" in note for note in old.notes)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"cpo_alpha": 0.0}, "cpo"),
        ({"loss_type": "simpo"}, "cpo"),
        ({"loss_type": ["sigmoid", "sft"]}, "dpo"),
        ({"loss_type": "nca_pair"}, "dpo"),
        ({"desirable_weight": 1.0}, "kto"),
        ({"loss_type": "tpo-l"}, "tpo"),
        ({"rpo_alpha": 1.0}, "dpo"),
    ],
)
def test_keys_tell_the_kind(given: dict[str, Any], kind: str) -> None:
    assert kind_of(given) == kind


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beta": 0.1, "loss_type": "sigmoid"}, "its keys are common"),
        ({"cpo_alpha": 1.0, "desirable_weight": 1.0}, "desirable_weight of KTOConfig; cpo_alpha of CPOConfig"),
    ],
)
def test_an_ambiguous_kind_is_asked_for(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError, match=said + ".*--trainer"):
        kind_of(given)


# --- files and the command ------------------------------------------------------------------------------------------


def test_json_and_yaml_are_read_alike(tmp_path: Path) -> None:
    given = {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "learning_rate": 5e-7, "loss_weights": None}
    (tmp_path / "a.json").write_text(json.dumps(given))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(given))
    assert read_config(tmp_path / "a.json") == read_config(tmp_path / "b.yaml") == given


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("training_args.bin", "x", "may run code"),
        ("c.yaml", "beta: [1", "neither JSON nor YAML"),
        ("c.yaml", "just words", "holds str"),
        ("c.json", "{}", "needed names and values"),
        ("nowhere.yaml", None, "there is no file"),
    ],
)
def test_a_file_that_is_none_is_refused(preftune: Run, tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    code, out, _ = preftune("from-trl", name, "--json")
    assert code == 3 and said in json.loads(out)["error"]


def test_the_command_prints_a_command_and_what_it_does_not_say(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"loss_type": "ipo", "beta": 0.1, "adam_beta2": 0.95, "use_weighting": False}))
    code, said, _ = preftune("from-trl", "c.json", "--devices", "4")
    assert code == 0 and said.startswith("preftune train ipo-avg \\\n    --model MODEL \\\n")
    assert (
        re.search(r"warning +TRL's 'ipo'", said) and re.search(r"left out +adam_beta2", said) and re.search(r"note +batch = 8 rows", said)
    )


def test_the_json_holds_the_same_as_one_object(preftune: Run, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0}))
    code, said, _ = preftune("from-trl", "c.json", "--json")
    facts = json.loads(said)
    assert code == 0 and facts["method"] == "simpo" and shlex.split(facts["command"]) == facts["arguments"]
    assert facts["hyperparameters"] == {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0}
    parsed(facts["arguments"])


def test_a_command_of_several_lines_is_the_command() -> None:
    words = ["preftune", "train", "dpo", "--model", "a model", "--load", r"lora_targets=.*\b(q|v)"]
    assert shlex.split(lines(words).replace("\\\n", " ")) == words


def test_a_number_keeps_its_digits() -> None:
    found = translate({"learning_rate": 1.2345678e-7, "beta": 0.30000000000000004}, trainer="dpo")
    assert float(found.settings["lr"]) == 1.2345678e-7 and torch.tensor(float(found.settings["beta"])) == torch.tensor(0.3)
