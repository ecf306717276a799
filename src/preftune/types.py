"""The vocabulary: a few frozen records and three protocols that every domain speaks.

Letters used everywhere: B prompts (rows), K responses of a prompt, M opponent responses, T tokens, V vocabulary,
C outputs of a head, S segments of a response. This module imports no torch: tensors appear in annotations only.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class PreftuneError(Exception):
    """A mistake in the input: says what was found, what was needed and what to do. The CLI prints it without a traceback."""


# --- randomness -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A counter-based random key: a value, never a stream, so batch order and micro-batches cannot change a draw.

    `Key.of(seed).fold("step", 3, row_id)` is the same key wherever and whenever it is made. Every draw of a row derives
    from that row's id.
    """

    digest: bytes

    @classmethod
    def of(cls, seed: int) -> Key:
        """The root key of a run."""
        return cls(b"").fold(int(seed))

    def fold(self, *parts: int | str) -> Key:
        """A new key; equal parts give equal keys, and 1 differs from "1"."""
        text = "".join(f"{type(part).__name__}:{len(str(part))}:{part}" for part in parts)
        return Key(hashlib.blake2b(self.digest + text.encode(), digest_size=16).digest())

    @property
    def seed(self) -> int:
        """63 bits for a generator of another library."""
        return int.from_bytes(self.digest[:8], "little") >> 1

    def numpy(self) -> np.random.Generator:
        """A numpy generator that starts at this key."""
        import numpy

        return numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(self.digest, "little")))

    def uniform(self, ids: Sequence[str], *shape: int) -> np.ndarray:
        """float64 [B, *shape] in [0, 1): row b depends on this key and ids[b] only, not on the other rows."""
        import numpy

        return numpy.stack([self.fold(row).numpy().random(shape) for row in ids]) if ids else numpy.empty((0, *shape))


# --- what is trained on ---------------------------------------------------------------------------------------------


@runtime_checkable
class Responses(Protocol):
    """K responses for each of B prompts, owned by their domain; collectors never touch what is inside.

    `law` [B, K] is given when the columns enumerate a distribution (exact tables) instead of being drawn from it.
    """

    law: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K)."""

    @property
    def length(self) -> Tensor:
        """Tokens of each response, int64 [B, K]; 1 in a table, 0 where absent."""

    def take(self, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> Self:
        """Some rows and columns, in the order asked for."""

    def join(self, other: Self) -> Self:
        """The columns of both, self's first: [B, K + K']."""

    def show(self) -> list[list[str]]:
        """Readable text [B][K]."""

    def pack(self) -> dict[str, Tensor]:
        """Tensors for a file, from which the policy's `unpack` makes equal responses."""


@dataclass(frozen=True)
class Rows:
    """B prompts with K responses each and whatever labels came with them. One record for singles, pairs and lists.

    Labels that are absent are None. `ranked` says that column 0 beats column 1 beats column 2 ...
    """

    id: tuple[str, ...]  #                 [B] stable across runs; the source of every random draw of the row
    prompt: Sequence[Any]  #               [B] text: list of token ids; tables: number of the game
    response: Any = None  #                Responses [B, K]; None where a collector still has to answer
    prompts: Sequence[Sequence[Any]] | None = None  # [B][K] where columns answer prompts of their own; None: all answer `prompt`
    present: Tensor | None = None  #       [B, K] bool, False where a row has fewer than K responses
    ranked: bool = False  #                read by the pairwise and listwise objectives
    score: Tensor | None = None  #         [B, K] on the reward's scale
    prefer: Tensor | None = None  #        [B] P(column 0 beats column 1): a soft label
    winrate: Tensor | None = None  #       [B, K] P(column beats the opponent role); never a soft label
    beats: Tensor | None = None  #         [B, K, K] P(column i beats column j), for objectives over all pairs of a list
    desirable: Tensor | None = None  #     [B, K] bool, for KTO and its relatives
    weight: Tensor | None = None  #        [B] importance with mean one over the data set; read by the learner
    law: Tensor | None = None  #           [B, K] probabilities of the columns where they enumerate a distribution
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # labels that one method alone reads, each [B, ...]
    segments: Tensor | None = None  #      [B, K, S + 1] token boundaries
    segment_label: Tensor | None = None  # [B, K, S]

    def __len__(self) -> int:
        return len(self.id)

    def replace(self, **fields: Any) -> Rows:
        """A copy with other values in some fields."""
        return dataclasses.replace(self, **fields)

    def label(self, name: str) -> Any:
        """The field of that name, otherwise the entry of `extra`; None where the rows have neither."""
        return getattr(self, name) if name in LABELS else self.extra.get(name)

    def take(self, rows: Sequence[int]) -> Rows:
        """Some rows, in the order asked for."""
        rows = list(rows)

        def pick(name: str, value: Any) -> Any:
            if value is None or isinstance(value, bool):
                return value
            if name == "extra":
                return {key: tensor[rows] for key, tensor in value.items()}
            if name == "response":
                return value.take(rows=rows)
            if name in ("id", "prompt", "prompts"):
                return type(value)(value[i] for i in rows) if isinstance(value, tuple) else [value[i] for i in rows]
            return value[rows]

        return Rows(**{f.name: pick(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)})


