"""The learner: one exact step over a batch of any size, and what it does when numbers go wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from all_facts import merged
from preftune import methods
from preftune.collect.draw import given, mismatched
from preftune.learner import Diverged, GradientLearner
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.probe import random_scored
from preftune.types import Context, Head, Key, Loss, Method, PreftuneError, Rows, Scored, Want, needs, needs_of

# --- a domain with ragged responses: a language of four tokens ------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """Token sequences of different lengths, [B][K]."""

    tokens: tuple[tuple[tuple[int, ...], ...], ...]
    law: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.tokens), len(self.tokens[0])

    def take(self, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> Words:
        chosen = self.tokens if rows is None else tuple(self.tokens[i] for i in rows)
        return Words(chosen if columns is None else tuple(tuple(row[k] for k in columns) for row in chosen))

    def join(self, other: Words) -> Words:
        return Words(tuple(a + b for a, b in zip(self.tokens, other.tokens, strict=True)))

    def show(self) -> list[list[str]]:
        return [[" ".join(map(str, response)) for response in row] for row in self.tokens]


def halves(x: Any) -> tuple[Any, Any]:
    """The two segments of every response."""
    return x[: len(x) // 2], x[len(x) // 2 :]


def mean_state(words: Sequence[int]) -> Tensor:
    """Mean hidden state [4] of some tokens."""
    return torch.bincount(torch.tensor(words, dtype=torch.int64), minlength=4).double() / max(1, len(words))


class Bigrams:
    """p(next | last) = softmax of a row of logits [V, V]; the prompt is the first `last`. logp in nats per response.

    The hidden state of a token is its row of the identity; heads are linear in the mean of these.
    """

    uniform: Mapping[str, Any] = {}
    independent = False

    def __init__(self, logits: Tensor):
        self.logits = torch.nn.Parameter(logits.double().clone())
        self.heads: dict[str, Tensor] = {}

    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        step, (b, k) = self.logits.log_softmax(1), rows.response.shape
        flat = [(prompt, y) for prompt, row in zip(rows.prompt, rows.response.tokens, strict=True) for y in row]
        tokens = [step[[prompt, *y[:-1]], list(y)] for prompt, y in flat]
        table = lambda values: torch.stack(list(values)).view(b, k, *values[0].shape)
        more: dict[str, Tensor] = {}
        if "segments" in wants:
            more["segment_logp"] = table([torch.stack([half.sum() for half in halves(t)]) for t in tokens])
        if "states" in wants:
            more["states"] = table([torch.stack([mean_state(half) for half in halves(y)]) for _, y in flat])
        if "collision" in wants:
            more["collision"] = table([(2 * step.detach()).logsumexp(1)[[prompt, *y[:-1]]].sum() for prompt, y in flat])
        heads = {name: table([mean_state(y) for _, y in flat]) @ head for name, head in self.heads.items()}
        return Scored(rows, table([t.sum() for t in tokens]), length=table([torch.tensor(len(t)) for t in tokens]), heads=heads, **more)

    def attach(self, heads: Mapping[str, Head], key: Key) -> None:
        for name, head in heads.items():
            self.heads[name] = torch.nn.Parameter(torch.from_numpy(key.fold(name).numpy().standard_normal((4, head.size))))
            self.heads[name].lr_scale = head.lr_scale

    def copy(self) -> Bigrams:
        frozen = Bigrams(self.logits.detach())
        frozen.logits.requires_grad_(False)
        return frozen

    reference = copy

    def parameters(self) -> list[Tensor]:
        return [self.logits, *self.heads.values()]

    def state(self) -> dict[str, Tensor]:
        return {"logits": self.logits.detach().clone()} | {name: head.detach().clone() for name, head in self.heads.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.logits.data.copy_(state["logits"])
        for name, head in self.heads.items():
            head.data.copy_(state[name])


B = 11
DRAW = torch.Generator().manual_seed(7)


def sentence() -> tuple[int, ...]:
    return tuple(torch.randint(0, 4, (int(torch.randint(1, 9, (), generator=DRAW)),), generator=DRAW).tolist())


POLICY, REFERENCE = torch.randn(2, 4, 4, generator=DRAW, dtype=torch.float64) * torch.tensor([0.4, 1.0])[:, None, None]
PAIRS = Rows(
    id=tuple(f"row {i}" for i in range(B)),
    prompt=tuple(i % 4 for i in range(B)),
    response=Words(tuple((sentence(), sentence()) for _ in range(B))),
    ranked=True,
)
METHODS: dict[str, Method] = {name: facts.method for name, facts in merged("SHIPPED").items() if facts.method.objective}
SHIPPED = {name: method for name, method in METHODS.items() if needs_of(method.objective).logp}  # what moves these logits
OTHER = POLICY.flip(0)  # of further roles


def learner(method: Method, *, logits: Tensor = POLICY, **settings: Any) -> GradientLearner:
    roles = {"current": (policy := Bigrams(logits)), "reference": Bigrams(REFERENCE).copy()}
    roles |= {name: Bigrams(OTHER).copy() for name in method.roles}
    return GradientLearner(policy, method, roles, **{"optimiser": "sgd", "lr": 1.0, "clip": 0.0, "micro_batch": 100} | settings)


def collected(method: Method, rows: Rows = PAIRS) -> Rows:
    return method.collect(Context({}, rows, key=Key.of(0)))


def rows_of(method: Method) -> Rows:
    """B rows with every label that the objective declares, and sentences as responses, some of which are repeated elsewhere."""
    drawn = random_scored(needs_of(method.objective), B, heads=method.heads).rows
    columns = drawn.response.shape[1]
    words = [[PAIRS.response.tokens[(i + k // 2) % B][k % 2] for k in range(columns)] for i in range(B)]
    halved = torch.tensor([[[0, len(y) // 2, len(y)] for y in row] for row in words])
    segments = None if drawn.segments is None else halved
    return drawn.replace(id=PAIRS.id, prompt=PAIRS.prompt, response=Words(tuple(map(tuple, words))), segments=segments)


def counts_rows(method: Method) -> bool:
    """The divisor is the number of rows, and rows do not enter one another's loss."""
    scored = random_scored(needs_of(method.objective), B, heads=method.heads)
    return not needs_of(method.objective).batch and method.objective(scored).count is None


