"""A whole configuration of TRL as one command: its loss, how it trains, what it loads; and every key that has no counterpart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...types import PreftuneError
from .losses import COMMON, OPTIONS, OUT_OF_SCOPE, TRAINERS, Asked, kind_of, loss_of, version_of

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
OPTIMISERS = {"adamw": "adamw", "paged_adamw": "adamw", "rmsprop": "rmsprop", "paged_rmsprop": "rmsprop", "sgd": "sgd"}

# keys that change what is learned, with the value that says nothing and why there is no counterpart
LEFT: dict[str, tuple[Any, str]] = {
    "adam_beta2": (0.999, "it is always 0.999"),
    "adam_epsilon": (1e-8, "it is always 1e-8"),
    "adafactor": (False, "there is AdamW, RMSprop and SGD"),
    "optim_args": (None, "the optimisers take no further arguments"),
    "optim_target_modules": (None, "the optimisers take all that trains"),
    "lr_scheduler_kwargs": (None, "the schedules have no further arguments"),
    "neftune_noise_alpha": (None, "no noise is put on embeddings"),
    "disable_dropout": (True, "dropout is always off, in policy and reference"),
    "data_seed": (None, "the order of the rows derives from seed"),
    "train_sampling_strategy": ("random", "rows are drawn in a new order in every epoch"),
    "group_by_length": (False, "rows are drawn in a new order in every epoch; lengths cost nothing, since nothing is padded"),
    "length_column_name": ("length", "rows are drawn in a new order in every epoch"),
    "dataloader_drop_last": (False, "the last rows of an epoch fill up a batch with the next epoch's"),
    "router_aux_loss_coef": (0.001, "there is no load-balancing loss for mixtures of experts"),
    "force_use_ref_model": (False, "the reference is the model as it was given, before training"),
    "ref_model_init_kwargs": (None, "the reference is the model as it was given, before training"),
    "model_adapter_name": (None, "an adapter folder trains its one adapter"),
    "ref_adapter_name": (None, "the reference is the adapter as it was given, or none"),
    "tools": (None, "templates are rendered without tools"),
    "is_encoder_decoder": (False, "models are decoders"),
    "load_best_model_at_end": (False, "--set early_stop=METRIC takes the best model, with eval_every and --test"),
    "metric_for_best_model": (None, "--set early_stop=METRIC takes the best model, with eval_every and --test"),
    "greater_is_better": (None, "the metric itself says so"),
    "resume_from_checkpoint": (None, "checkpoints of TRL are not read: give the model's folder"),
    "full_determinism": (False, "runs repeat bit by bit on a CPU; there is no switch"),
    "lora_dropout": (0.05, "dropout is always off, in adapters too"),
    "lora_target_parameters": (None, "adapters go onto linear layers"),
    "lora_modules_to_save": (None, "an adapter trains alone"),
    "lora_task_type": ("CAUSAL_LM", "models are causal language models"),
    "bnb_4bit_quant_type": ("nf4", "4 bits are NF4"),
    "model_revision": ("main", "the hub's main revision is loaded"),
    "attn_implementation": (None, "attention is computed by torch"),
    "datasets": (None, "give --data, a mixture as a.jsonl:0.7,b.jsonl:0.3"),
    "dataset_config": (None, "give the files of that configuration as --data"),
    "dataset_test_split": ("test", "give held-out rows as --test, a file or a share such as 0.1"),
    "dataset_streaming": (False, "data are mapped, not streamed"),
    "streaming": (False, "data are mapped, not streamed"),
    "test_split_size": (None, "--test 0.1 holds back a share, split by prompt"),
    "auto_find_batch_size": (False, "set micro_batch to what fits; it does not change the result"),
    "accelerate_config": (None, "a run uses one device"),
    "deepspeed": (None, "a run uses one device"),
    "fsdp": (None, "a run uses one device"),
    "parallelism_config": (None, "a run uses one device"),
    "prompt_sample_size": (1024, "TRL reads it with an embedding function only; put weights into the column weight"),
    "min_density_ratio": (0.5, "TRL reads it with an embedding function only; put weights into the column weight"),
    "max_density_ratio": (10.0, "TRL reads it with an embedding function only; put weights into the column weight"),
    "env": (None, "set environment variables in the shell"),
}

GROUPS = {  # keys that do not change what is learned: of memory and speed, logs, evaluation, files, the loading of data, several devices
    "compute": """precompute_ref_log_probs precompute_ref_batch_size padding_free pad_to_multiple_of pad_token padding_value
        label_pad_token_id dataset_num_proc use_liger_kernel use_liger_loss liger_kernel_config use_logits_to_keep activation_offloading
        base_model_attribute_name label_smoothing_factor average_tokens_across_devices use_bnb_nested_quant bnb_4bit_quant_storage
        bf16 fp16 tf32 bf16_full_eval fp16_full_eval half_precision_backend fp16_opt_level fp16_backend gradient_checkpointing_kwargs
        activation_checkpointing activation_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode torchdynamo
        use_cache torch_empty_cache_steps jit_mode_eval use_ipex use_mps_device no_cuda tpu_num_cores tpu_metrics_debug past_index""",
    "logs": """logging_strategy logging_steps logging_first_step logging_dir log_on_each_node logging_nan_inf_filter log_level
        include_num_input_tokens_seen include_tokens_per_second log_level_replica disable_tqdm report_to run_name project
        trackio_space_id trackio_bucket_id trackio_static_space_id""",
    "evaluation": """generate_during_eval per_device_eval_batch_size per_gpu_eval_batch_size prediction_loss_only eval_on_start eval_delay
        eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics include_inputs_for_metrics
        batch_eval_metrics eval_strategy evaluation_strategy eval_steps do_train do_eval do_predict""",
    "files": """save_only_model save_strategy save_on_each_node save_safetensors enable_jit_checkpoint overwrite_output_dir push_to_hub
        hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision push_to_hub_model_id push_to_hub_token
        push_to_hub_organization restore_callback_states_from_checkpoint""",
    "data": """ignore_data_skip accelerator_config dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names""",
    "devices": """ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
        ddp_timeout_delta fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap debug skip_memory_metrics local_rank
        mp_parameters ray_scope dispatch_batches split_batches ignore_bias_buffers""",
}
WITHOUT_EFFECT = frozenset(key for keys in GROUPS.values() for key in keys.split())


@dataclass
class Request:
    """A configuration of TRL as a run of preftune, and what has to be said about it."""

    trainer: str
    version: str
    method: str
    hyperparameters: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)  #  fields of TrainConfig
    options: dict[str, Any] = field(default_factory=dict)  #   --model, --data, ...
    load: dict[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  #       a name that means something else, a value that is lost
    notes: list[str] = field(default_factory=list)  #          how the rest was carried over
    left: dict[str, str] = field(default_factory=dict)  #      key -> why it has no counterpart
    without_effect: list[str] = field(default_factory=list)  # keys that change nothing of what is learned, or that this loss does not read
    unknown: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """What --set gets."""
        return {name: text(value) for name, value in {**self.hyperparameters, **self.training}.items()}

    @property
    def arguments(self) -> list[str]:
        """The command, word by word."""
        found = ["preftune", "train", self.method]
        for name, value in self.options.items():
            found += [f"--{name.replace('_', '-')}", text(value)]
        groups = {"--set": self.settings, "--load": self.load, "--read": self.read}
        return found + [
            part for option, values in groups.items() for name, value in values.items() for part in (option, f"{name}={text(value)}")
        ]


def text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def translate(
    given: Mapping[str, Any], *, trainer: str | None = None, version: str | None = None, devices: int | None = None, rows: int | None = None
) -> Request:
    """The run that a configuration of TRL asks for. devices: on how many it ran; rows: of the training data, for steps of warm-up."""
    kind = trainer or kind_of(given)
    if kind in OUT_OF_SCOPE:
        raise PreftuneError(f"--trainer is {kind!r}, needed one of {', '.join(TRAINERS)}: {OUT_OF_SCOPE[kind]}")
    if kind not in TRAINERS:
        raise PreftuneError(f"--trainer is {kind!r}, needed one of {', '.join(TRAINERS)}")
    reads, said = version_of(kind, given, version)
    asked = Asked(given, TRAINERS[kind], reads)
    loss = loss_of(asked)
    found = Request(kind, ".".join(map(str, reads)), loss.method, loss.values, warnings=loss.said, notes=said, without_effect=loss.unread)
    handled = {*TRAINERS[kind].defaults, *OPTIONS, "loss_type", "loss_weights"}
    for part in (_steps, _batch, _optimiser, _lengths, _model, _files):
        handled |= part(asked, found, devices, rows)
    _rest(asked, found, handled)
    return found


def _steps(asked: Asked, found: Request, devices: int | None, rows: int | None) -> set[str]:
    """Learning rate, its schedule, and how long."""
    found.training["lr"] = asked.number("learning_rate")
    steps = int(asked.number("max_steps"))
    found.training |= {"steps": steps} if steps > 0 else {"epochs": asked.number("num_train_epochs")}
    name = str(asked["lr_scheduler_type"]).rpartition(".")[2].lower()
    if name in SCHEDULES:
        found.training["schedule"] = SCHEDULES[name]
    else:
        found.training["schedule"] = "cosine" if "cosine" in name else "linear"
        found.warnings.append(
            f"lr_scheduler_type = {name!r} has no counterpart: {found.training['schedule']} down to 0 stands in its place"
        )
    found.training["warmup"] = 0.0 if name == "constant" else _warmup(asked, found, devices, rows)
    if name == "constant" and (asked.number("warmup_ratio") or asked.number("warmup_steps")):
        found.notes.append("transformers' schedule 'constant' ignores warm-up: so does this command")
    return {"learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_ratio", "warmup_steps"}


def _warmup(asked: Asked, found: Request, devices: int | None, rows: int | None) -> float:
    """As a share of the steps; transformers counts steps where they are given, and shares below 1 since its version 5."""
    steps, ratio = asked.number("warmup_steps"), asked.number("warmup_ratio")
    if 0 < steps < 1 or steps == 0:
        return steps or ratio
    total = int(asked.number("max_steps"))
    if total <= 0 and rows is not None:
        total = math.ceil(asked.number("num_train_epochs") * rows / min(_global_batch(asked, devices), rows))
    if total <= 0:
        found.warnings.append(
            f"warmup_steps = {steps:g} is a number of steps, warmup here is a share of them: --rows N, the rows of the training "
            "data, converts it; the command has 0.1"
        )
        return 0.1
    if steps >= total:
        raise PreftuneError(f"warmup_steps is {steps:g} of {total} steps, needed fewer: the rate would never reach its peak; lower it")
    share = math.floor(steps / total * 1e6) / 1e6
    return share if math.ceil(share * total) <= steps else share - 1e-6  # the share's steps, rounded up, are those given


def _global_batch(asked: Asked, devices: int | None) -> int:
    return int(asked.number("per_device_train_batch_size") * asked.number("gradient_accumulation_steps")) * (devices or 1)


def _batch(asked: Asked, found: Request, devices: int | None, rows: int | None) -> set[str]:
    """Rows of a step and of a forward pass."""
    processes = asked.given.get("num_processes")
    devices = devices or (int(processes) if processes else None)
    micro, accumulated = int(asked.number("per_device_train_batch_size")), int(asked.number("gradient_accumulation_steps"))
    found.training |= {"batch": _global_batch(asked, devices), "micro_batch": micro}
    found.notes.append(
        f"batch = {micro} rows x {accumulated} accumulated x {devices or 1} device{'s' * ((devices or 1) > 1)}"
        + ("" if devices else ": one device is assumed, --devices N says on how many TRL ran")
    )
    return {"per_device_train_batch_size", "gradient_accumulation_steps", "num_processes"}


def _optimiser(asked: Asked, found: Request, devices: int | None, rows: int | None) -> set[str]:
    """The optimiser, decay, clipping, seed."""
    name = str(asked["optim"]).rpartition("OptimizerNames.")[2].lower()
    stem = next((stem for stem in sorted(OPTIMISERS, key=len, reverse=True) if name.startswith(stem)), None)
    eight = stem is not None and "8bit" in name and OPTIMISERS[stem] == "adamw"
    found.training["optimiser"] = "adamw8bit" if eight else OPTIMISERS[stem] if stem else "adamw"
    if stem is None:
        found.warnings.append(f"optim = {name!r} has no counterpart: AdamW stands in its place, to which neither lr nor decay carries over")
    elif not eight and ("8bit" in name or "4bit" in name):
        found.notes.append(f"optim = {name!r} keeps its moments in few bits; here they are kept in full")
    if asked.number("adam_beta1") != COMMON["adam_beta1"] and found.training["optimiser"].startswith("adamw"):
        found.training["beta1"] = asked.number("adam_beta1")
    if asked.number("weight_decay"):
        found.training["weight_decay"] = asked.number("weight_decay")
    if asked.number("max_grad_norm") != COMMON["max_grad_norm"]:
        found.training["clip"] = asked.number("max_grad_norm")
    found.training["seed"] = int(asked.number("seed"))
    return {"optim", "adam_beta1", "weight_decay", "max_grad_norm", "seed"}


def _lengths(asked: Asked, found: Request, devices: int | None, rows: int | None) -> set[str]:
    """TRL bounds prompt and completion together, older versions the prompt besides; here each has a bound of its own."""
    keys = ("max_length", "max_prompt_length", "max_completion_length", "truncation_mode")
    off = "max_length" in asked.given and asked.given["max_length"] is None
    both = None if off else int(asked.number("max_length"))
    prompt, completion = (None if asked[key] is None else int(asked.number(key)) for key in keys[1:3])
    bounds = {"max_prompt": prompt or both, "max_response": completion or both}
    found.options |= {name: bound for name, bound in bounds.items() if bound is not None}
    if both is not None:
        loses = (
            "the beginning of the sequence" if asked["truncation_mode"] == "keep_end" else "the end of the completion, at worst all of it"
        )
        cut = found.warnings if asked["truncation_mode"] == "keep_end" else found.notes
        cut.append(
            f"max_length = {both} bounds prompt and completion together in TRL, and {asked['truncation_mode']} cuts {loses}; "
            "here a prompt loses its beginning and a response its end, each under a bound of its own, and what was cut is counted"
        )
    return set(keys)


def _model(asked: Asked, found: Request, devices: int | None, rows: int | None) -> set[str]:
    """How the model is loaded, and what of it trains."""
    init = asked.given.get("model_init_kwargs") or {}
    init = init if isinstance(init, Mapping) else {}
    dtype = str(asked.given.get("dtype") or asked.given.get("torch_dtype") or init.get("dtype") or init.get("torch_dtype") or "auto")
    if dtype.removeprefix("torch.") in ("float32", "bfloat16", "float16"):
        found.load["dtype"] = dtype.removeprefix("torch.")
    if asked.flag("use_peft"):
        rank, alpha = int(asked.number("lora_r")), asked.number("lora_alpha")
        if asked.flag("use_rslora"):
            found.notes.append(f"use_rslora scales by alpha / sqrt(r): lora_alpha = {alpha:g} x sqrt({rank}) does the same here")
            alpha *= math.sqrt(rank)
        found.load |= {"train": "dora" if asked.flag("use_dora") else "lora", "lora_r": rank, "lora_alpha": alpha}
        _targets(asked, found)
    if asked.flag("load_in_4bit") or asked.flag("load_in_8bit"):
        found.load["quantize"] = 4 if asked.flag("load_in_4bit") else 8
        found.load.setdefault("train", "lora")
    if "gradient_checkpointing" in asked.given and asked.flag("gradient_checkpointing"):
        found.load["checkpointing"] = True
    if asked.flag("trust_remote_code") or init.get("trust_remote_code"):
        found.load["trust_remote_code"] = True
    if asked.flag("use_cpu"):
        found.load["device"] = "cpu"
    found.unknown += [f"model_init_kwargs.{name}" for name in init if name not in ("dtype", "torch_dtype", "trust_remote_code", *LEFT)]
    found.left |= {f"model_init_kwargs.{name}": LEFT[name][1] for name, value in init.items() if name in LEFT and value != LEFT[name][0]}
    if not asked.flag("use_peft"):  # of a script's ModelConfig, which lists them whether they are used or not
        found.without_effect += [name for name in asked.given if name.startswith("lora_") or name in ("use_rslora", "use_dora")]
    keys = (
        "model_init_kwargs dtype torch_dtype use_peft use_rslora use_dora lora_r lora_alpha lora_target_modules load_in_4bit load_in_8bit"
    )
    return {*keys.split(), "gradient_checkpointing", "trust_remote_code", "use_cpu"}


def _targets(asked: Asked, found: Request) -> None:
    """Which layers get an adapter: PEFT matches one text as a pattern against whole names."""
    targets = asked.given.get("lora_target_modules")
    targets = [targets] if isinstance(targets, str) else list(targets or [])
    if not targets:
        found.warnings.append(
            "lora_target_modules is not set: PEFT then adapts few layers of each architecture (often q_proj and v_proj), here "
            "all linear ones; --load lora_targets=... names them"
        )
    elif targets != ["all-linear"]:
        found.load["lora_targets"] = (
            rf".*\b({'|'.join(map(re.escape, map(str, targets)))})" if len(targets) > 1 else rf".*\b{re.escape(targets[0])}"
        )


def _files(asked: Asked, found: Request, devices: int | None, rows: int | None) -> set[str]:
    """Model, data and folder, and what a run writes."""
    named = {"model": "model_name_or_path", "data": "dataset_name", "out": "output_dir"}
    for ours, theirs in named.items():
        if asked.given.get(theirs):
            found.options[ours] = asked.given[theirs]
        elif ours != "out":
            found.options[ours] = ours.upper()
            found.notes.append(f"the configuration names no {ours}: put it where {ours.upper()} stands")
    found.options = {name: found.options[name] for name in ("model", "data", "out", "max_prompt", "max_response") if name in found.options}
    split = asked.given.get("dataset_train_split")
    if split and split != "train":
        found.read["split"] = split
    keep = asked.given.get("save_total_limit")
    if keep:
        found.training["keep"] = int(keep)
    every = asked.number("save_steps") if "save_steps" in asked.given else 0
    if asked["save_strategy"] == "steps" and every >= 1 and every != COMMON["save_steps"]:
        found.training["save_every"] = int(every)
    strategy = asked.given.get("eval_strategy") or asked.given.get("evaluation_strategy") or "no"
    if str(strategy).rpartition(".")[2].lower() == "steps":
        found.notes.append(f"to evaluate while training give --test and --set eval_every={asked.number('eval_steps'):g}")
    trackers = asked.given.get("report_to") or []
    known = {"tensorboard", "wandb", "trackio"} & set([trackers] if isinstance(trackers, str) else map(str, trackers))
    found.notes += [f"report_to = {name}: add --set tracker={name}" for name in sorted(known)]
    return {*named.values(), "dataset_train_split", "save_total_limit", "save_steps"}


def _rest(asked: Asked, found: Request, handled: set[str]) -> None:
    """Every other key, each in one of three lists."""
    for key, value in asked.given.items():
        if key in handled or key in found.without_effect:
            continue
        if key in LEFT:
            if value not in (LEFT[key][0], None) and value not in ({}, [], ""):
                found.left[key] = LEFT[key][1]
            else:
                found.without_effect.append(key)
        elif key in WITHOUT_EFFECT:
            found.without_effect.append(key)
        else:
            found.unknown.append(key)
    if asked.flag("padding_free"):
        found.warnings.append(
            "TRL ignores padding_free since 0.29, with a warning; here nothing is padded in any case"
            if not asked.old
            else "padding_free changes memory and speed only; here nothing is padded in any case"
        )
    if asked.flag("precompute_ref_log_probs"):
        found.notes.append("precompute_ref_log_probs: the reference's log-probs are always kept on disk and shared by later runs")
    if asked.number("label_smoothing_factor") if asked.given.get("label_smoothing_factor") else 0:
        found.warnings.append("label_smoothing_factor belongs to transformers' own loss, which no preference trainer of TRL computes")
