"""Judges that were trained here: a folder with an ordinary model, heads.safetensors and judge.json."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..policies.heads import head_parameters, make_heads
from ..policies.text.logprob import engine
from ..policies.text.model import TextPolicy, tensor_digest
from ..policies.text.model import load as load_policy
from ..policies.text.model import save as save_policy
from ..types import Head, Judge, Key, PreftuneError, Rows
from . import MADE
from .asking import Asker
from .headed import BothShown, GeneralPreference, Headed, Member, Rewards, words_of

HEADS = "heads.safetensors"
FORMAT = 1  # of judge.json
ANSWERS = 512  # rows of the training data, whose rewards the statistics are of
DRAWS = 8  #     of thinned heads, where dropout is asked for and their number is not
HELPSTEER = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.0, "verbosity": 0.0}  # arXiv:2406.08673
KINDS = {  # the head that a kind of judge cannot do without -> the kind
    "reward": "reward",
    "attributes": "attributes",
    "embedding": "general preference",
    "preference": "pairwise preference",
}
SCALED = ("reward", "attributes")  # kinds with scores, which have a mean and a deviation
ENSEMBLE = "ensemble"


def kind_of(heads: Mapping[str, Head]) -> str:
    """What judge these heads make."""
    found = [kind for name, kind in KINDS.items() if name in heads]
    if len(found) != 1:
        raise PreftuneError(
            f"the method has the heads {', '.join(heads) or 'none'}, needed one of {', '.join(KINDS)}: what a judge is made of; "
            "name the head so"
        )
    return found[0]


# --- writing --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def statistics(policy: TextPolicy, batches: Iterable[Rows]) -> dict[str, Any]:
    """Mean [C] and covariance [C][C] of each head's outputs over all responses of the rows, and how many these are."""
    found: dict[str, list[Tensor]] = {name: [] for name in policy.heads}
    for rows in batches:
        present = torch.ones(rows.response.shape, dtype=torch.bool) if rows.present is None else rows.present
        for name, out in policy.score_heads(rows).heads.items():
            found[name].append(out[present])
    values = {name: torch.cat(parts) for name, parts in found.items()}
    spread = lambda v: (v - v.mean(0)).mT @ (v - v.mean(0)) / len(v)
    told = {name: {"mean": v.mean(0).tolist(), "covariance": spread(v).tolist()} for name, v in values.items()}
    return {**told, "answers": len(next(iter(values.values())))}


def write(
    policy: TextPolicy,
    folder: Path,
    heads: Mapping[str, Head],
    described: Mapping[str, Any],
    measured: Mapping[str, Any],
    *,
    first: bool = True,
) -> None:
    """The folder of a judge. judge.json comes last: without it a folder is no judge. Every process calls this, the `first` one writes.

    described  method, hyperparameters, statistics, base, seed, versions;  measured  on held-out rows: name -> value, low, high
    """
    from safetensors.torch import save_file

    kind, settings = kind_of(heads), described["hyperparameters"]
    more: dict[str, Any] = {}
    if kind == "general preference":
        more["tau"] = settings.get("tau", 1.0)  # a method from outside may have none
    if kind == "attributes":
        numbered = ",".join(f"output{i}" for i in range(heads["attributes"].size))  # likewise
        more["attributes"] = [name.strip() for name in settings.get("attributes", numbered).split(",")]
    save_policy(policy, folder, card(kind, described, measured))
    if not first:
        return
    weights = {name: p.detach().cpu().contiguous() for name, p in head_parameters(policy.heads).items()}
    save_file(weights, folder / HEADS)
    sizes = {name: {"size": head.size, "pool": head.pool} for name, head in heads.items()}
    told = {"format": FORMAT, "kind": kind, "heads": sizes, **more, "digest": digest(weights)}
    write_json(folder, {**told, **described, "measured": measured})