def moved(method: Method, rows: Rows, **settings: Any) -> Tensor:
    """Minus the gradient [V, V]: how far one SGD step of size one goes."""
    one = learner(method, **settings)
    one.descend(rows)
    return one.policy.logits.detach() - POLICY


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# --- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 10])
def test_micro_batches_of_any_size_make_the_step_of_one_batch(name: str, micro_batch: int) -> None:
    """Ragged lengths, token means, weights and baselines over the whole batch included; 11 rows leave ragged micro-batches."""
    method = SHIPPED[name]
    rows = rows_of(method).replace(weight=torch.linspace(0.1, 1.9, B))
    whole, parts = learner(method), learner(method, micro_batch=micro_batch)
    expected, found = whole.descend(rows), parts.descend(rows)
    assert (whole.policy.logits - POLICY).abs().max() > 1e-4
    close(parts.policy.logits.detach(), whole.policy.logits.detach())
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[key], expected[key], rel_tol=1e-11, abs_tol=1e-13) for key in expected)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_step_is_the_gradient_of_the_quotient_of_sums(name: str) -> None:
    """sum(weight * row) / sum(count), differentiated in one piece."""
    method = SHIPPED[name]
    rows, wants = rows_of(method).replace(weight=torch.linspace(0.1, 1.9, B)), needs_of(method.objective).wants
    policy = Bigrams(POLICY)
    policy.attach(method.heads, Key.of(0).fold("heads"))
    scored, reference = policy.score(rows, wants), Bigrams(REFERENCE).copy().score(rows, wants)
    other = {name: Bigrams(OTHER).copy().score(rows).logp for name in needs_of(method.objective).other}
    loss = method.objective(replace(scored, ref_logp=reference.logp, segment_ref_logp=reference.segment_logp, other=other))
    total = B if loss.count is None else loss.count.sum()
    ((rows.weight * loss.row).sum() / total).backward()
    close(moved(method, rows, micro_batch=4), -policy.logits.grad)


def test_a_token_mean_counts_tokens_and_not_rows() -> None:
    rows = collected(methods.sft())
    by_tokens, by_rows = moved(methods.sft("tok_mean"), rows, micro_batch=2), moved(methods.sft("seq_sum"), rows, micro_batch=2)
    tokens = sum(len(row[0]) for row in rows.response.tokens)
    close(by_tokens * tokens, by_rows * B)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    method = SHIPPED[name]
    rows = rows_of(method)
    close(moved(method, rows.take([10, 3, 5, 0, 9, 1, 8, 2, 7, 4, 6]), micro_batch=3), moved(method, rows))


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_of_one_are_no_weights(name: str) -> None:
    rows = rows_of(SHIPPED[name])
    assert torch.equal(moved(SHIPPED[name], rows.replace(weight=torch.ones(B))), moved(SHIPPED[name], rows))