LABELS = ("ranked", "score", "prefer", "winrate", "beats", "desirable", "weight", "law", "segments", "segment_label")


@dataclass(frozen=True)
class Scored:
    """Rows together with what the policy and the reference think of them: all that an objective may read."""

    rows: Rows
    logp: Tensor  #                        float64 [B, K]; the unit stands in the policy's docstring (text: nats per response); 0 unread
    ref_logp: Tensor | None = None  #      float64 [B, K], no gradient; None without a reference
    length: Tensor | None = None  #        [B, K] response tokens, the end-of-turn token included; tables: 1
    heads: Mapping[str, Tensor] = field(default_factory=dict)  #    name -> [B, K, C], the outputs of the method's heads
    other: Mapping[str, Tensor] = field(default_factory=dict)  #    role -> float64 [B, K], log-probs under it, no gradient (Needs.other)
    running: Mapping[str, Tensor] = field(default_factory=dict)  #  name -> scalar that the learner keeps and saves
    # only where the objective declares that it wants them (Needs.wants):
    segment_logp: Tensor | None = None  #      "segments": float64 [B, K, S], sums between the boundaries of rows.segments
    segment_ref_logp: Tensor | None = None  # "segments": the same under the reference, no gradient
    states: Tensor | None = None  #            "states": [B, K, S, d], mean last hidden state of each segment, no gradient
    collision: Tensor | None = None  #         "collision": [B, K], sum over tokens of log sum_v pi(v)^2, no gradient

    @cached_property
    def logratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x), [B, K]."""
        if self.ref_logp is None:
            raise PreftuneError(
                "this objective reads ref_logp, but the method keeps no reference; "
                "use reference=frozen or a reference-free objective such as simpo or orpo"
            )
        return self.logp - self.ref_logp.detach()

    @cached_property
    def mean_logp(self) -> Tensor:
        """Mean log-probability of a response's tokens, [B, K]."""
        if self.length is None:
            raise PreftuneError("this objective reads response lengths, but the policy gave none; score with lengths")
        return self.logp / self.length

    @cached_property
    def segment_logratio(self) -> Tensor:
        """segment_logp - segment_ref_logp, [B, K, S]; a segment's number is 0 where the response has none."""
        if self.segment_logp is None or self.segment_ref_logp is None:
            raise PreftuneError(
                "this objective reads log-probs by segment, but the scores carry none; declare wants=('segments',) and collect rows "
                "with segments"
            )
        return self.segment_logp - self.segment_ref_logp.detach()


@dataclass(frozen=True)
class Loss:
    """What an objective returns: never reduced. The learner minimises sum(weight * row) / sum(count) over the global batch."""

    row: Tensor  #                                                  [B]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  #  name -> [B], for people only
    count: Tensor | None = None  #                                  [B]; None is 1, other for means over tokens or classes
    running: Mapping[str, Tensor] = field(default_factory=dict)  #  name -> scalar: what Scored.running holds at the next step


Objective = Callable[[Scored], Loss]
Want = Literal["segments", "states", "collision"]


@dataclass(frozen=True)
class Head:
    """A linear layer on the policy's pooled last hidden states; Scored.heads has its outputs [B, K, size]. It trains with the
    policy in an optimiser group of its own and is no part of the model that a run hands out, unless that is a judge."""

    size: int  #                                  C
    pool: Literal["mean", "last"] = "mean"  #     over the tokens of a response, never the prompt's
    lr_scale: float = 1.0  #                      its learning rate over the policy's
    std: float | None = 0.02  #                   of its first weights; 0 starts at zero, None is 1 / sqrt(width of the states + 1)