def card(kind: str, described: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The README.md of the folder."""
    lines = [f"| {name} | {one['value']:.4g} |" for name, one in measured.items() if one["value"] is not None]
    table = ["", "On held-out rows:", "", "| | |", "|---|---|", *lines] if lines else []
    return "\n".join(
        [
            f"# A judge: {kind}",
            "",
            f"`{described['base']}`, trained with `{described['method']}` of preftune. The model is an ordinary folder, but what it is for",
            f"are the heads in `{HEADS}`; `{MADE}` says how they are read.",
            "",
            "    preftune train METHOD --judge THIS_FOLDER ...",
            *table,
            "",
        ]
    )


def write_json(folder: Path, told: Mapping[str, Any]) -> None:
    """judge.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{MADE}.part"
    aside.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
    aside.replace(folder / MADE)


def digest(weights: Mapping[str, Tensor]) -> str:
    """Of all heads."""
    parts = [name.encode() + tensor_digest(weights[name]) for name in sorted(weights)]
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


# --- reading --------------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Any]:
    """What judge.json says."""
    file = folder / MADE
    if not file.is_file():
        raise PreftuneError(f"{folder} has no {MADE}, needed the folder of a trained judge; `preftune judge train` writes RUN/judge")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        told = None
    if not isinstance(told, dict) or told.get("format") != FORMAT or told.get("kind") not in (*KINDS.values(), ENSEMBLE):
        raise PreftuneError(f"{file} is not what `preftune judge train` writes, needed format {FORMAT} and a kind; train the judge again")
    return told


def read_heads(folder: Path, told: Mapping[str, Any], policy: TextPolicy) -> None:
    """Put the heads of the folder on the policy."""
    from safetensors.torch import load_file

    file = folder / HEADS
    if not file.is_file():
        raise PreftuneError(f"{folder} has no {HEADS}, needed beside {MADE}; copy the whole folder, or train the judge again")
    weights = load_file(file)
    heads = {name: Head(one["size"], pool=one["pool"]) for name, one in told["heads"].items()}
    policy.heads = make_heads(heads, policy.network.width, Key.of(0), policy.network.device)
    needed = {name: tuple(p.shape) for name, p in head_parameters(policy.heads).items()}
    found = {name: tuple(p.shape) for name, p in weights.items()}
    if found != needed or digest(weights) != told["digest"]:
        raise PreftuneError(
            f"{file} holds {found}, needed {needed} as they were trained; the file belongs to another judge: copy the whole folder again"
        )
    broken = [name for name, p in weights.items() if not p.isfinite().all()]
    if broken:
        raise PreftuneError(f"{file} holds numbers that are not finite in {', '.join(broken)}, needed finite ones; train the judge again")
    with torch.no_grad():
        for name, p in head_parameters(policy.heads).items():
            p.copy_(weights[name])


def thin(policy: TextPolicy, rate: float, draws: int) -> None:
    """Monte Carlo dropout: each head becomes `draws` of them, side by side, each reading a pooled state of which a share of `rate` is
    left out, always the same: a draw is one function, so its answers about two responses can be compared."""
    for name, head in policy.heads.items():
        size, width = head.linear.weight.shape
        kept = torch.stack([torch.from_numpy(Key.of(0).fold("dropout", j).numpy().random(width) >= rate) for j in range(draws)])
        masks = (kept.to(head.linear.weight) / (1 - rate)).to(head.linear.weight.device)  # [draws, d]
        wide = torch.nn.utils.skip_init(torch.nn.Linear, width, draws * size, device=masks.device)
        with torch.no_grad():
            wide.weight.copy_((masks[:, None] * head.linear.weight).reshape(-1, width))
            wide.bias.copy_(head.linear.bias.repeat(draws))
        policy.heads[name].linear = wide


def load(
    folder: str,
    device: str = "auto",
    dtype: str = "auto",
    tokens_per_batch: int | None = None,
    keep: bool = True,
    weights: str | None = None,
    normalise: bool = False,
    slope: float | None = None,
    pessimism: float = 0.0,
    dropout: float = 0.0,
    draws: int | None = None,
    both_orders: bool = True,
) -> Judge:
    """The judge of a folder that `preftune judge train` wrote.

    keep         answers are kept on disk under the hash of weights, heads and engine
    weights      of attributes: "helpfulness:0.65+correctness:0.8"; what is not named has 0. Those of HelpSteer2 where the names are its
    normalise    scores are (r - mean) / std over training answers, which an ensemble's always are
    slope        prefer = sigmoid(slope * difference of scores); without it rewards of comparisons keep their own probabilities
    pessimism    scores are the mean minus this many standard deviations over an ensemble or draws of dropout
    dropout      share of the last state that every one of `draws` (8) heads leaves out; the model was trained without
    both_orders  a judge that is shown two responses is asked in both orders
    """
    place = Path(folder)
    told = read(place)
    folders = [place] if told["kind"] != ENSEMBLE else [(place / member).resolve() for member in told["members"]]
    each = [told] if told["kind"] != ENSEMBLE else [read(member) for member in folders]
    kind = each[0]["kind"]
    if any((one["kind"], one["heads"]) != (kind, each[0]["heads"]) for one in each):
        raise PreftuneError(f"{folder} has members of different kinds or sizes, needed judges of one training; train the ensemble again")
    number = 1 if not dropout else DRAWS if draws is None else draws
    check_options(kind, len(each) * number, weights, normalise, slope, pessimism, dropout, draws, both_orders)
    policies = opened(folders, device, dtype, tokens_per_batch)
    members = tuple(member_of(path, one, policy, dropout, number, keep) for path, one, policy in zip(folders, each, policies, strict=True))
    if kind == "general preference":
        size = each[0]["heads"]["embedding"]["size"]
        return GeneralPreference(members, size // 2, "gate" in each[0]["heads"], each[0]["tau"])
    if kind == "pairwise preference":
        return BothShown(members, both_orders)
    head = "reward" if kind == "reward" else "attributes"
    weigh = torch.ones(1, dtype=torch.float64) if kind == "reward" else weights_of(each[0]["attributes"], weights)
    standard = normalise or len(members) > 1
    centre, scale = standards([one["statistics"][head] for one in each], weigh) if standard else (torch.zeros(1), torch.ones(1))
    slope = (float(scale.mean()) if kind == "reward" else 1.0) if slope is None else slope
    return Rewards(members, weigh, centre, scale, pessimism, slope)


def check_options(
    kind: str,
    models: int,
    weights: str | None,
    normalise: bool,
    slope: float | None,
    pessimism: float,
    dropout: float,
    draws: int | None,
    both_orders: bool,
) -> None:
    """No option is ignored: one that this kind of judge cannot follow is refused."""
    scored = kind in SCALED
    idle = {
        "weights": weights is not None and kind != "attributes",
        "normalise": normalise and not scored,
        "slope": slope is not None and not scored,
        "pessimism": pessimism != 0 and not (scored and models > 1),
        "draws": draws is not None and not dropout,
        "both_orders": not both_orders and kind != "pairwise preference",
    }
    for name in [name for name, found in idle.items() if found]:
        needed = {
            "weights": "a judge of attributes",
            "pessimism": "a judge with scores, and an ensemble or dropout to take deviations over",
            "draws": "dropout=... beside it",
            "both_orders": "a judge that is shown both responses",
        }.get(name, "a judge with scores")
        raise PreftuneError(f"{name} was given to a judge of the kind {kind}, needed {needed}; leave it out")
    if not 0 <= dropout < 1 or (draws is not None and draws < 2):
        raise PreftuneError(
            f"dropout is {dropout} and draws is {draws}, needed 0 <= dropout < 1 and at least 2 draws; dropout=0.1 is usual"
        )
    if not pessimism >= 0 or not (slope is None or slope > 0):
        raise PreftuneError(f"pessimism is {pessimism} and slope is {slope}, needed pessimism >= 0 and slope > 0; leave them out")


def opened(folders: list[Path], device: str, dtype: str, tokens_per_batch: int | None) -> list[TextPolicy]:
    """The models of all members. Adapters of one base share it: all but the first are held as what they add."""
    policies: list[TextPolicy] = []
    for folder in folders:
        policy = load_policy(folder, device=device, dtype=dtype, tokens_per_batch=tokens_per_batch, masters=False, trunk_bytes=0)
        first = policies[0] if policies else None
        adapts = hasattr(policy.network.module, "peft_config")
        if first is not None and adapts and same_base(first, policy):
            policy = first.frozen(policy.clones())
        policies.append(policy)
    return policies


def same_base(a: TextPolicy, b: TextPolicy) -> bool:
    """Whether two adapters stand on the same weights."""
    frozen = [{n: p for n, p in one.network.module.named_parameters() if not p.requires_grad} for one in (a, b)]
    return frozen[0].keys() == frozen[1].keys() and all(torch.equal(p, frozen[1][name]) for name, p in frozen[0].items())


def member_of(folder: Path, told: Mapping[str, Any], policy: TextPolicy, dropout: float, draws: int, keep: bool) -> Member:
    """One model with its heads, ready to be asked."""
    read_heads(folder, told, policy)
    identity = " ".join(["judge", policy.fingerprint(), told["digest"], words_of(policy), engine(policy.network)])
    if dropout:
        thin(policy, dropout, draws)
        identity += f" dropout {dropout} {draws}"
    names = tuple(name for name in ("reward", "attributes", "embedding", "gate", "preference") if name in told["heads"])
    answerer = Headed(policy, names, identity, str(folder), draws, keep)
    return Member(Asker(answerer), answerer.size, draws)


def weights_of(names: list[str], weights: str | None) -> Tensor:
    """float64 [A] of the attributes."""
    if weights is None:
        known = [HELPSTEER.get(name, math.nan) for name in names]
        if any(known) and not any(map(math.isnan, known)):
            return torch.tensor(known, dtype=torch.float64)
        raise PreftuneError(f"the judge marks {', '.join(names)}, needed to know what is good; pass weights={names[0]}:1")
    found: dict[str, float] = {}
    for part in re.split("[+,]", weights):
        name, _, value = (text.strip() for text in part.partition(":"))
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if name not in names or not math.isfinite(found[name]):
            raise PreftuneError(f"weights has {part!r}, needed name:number with a name of {', '.join(names)}; for instance {names[0]}:1")
    return torch.tensor([found.get(name, 0.0) for name in names], dtype=torch.float64)


def standards(each: list[Mapping[str, Any]], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [E] and standard deviation [E] of each member's score over training answers."""
    mean = torch.tensor([one["mean"] for one in each], dtype=torch.float64) @ weights
    std = (torch.tensor([one["covariance"] for one in each], dtype=torch.float64) @ weights @ weights).sqrt()
    if not (std > 0).all():
        raise PreftuneError("the judge gave all training answers the same score, needed scores that differ; train it longer")
    return mean, std