@pytest.mark.parametrize("name", [name for name in SHIPPED if counts_rows(SHIPPED[name])])
def test_twice_the_weight_is_the_row_twice(name: str) -> None:
    """Weights have mean one, so a row that counts double among eleven has 2 * 11/12 and the others 11/12.

    Not with token means, whose divisor counts tokens unweighted, nor where a row also moves the others' baseline.
    """
    rows = rows_of(SHIPPED[name])
    weight = torch.full((B,), B / (B + 1), dtype=torch.float64)
    weight[4] *= 2
    close(moved(SHIPPED[name], rows.replace(weight=weight)), moved(SHIPPED[name], rows.take([*range(B), 4])))


def test_kto_has_one_baseline_for_the_whole_batch() -> None:
    """The baseline of micro-batches alone would give other steps: their mean is not the step of the batch."""
    method = methods.kto(beta=1.0)
    rows = collected(method)
    metrics = [learner(method, micro_batch=size).descend(rows)["kl_baseline"] for size in (1, 4, 100)]
    assert max(metrics) - min(metrics) < 1e-13 and metrics[0] > 0.1
    alone = [moved(method, rows.take(part)) * len(part) / B for part in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10])]
    assert (sum(alone) - moved(method, rows)).abs().max() > 1e-4


def test_kto_takes_its_baseline_from_responses_of_other_prompts() -> None:
    rows = collected(methods.kto())
    assert rows.response.shape == (B, 4) and rows.desirable.tolist() == [[True, False]] * B
    for i in range(B):
        partner = next(j for j in range(B) if PAIRS.response.tokens[j] == rows.response.tokens[i][2:])
        assert PAIRS.prompt[partner] != PAIRS.prompt[i]
    with pytest.raises(PreftuneError, match="same prompt"):
        mismatched(Context({}, PAIRS.take([0, 4, 8])))
    with pytest.raises(PreftuneError, match="desirable"):
        mismatched(Context({}, PAIRS.replace(ranked=False)))


def test_absent_responses_of_kto_are_left_out_in_micro_batches_as_well() -> None:
    present = torch.ones(B, 2, dtype=torch.bool)
    present[[1, 5], 1] = False
    rows = collected(methods.kto(), PAIRS.replace(present=present))
    close(moved(methods.kto(), rows, micro_batch=3), moved(methods.kto(), rows))
    other = list(PAIRS.response.tokens)
    other[1], other[5] = (other[1][0], (0,)), (other[5][0], (1, 2, 3))
    rows_with_other_words = collected(methods.kto(), PAIRS.replace(present=present, response=Words(tuple(other))))
    close(moved(methods.kto(), rows_with_other_words), moved(methods.kto(), rows))


def test_metrics_are_those_of_the_batch() -> None:
    one = learner(methods.dpo(beta=0.3), micro_batch=2)
    metrics = one.descend(PAIRS)
    with torch.no_grad():
        before = replace(Bigrams(POLICY).score(PAIRS), ref_logp=Bigrams(REFERENCE).score(PAIRS).logp)
    ratio = before.logratio
    assert math.isclose(metrics["loss"], float(methods.dpo(beta=0.3).objective(before).row.mean()), rel_tol=1e-12)
    assert math.isclose(metrics["margin"], float(0.3 * (ratio[:, 0] - ratio[:, 1]).mean()), rel_tol=1e-12)
    assert math.isclose(metrics["accuracy"], float((ratio[:, 0] > ratio[:, 1]).double().mean()), rel_tol=1e-12)
    assert math.isclose(metrics["logp_chosen"], float(ratio[:, 0].mean()), rel_tol=1e-12)
    assert math.isclose(metrics["logp_rejected"], float(ratio[:, 1].mean()), rel_tol=1e-12)
    assert metrics["tokens"] == sum(len(response) for row in PAIRS.response.tokens for response in row)
    assert metrics["lr"] == 1.0


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    one = learner(methods.dpo(), lr=lambda step: 0.5 / (step + 1))
    assert [one.descend(PAIRS)["lr"] for _ in range(3)] == [0.5, 0.25, 0.5 / 3]


def test_clipping_shortens_a_long_step_and_leaves_a_short_one() -> None:
    free = moved(methods.dpo(beta=5.0), PAIRS)
    length = float(free.norm())
    one = learner(methods.dpo(beta=5.0), clip=length / 4)
    assert math.isclose(one.descend(PAIRS)["grad_norm"], length, rel_tol=1e-12)
    close(one.policy.logits.detach() - POLICY, free / 4)
    close(moved(methods.dpo(beta=5.0), PAIRS, clip=2 * length), free)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(PreftuneError, match="'adam'.*adamw"):
        learner(methods.dpo(), optimiser="adam")