@dataclass(frozen=True)
class Needs:
    """What an objective reads. One declaration drives probe, `show`, the data check and the loading of a reference."""

    columns: int | Literal["K"] = 2  #     1 single, 2 pair, "K" a list of any length
    labels: tuple[str, ...] = ("ranked",)  # fields of Rows, or names in Rows.extra, without which the objective has no meaning
    optional: tuple[str, ...] = ()  #      the same, read when they are given
    reference: bool = True  #              reads ref_logp
    logp: bool = True  #                   reads logp; otherwise a policy that can makes its heads' outputs alone
    wants: tuple[Want, ...] = ()  #        what scoring has to compute besides logp
    other: tuple[str, ...] = ()  #         further roles whose log-probs it reads
    batch: bool = False  #                 its value depends on the whole batch: the learner scores first, differentiates second
    domain: float = 1000.0  #              |log-ratio| up to which loss and gradient are finite


def needs(**fields: Any) -> Callable[[Callable[..., Loss]], Callable[..., Loss]]:
    """Attach a `Needs` to an objective."""

    def mark(objective: Callable[..., Loss]) -> Callable[..., Loss]:
        objective.needs = Needs(**fields)  # type: ignore[attr-defined]
        return objective

    return mark


def needs_of(objective: Any) -> Needs:
    """The declaration of an objective, also through functools.partial. A method without objective reads nothing."""
    if objective is None:
        return Needs(columns="K", labels=(), reference=False)
    while not hasattr(objective, "needs"):
        if not hasattr(objective, "func"):
            raise PreftuneError(
                f"the objective {getattr(objective, '__name__', objective)!r} declares no needs; "
                "write @needs(columns=2, labels=('ranked',), reference=True) above it"
            )
        objective = objective.func
    return objective.needs  # type: ignore[no-any-return]


def parts_of(objective: Any) -> Iterator[Any]:
    """The functions that carry the formulas, inside functools.partial and the combinations that name their `parts`."""
    while not hasattr(objective, "parts") and hasattr(objective, "func"):
        objective = objective.func
    if objective is None:
        return
    if not hasattr(objective, "parts"):
        yield objective
        return
    for part in objective.parts:
        yield from parts_of(part)


def formula_of(objective: Any) -> str:
    """The sum in one line: "dpo(beta=0.1) + 0.03 * nll(aggregation=seq_sum)"."""
    given: dict[str, Any] = {}
    if objective is None:
        return "none"
    while not hasattr(objective, "parts") and hasattr(objective, "func"):
        given, objective = {**objective.keywords, **given}, objective.func
    if hasattr(objective, "parts"):
        text = " + ".join(formula_of(part) for part in objective.parts)
        return f"{objective.weight:g} * {text}" if hasattr(objective, "weight") else text
    return f"{getattr(objective, '__name__', 'objective')}({', '.join(f'{name}={value}' for name, value in given.items())})"


# --- who acts -------------------------------------------------------------------------------------------------------


class Policy(Protocol):
    """A generative model of one domain.

    `uniform` is the decoding that stands for "every response alike": exact on tables, the field's stand-in on text.
    `independent` says that rows are separate problems (games of one batch), whose losses are summed and not averaged.
    """

    uniform: Mapping[str, Any]
    independent: bool

    def sample(self, rows: Rows, n: int, key: Key, *args: Any, **decoding: Any) -> Any:
        """Responses [B, n]; reads rows.id and rows.prompt. Draws derive from key and each row's id; decoding is the domain's."""

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """Log-probabilities [B, K] of rows.response, differentiable where gradients are enabled, and what is wanted besides."""

    def attach(self, heads: Mapping[str, Head], key: Key) -> None:
        """Give the policy heads, drawn from the key; `parameters` and `state` hold them too, frozen copies do not."""

    def copy(self) -> Any:
        """A frozen copy of what trains; what does not train is shared."""

    def reference(self) -> Any:
        """The frozen reference, made from the weights as they are now."""

    def lerp(self, other: Any, w: float) -> Any:
        """A frozen policy with parameters (1 - w) * self + w * other; w above 1 goes beyond other."""

    def mix(self, other: Any, w: float) -> Any:
        """A frozen policy to sample from: the geometric mixture self^(1 - w) * other^w / Z, token by token where there are several."""

    def revise(self, rows: Rows) -> Sequence[Sequence[Any]]:
        """For every response of the rows the prompt [B][K] that asks to improve on it."""

    def parameters(self) -> list[Tensor]:
        """The trainable parameters, in a fixed order."""

    def unpack(self, packed: dict[str, Tensor]) -> Any:
        """Responses of this domain from what their `pack` gave."""

    def state(self) -> dict[str, Tensor]:
        """A copy of what trains, by name; `load` takes it back."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` back, in place."""