# --- snapshots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_restored_snapshot_goes_on_bit_for_bit(optimiser: str, before: int) -> None:
    """Moments, their step counts and the learning-rate schedule go back too; also to before the first step."""
    one = learner(methods.dpo(), optimiser=optimiser, lr=lambda step: 0.1 / (step + 1), weight_decay=0.01)
    for _ in range(before):
        one.descend(PAIRS)
    snapshot = one.snapshot()
    first = [one.descend(PAIRS.take([i, i + 1])) for i in range(4)]
    end = one.policy.logits.detach().clone()
    one.restore(snapshot)
    assert one.steps == before
    assert [one.descend(PAIRS.take([i, i + 1])) for i in range(4)] == first
    assert torch.equal(one.policy.logits, end)
    one.restore(snapshot)  # a snapshot can be used again: nothing that followed has touched it
    assert [one.descend(PAIRS.take([i, i + 1])) for i in range(4)] == first


def test_a_snapshot_moves_to_another_learner() -> None:
    one, other = (learner(methods.dpo(), optimiser="adamw", lr=0.1, logits=logits) for logits in (POLICY, REFERENCE))
    for _ in range(3):
        one.descend(PAIRS)
    other.restore(one.snapshot())
    one.descend(PAIRS)
    other.descend(PAIRS)
    assert torch.equal(one.policy.logits, other.policy.logits)


# --- numbers that are none ------------------------------------------------------------------------------------------


def broken(kind: str, ids: Sequence[str]) -> Method:
    """DPO that goes wrong for some rows: its loss is NaN or infinite, or finite with a NaN gradient (the slope of sqrt at 0, times 0)."""

    @needs()
    def objective(s: Scored) -> Loss:
        loss = methods.dpo().objective(s)
        bad = torch.tensor([row in ids for row in s.rows.id])
        extra = {
            "nan loss": torch.where(bad, math.nan * s.logp[:, 0], 0.0),
            "inf loss": torch.where(bad, math.inf * s.logp[:, 0], 0.0),
            "nan gradient": torch.sqrt(0 * s.logp[:, 0] + (~bad).double()),
        }
        return Loss(loss.row + extra[kind], loss.metrics)

    return replace(methods.dpo(), objective=objective)


@pytest.mark.parametrize("micro_batch", [1, 4, 100])
@pytest.mark.parametrize("ids", [["row 3"], ["row 0", "row 10"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["nan loss", "inf loss", "nan gradient"])
def test_a_number_that_is_none_stops_the_step_names_its_rows_and_changes_nothing(kind: str, ids: list[str], micro_batch: int) -> None:
    one, undisturbed = (learner(methods.dpo(), optimiser="adamw", lr=0.1, micro_batch=micro_batch) for _ in range(2))
    for each in (one, undisturbed):
        each.descend(PAIRS)
    one.method = broken(kind, ids)
    with pytest.raises(Diverged, match=f"the {kind.split()[1]} is not finite at step 2") as caught:
        one.descend(PAIRS)
    assert caught.value.rows == ids and all(repr(row) in str(caught.value) for row in ids)
    assert isinstance(caught.value, PreftuneError)
    assert torch.equal(one.policy.logits, undisturbed.policy.logits) and one.steps == 1
    one.method = methods.dpo()
    for each in (one, undisturbed):
        each.descend(PAIRS)
    assert torch.equal(one.policy.logits, undisturbed.policy.logits)


def on_tables(method: Method, logits: Tensor) -> GradientLearner:
    policy = TabularPolicy(logits)
    return GradientLearner(policy, method, {"current": policy, "reference": policy.reference()}, lr=0.1)


def test_orpo_on_a_response_of_probability_one_stops_by_name() -> None:
    """Its odds are infinite: game 1 is sure of response 0, which the data reject."""
    one = on_tables(methods.orpo(), torch.tensor([[0.0, 0.5], [0.0, -1000.0]]))
    rows = Rows(("fair", "sure"), (0, 1), TableResponses(torch.tensor([[1, 0], [1, 0]])), ranked=True)
    with pytest.raises(Diverged, match="loss") as caught:
        one.descend(rows)
    assert caught.value.rows == ["sure"]


@pytest.mark.parametrize("method", [methods.dpo(), methods.kto(), methods.sft()])
def test_measuring_gives_one_loss_whatever_the_micro_batch(method: Method) -> None:
    def mean(micro_batch: int) -> float:
        one = on_tables(method, torch.tensor([[0.3, -0.1], [0.0, 1.0], [2.0, 0.5], [-1.0, 0.4]]))
        one.micro_batch = micro_batch
        rows = Rows(("a", "b", "c", "d"), (0, 1, 2, 3), TableResponses(torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])), ranked=True)
        _, loss = one.measure(method.collect(Context({}, rows)))
        return float(loss.row.sum() / (len(loss.row) if loss.count is None else loss.count.sum()))

    assert mean(1) == pytest.approx(mean(4), rel=1e-14) and mean(3) == pytest.approx(mean(4), rel=1e-14)


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_kto_names_the_row_whose_log_probability_is_none(micro_batch: int) -> None:
    one = on_tables(methods.kto(), torch.zeros(4, 2))
    one.micro_batch = micro_batch
    one.policy.logits.data[2] = math.nan
    rows = Rows(("a", "b", "c", "d"), (0, 1, 2, 3), TableResponses(torch.tensor([[0, 1]] * 4)), ranked=True)
    with pytest.raises(Diverged) as caught:
        one.descend(mismatched(Context({}, rows)))
    assert caught.value.rows == ["c"]