class Judge(Protocol):
    """Compares responses. NaN means no answer. `rows` gives ids and prompts."""

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        """P(a beats b) in [0, 1]: [B, K, M] for a [B, K] and b [B, M]."""


class AveragingJudge(Judge, Protocol):
    """A judge that can average over an opponent's law faster than pair by pair."""

    def winrate(self, rows: Rows, y: Any, z: Any, key: Key) -> Tensor:
        """P(y beats z) averaged over the columns of z, over z.law where they enumerate a distribution: [B, K]."""


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """A judge with a scale of its own."""

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        """[B, K], higher is better."""


Roles = Mapping[str, Policy]  # current, reference, opponent, and others that a method names


@dataclass(frozen=True)
class Context:
    """What a collector may use."""

    roles: Roles
    feed: Rows  #                      the prompts of this step or round; offline data carry responses and labels too
    judges: Sequence[Judge] = ()
    past: Sequence[Rows] = ()  #       rows of earlier rounds
    round: int = 0
    step: int = 0
    key: Key = field(default_factory=lambda: Key.of(0))
    silent: list[str] = field(default_factory=list)  # ids of rows left out since the judge gave no answer; `heard` adds, a run counts

    @property
    def judge(self) -> Judge:
        """The judge, where a method needs one."""
        if not self.judges:
            raise PreftuneError("this method asks a judge, but none was given; pass judge=... or --judge NAME (see `preftune show`)")
        return self.judges[0]


Collect = Callable[[Context], Rows]
RowsAgainst = Callable[[Policy], Rows]
Metrics = dict[str, float]


class Learner(Protocol):
    """The policy in training with its optimiser: what an update rule may call."""

    policy: Policy
    roles: dict[str, Policy]  # a rule may move further ones
    twin: Any  #                a second snapshot for rules that train two learners in turn, kept in checkpoints; None at the start

    def snapshot(self) -> Any:
        """Parameters ("policy"), optimiser moments, step count ("steps") and running statistics; never sampling keys."""

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""

    def descend(self, rows: Rows, *, lr_scale: float = 1.0) -> Metrics:
        """One optimiser step on the method's objective over `rows`, at lr_scale times the learning rate."""

    def place(self, state: Mapping[str, Tensor]) -> None:
        """Take other parameters (a policy's `state`) as one step: for rules without gradients."""

    def micro(self, rows: Rows) -> Iterator[Rows]:
        """The rows in the parts that one forward pass takes."""


Update = Callable[[Learner, RowsAgainst], Metrics]
Reference = Callable[[Roles], Roles]


@dataclass(frozen=True)
class Method:
    """A method is a composition: who answers and judges, which loss, how the reference moves, how a step is made."""

    objective: Objective | None  # None: the update rule uses no gradient
    collect: Collect
    reference: Reference
    update: Update
    collect_every: Literal["run", "round", "step"] = "run"  # offline | iterative | online
    reference_every: int | Literal["round"] = "round"  #      how often `reference` is called: every n steps or at each round's end
    recipe: Mapping[str, Any] = field(default_factory=dict)  # suggested training values; the user's value wins
    notes: tuple[str, ...] = ()  #                            said once when a run starts
    heads: Mapping[str, Head] = field(default_factory=dict)  # heads that the objective reads
    reads: Literal["responses", "prompts"] | None = None  #   what `collect` takes from the data; None: prompts where it redraws
    columns: int | Literal["K"] | None = None  #              responses of a row that `collect` takes; None: what the objective reads
    roles: tuple[str, ...] = ()  #                            further roles: frozen copies of the first policy that `reference` moves

    @property
    def offline(self) -> bool:
        """Trains on the responses of the data; otherwise the policy answers the prompts and a judge compares."""
        return self.reads == "responses" or (self.reads is None and self.collect_every == "run")

    def __post_init__(self) -> None:
        if self.collect_every not in ("run", "round", "step"):
            raise PreftuneError(f"collect_every is {self.collect_every!r}, needed 'run', 'round' or 'step'; offline methods take 'run'")
        rule = getattr(self.update, "func", self.update)
        if getattr(rule, "redraws", False) and self.collect_every != "step":
            raise PreftuneError(
                f"the update rule {getattr(rule, '__name__', rule)!r} draws anew within a step, "
                f"but collect_every is {self.collect_every!r}; use collect_every='step'"
            )
        unknown = [name for name in needs_of(self.objective).other if name not in self.roles]
        if unknown:
            raise PreftuneError(
                f"the objective reads log-probs under {', '.join(unknown)}, but the method keeps no such roles; name them in roles"
            )