# --- problems of a batch --------------------------------------------------------------------------------------------


def test_rows_of_one_table_are_averaged_and_tables_are_summed() -> None:
    """Two games in a batch step as each would alone, however many rows each of them has."""
    start = torch.tensor([[0.2, -0.3, 0.1], [0.0, 0.5, 0.4]], dtype=torch.float64)
    pairs = TableResponses(torch.tensor([[0, 1], [1, 2], [2, 0], [2, 1]]))
    rows = Rows(("a", "b", "c", "d"), (0, 1, 0, 1), pairs, ranked=True)

    def step(rows: Rows) -> Tensor:
        policy = TabularPolicy(start)
        roles = {"current": policy, "reference": TabularPolicy(torch.zeros(2, 3)).reference()}
        GradientLearner(policy, methods.dpo(beta=0.5), roles, optimiser="sgd", lr=1.0, clip=0.0, micro_batch=3).descend(rows)
        return policy.logits.detach() - start

    close(step(rows), step(rows.take([0, 2])) + step(rows.take([1, 3])))
    close(step(rows.take([0, 2, 0, 2])), step(rows.take([0, 2])))


def test_offline_methods_can_train_on_the_rows_as_they_are() -> None:
    assert given(Context({}, PAIRS)) is PAIRS


# --- heads and running statistics -----------------------------------------------------------------------------------


@needs(columns=2, labels=("ranked",), reference=False)
def by_head(s: Scored) -> Loss:
    """The head alone tells the columns apart."""
    return Loss((s.heads["head"][:, 0, 0] - s.heads["head"][:, 1, 0] - 1.0) ** 2 + 0 * s.logp[:, 0])


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_head_trains_at_its_own_rate_and_starts_from_the_same_numbers_everywhere(scale: float) -> None:
    method = replace(methods.simpo(gamma=1.0), objective=by_head, heads={"head": Head(1, lr_scale=scale)})
    one, other = learner(method, micro_batch=3), learner(replace(method, heads={"head": Head(1)}), micro_batch=3)
    before = one.policy.heads["head"].detach().clone()
    assert torch.equal(before, other.policy.heads["head"].detach())
    assert one.descend(PAIRS)["lr"] == 1.0
    other.descend(PAIRS)
    close(one.policy.heads["head"].detach() - before, scale * (other.policy.heads["head"].detach() - before))


def accumulating(batch: bool) -> Method:
    """DPO that adds up the rows it has seen."""

    @needs(batch=batch)
    def objective(s: Scored) -> Loss:
        seen = s.running.get("seen", torch.zeros(()))
        return replace(methods.dpo().objective(s), running={"seen": seen + len(s.rows)})

    return replace(methods.dpo(), objective=objective)


@pytest.mark.parametrize("micro_batch", [2, 100])
def test_running_statistics_are_those_of_whole_batches_and_go_back_with_a_snapshot(micro_batch: int) -> None:
    one = learner(accumulating(batch=True), micro_batch=micro_batch)
    one.descend(PAIRS)
    kept = one.snapshot()
    one.descend(PAIRS.take([0, 1, 2]))
    assert float(one.running["seen"]) == B + 3
    one.measure(PAIRS)
    assert float(one.running["seen"]) == B + 3  # looking changes nothing
    one.restore(kept)
    assert float(one.running["seen"]) == B


def test_running_statistics_of_an_objective_that_sees_micro_batches_are_refused() -> None:
    with pytest.raises(PreftuneError, match="batch=True"):
        learner(accumulating(batch=False)).descend(PAIRS)
