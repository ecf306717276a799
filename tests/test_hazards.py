"""What goes wrong silently when preferences are scored fast: a test for each, of numbers (N) and of masks, positions and sums (M)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from architectures import architecture
from preftune.learner import GradientLearner
from preftune.methods import METHODS
from preftune.policies.text import attention
from preftune.policies.text.head import Head, token_logp
from preftune.policies.text.layout import Segments, lines, pack, tokens_of
from preftune.policies.text.logprob import Measured, assemble
from preftune.policies.text.tokens import TextResponses
from preftune.types import Context, Key, Rows
from test_packs import both_gradients, rows_of
from text_fixtures import tiny_model, tiny_policy, tiny_tokenizer


def test_n1_a_log_ratio_of_long_responses_is_the_sum_of_its_tokens_differences() -> None:
    """Two sums of about -4600 nats in float32 differ from the sum of the differences by more than 1e-4; ours are exact in float64."""
    draw = torch.Generator().manual_seed(0)
    policy = -9 + torch.randn(512, generator=draw)
    reference = policy + 0.01 * torch.randn(512, generator=draw)
    rows = Rows(id=("a",), prompt=[(1,)], response=TextResponses((((5,) * 512,),)))
    ours = assemble(rows, Measured([policy])).logp - assemble(rows, Measured([reference])).logp
    exact = (policy.double() - reference.double()).sum()
    assert abs(float(ours) - float(exact)) < 1e-9
    running = sum(policy.unbind(), torch.zeros(())) - sum(reference.unbind(), torch.zeros(()))
    assert abs(float(running) - float(exact)) > 1e-4


def test_n2_the_heads_log_probs_are_float32_in_16_bits() -> None:
    """Against a float64 head on the same rounded states and weights: 30 times nearer (rms) than a softmax in bfloat16."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(200, 64, generator=draw).bfloat16(), (0.1 * torch.randn(400, 64, generator=draw)).bfloat16()
    targets = torch.arange(200) * 2
    truth = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    ours, _ = token_logp(Head(weight, None, dtype=torch.bfloat16), hidden, targets)
    naive = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert ours.dtype == torch.float32
    assert (ours - truth).square().mean() < (naive - truth).square().mean() / 30**2


def test_n3_in_16_bits_the_engine_is_as_near_to_the_truth_as_whole_sequences_are() -> None:
    """Both are judged by float64, never by each other: another batch shape alone moves 16-bit numbers."""
    exact = tiny_policy(model=tiny_model(scale=0.1, width=64).double(), engine="plain")
    rows = rows_of(*((9 + i, (7, 12)) for i in range(12)))
    truth = exact.score(rows).logp.detach()
    off = {}
    for engine in ("fast", "plain"):
        policy = tiny_policy(model=tiny_model(scale=0.1, width=64).to(torch.bfloat16), engine=engine)
        off[engine] = float((policy.score(rows).logp.detach() - truth).square().mean().sqrt())
    assert 0 < off["fast"] < 1.5 * off["plain"]


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_n3_policy_and_reference_take_one_path_so_that_the_first_loss_is_log_2(train: str | int) -> None:
    policy = tiny_policy(train)
    learner = GradientLearner(policy, METHODS["dpo"](), {"reference": policy.reference()}, micro_batch=2)
    _, loss = learner._backward(rows_of((9, (7, 12)), (14, (1, 5)), (3, (10, 2))))
    assert torch.equal(loss.row, torch.full_like(loss.row, 2).log())


def test_n4_log_probs_kept_from_sampling_are_those_of_scoring() -> None:
    policy = tiny_policy()
    rows = rows_of((9, (1,)), (4, (1,)), (17, (1,)))
    y = policy.sample(rows, 5, Key.of(0), max_new_tokens=20, temperature=0.8, top_k=50)
    scored = policy.score_tokens(rows.replace(response=y, present=None))
    assert y.logp is not None
    for kept, found in ((a, b) for k, f in zip(y.logp, scored, strict=True) for a, b in zip(k, f, strict=True)):
        torch.testing.assert_close(torch.tensor(kept), found.detach(), rtol=0, atol=1e-4)


# --- who sees whom ----------------------------------------------------------------------------------------------------


def seen(lm: Any, rows: Rows, budget: int) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """[N, N] whether the state at a token depends on the embedding at another, and (group, branch, position) of each token;
    branch -1 is the prompt."""
    policy = tiny_policy(model=lm)
    [one], _ = pack(policy.pairs(rows), budget)
    x = lm.get_input_embeddings()(torch.tensor(one.ids())).detach().requires_grad_()
    states = policy.network.run_pack(policy.network.parts["decoder"], "inputs_embeds", x, one)
    slopes = [torch.autograd.grad(state.square().sum(), x, retain_graph=True)[0].abs().sum(1) for state in states]
    place = []
    for g, (prompt, responses) in enumerate(one.segments.groups):
        place += [(g, -1, i) for i in range(prompt)]
        place += [(g, b, prompt + i) for b, length in enumerate(responses) for i in range(length)]
    return torch.stack(slopes) > 0, place


@pytest.mark.parametrize(("name", "window"), [("Llama", None), ("Mistral", 6), ("GPTNeoX", None)])
def test_m1_m3_a_token_sees_its_prompt_and_its_own_response_up_to_itself_and_nothing_else(name: str, window: int | None) -> None:
    """By the gradient, through one layer: no response is cut off from its prompt, sees another, or is aligned at the upper left;
    a window counts positions, which go on from the prompt's end for every response."""
    lm = architecture(name)
    body = getattr(lm, lm.base_model_prefix)
    body.layers = body.layers[:1]
    lm.config.num_hidden_layers = 1
    found, place = seen(lm, rows_of((9, (7, 12)), (4, (1, 5, 8))), 1000)
    for i, (g, b, p) in enumerate(place):
        for j, (h, c, q) in enumerate(place):
            right = g == h and c in (-1, b) and q <= p and (window is None or p - q < window)
            assert bool(found[i, j]) == right, (place[i], place[j])


def test_m1_a_mask_that_transformers_makes_itself_cuts_responses_off_from_their_prompt() -> None:
    """The hazard is real: the same tokens and positions without a mask of ours give the second response other numbers."""
    policy = tiny_policy(engine="plain")
    rows = rows_of((9, (7, 12)))
    [one], _ = pack(policy.pairs(rows), 1000)
    naive = policy.network.parts["decoder"](input_ids=torch.tensor(one.ids())[None], position_ids=one.positions()[None], use_cache=False)
    right = torch.cat(policy.network.hidden(policy.pairs(rows)))
    error = (naive.last_hidden_state[0][one.reads()] - right).norm(dim=1)
    assert error[:7].max() < 1e-4 and error[8:].min() > 0.1


def test_m2_the_last_prompt_token_predicts_the_first_token_of_every_response() -> None:
    policy = tiny_policy()
    rows = rows_of((9, (3, 5, 1)))
    alone = torch.log_softmax(policy.network.lm(torch.tensor([rows.prompt[0]])).logits[0, -1], -1)
    for tokens, values in zip(rows.response.tokens[0], policy.score_tokens(rows)[0], strict=True):
        torch.testing.assert_close(values[0], alone[tokens[0]], rtol=0, atol=1e-5)


def test_m4_dropout_is_off_in_training_too_so_that_a_shared_prompt_is_one_prompt() -> None:
    lm = architecture("GPTNeoX")
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    policy = tiny_policy(model=lm, checkpointing=True)  # runs in training mode
    rows = rows_of((9, (7, 12)))
    assert torch.equal(policy.score(rows).logp, policy.score(rows).logp)


def test_m4_a_prompt_cut_otherwise_for_one_response_is_another_prompt() -> None:
    """Columns that answer prompts of their own share nothing, even where one is the other's tail."""
    policy, plain = tiny_policy(), tiny_policy(engine="plain")
    rows = rows_of((12, (7, 12)))
    rows = rows.replace(prompts=[(rows.prompt[0], rows.prompt[0][3:])])
    packs, _ = pack(policy.pairs(rows), 1000)
    assert sorted(len(branch.prompt) for one in packs for branch in one.branches) == [9, 12]
    torch.testing.assert_close(policy.score(rows).logp, plain.score(rows).logp, rtol=0, atol=1e-4)


def test_m5_pieces_are_split_once_so_that_no_slice_fills_a_tensor_of_full_length_in_the_backward_pass() -> None:
    segments = Segments(((9, (7, 12)), (4, (1, 5))))
    q, k, v = (torch.randn(1, 2, len(segments), 8, requires_grad=True) for _ in range(3))
    out = attention.pieces(q, k, v, segments, 0.3, None, None)
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(type(node).__name__)
            todo += [following for following, _ in node.next_functions]
    assert "SplitWithSizesBackward0" in names and not any("Slice" in name or "Select" in name for name in names)


@pytest.mark.parametrize("groups", [((300, (7, 140)), (5, (130, 0, 1))), ((1, (1,)),), ((129, (128, 257)),)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_m3_blocks_of_queries_attend_as_the_formula_says(groups: Any, heads: tuple[int, int]) -> None:
    """In float64, output and gradients, against a dense mask."""
    from preftune.policies.text.attention_cpu import attend
    from preftune.policies.text.attention_cuda import attend_dense

    segments, draw = Segments(groups), torch.Generator().manual_seed(0)
    make = lambda h: torch.randn(1, len(segments), h, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    given = [make(heads[0]), make(heads[1]), make(heads[1])]
    up = torch.randn(1, len(segments), heads[0], 8, generator=draw, dtype=torch.float64)
    found = []
    for way in (lambda *x: attend(*x, segments, 0.3), lambda *x: attend_dense(*x, segments, 0.3, None, None)):
        out = way(*(x.transpose(1, 2) for x in given))
        found.append((out, *torch.autograd.grad(out, given, up)))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)


def test_m6_the_loss_is_the_mean_over_the_batch_however_unequally_packs_divide_it() -> None:
    rows = rows_of((9, (7, 12)), (40, (30, 5)), (3, (10, 2)), (14, (1, 5)), (25, (3, 3)))
    found = []
    for budget, micro in ((1000, 5), (60, 5), (0, 5), (1000, 2), (60, 4), (0, 1)):
        policy = tiny_policy(tokens_per_batch=budget)
        learner = GradientLearner(policy, METHODS["dpo"](), {"reference": tiny_policy(seed=1).copy()}, micro_batch=micro, clip=0)
        told = learner.descend(rows)
        found.append((told["loss"], told["grad_norm"]))
    assert all(abs(a - b) < 1e-5 * abs(b) for one in found for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("name", ["kto", "bco", "aot"])
def test_m7_objectives_that_couple_the_batch_see_all_of_it_whatever_the_packs(name: str) -> None:
    rows = rows_of((9, (7, 12)), (40, (30, 5)), (3, (10, 2)), (14, (1, 5)))
    if name != "aot":
        rows = rows.replace(ranked=False, desirable=torch.tensor([[True, False]] * 4))
    found = []
    for budget, micro in ((1000, 4), (60, 2), (0, 1)):
        policy = tiny_policy(tokens_per_batch=budget)
        roles = {"current": policy, "reference": tiny_policy(seed=1).copy()}
        learner = GradientLearner(policy, METHODS[name](), roles, micro_batch=micro, clip=0)
        told = learner.descend(learner.method.collect(Context(roles, rows, key=Key.of(0))))
        found.append((told["loss"], told["grad_norm"]))
    assert all(abs(a - b) < 1e-5 * max(abs(b), 1e-3) for one in found for a, b in zip(one, found[0], strict=True))


def test_m7_lengths_are_those_of_the_responses_not_of_what_is_fed() -> None:
    rows = rows_of((9, (7, 12)), (14, (1, 5)))
    assert torch.equal(tiny_policy().score(rows).length, torch.tensor([[7, 12], [1, 5]]))


@pytest.mark.parametrize("tied", [True, False])
def test_m8_the_short_cut_of_a_frozen_head_is_taken_only_where_nothing_of_it_trains(tied: bool) -> None:
    """Tied embeddings train through the head too; with the last layers or an adapter alone neither does."""
    rows = rows_of((9, (7, 12)), (14, (1, 5)))
    for train in ("full", 1, "lora"):
        model = tiny_model(tied=tied)
        fast, plain = tiny_policy(train, model=copy.deepcopy(model)), tiny_policy(train, model=model, engine="plain")
        loss, worst = both_gradients(fast, plain, rows)
        assert loss < 1e-5 and worst < 1e-5
        head = fast.network.lm.get_output_embeddings().weight
        assert (head.grad is not None) == (train == "full")


# --- the head and the packs by themselves --------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("kept", [1 << 27, 20 * 37 * 8, 0])
@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.3, None, True), (1.0, 2.0, False), (0.5, 3.0, True)])
def test_the_fused_heads_gradient_is_that_of_log_softmax(
    trains: bool, kept: int, scale: float, softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, for any upstream gradient, whichever part of the slopes is kept."""
    monkeypatch.setattr("preftune.policies.text.head.CHUNK", 37 * 8)
    monkeypatch.setattr("preftune.policies.text.head.KEEP", kept)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(37, 6, generator=draw, dtype=torch.float64, requires_grad=trains)
    shift = torch.randn(37, generator=draw, dtype=torch.float64, requires_grad=trains) if bias else None
    targets, g = torch.randint(37, (50,), generator=draw), torch.randn(50, generator=draw, dtype=torch.float64)
    logits = scale * torch.nn.functional.linear(hidden, weight, shift)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    truth = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    ours, second = token_logp(Head(weight, shift, scale, softcap, torch.float64), hidden, targets, collision=True)
    inputs = [hidden, *([weight, *([shift] if bias else [])] if trains else [])]
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(second.double(), logits.softmax(1).square().sum(1).log(), rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(ours, inputs, g.float()), torch.autograd.grad(truth, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_heads_log_probs_hold_at_extreme_logits() -> None:
    """Logits of +-1e4, far beyond where exp overflows, and a target that has no probability left in float32."""
    weight = torch.tensor([[1e4], [-1e4], [0.0], [9.999e3]])
    hidden = torch.ones(3, 1, requires_grad=True)
    ours, _ = token_logp(Head(weight, None), hidden, torch.tensor([0, 1, 3]))
    torch.testing.assert_close(ours, torch.tensor([-0.3133, -20000.3133, -1.3133]), rtol=1e-6, atol=1e-3)
    assert torch.isfinite(torch.autograd.grad(ours.sum(), hidden)[0]).all()


lengths = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=5)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=100)
@given(groups=lengths, budget=st.integers(0, 90), whole=st.booleans())
def test_packs_hold_every_distinct_response_once_behind_its_prompt_within_the_budget(
    groups: list[tuple[int, list[int]]], budget: int, whole: bool
) -> None:
    rows = rows_of(*groups)
    pairs = [(rows.prompt[b], y) for b, row in enumerate(rows.response.tokens) for y in row]
    pairs += pairs[::2]  # asked for twice
    packs, places = pack(pairs, budget, whole=whole)
    found = [(branch.prompt, y) for one in packs for branch in one.branches for y in branch.responses]
    assert len(found) == len(set(found)) == len(set(pairs))
    assert [found[i] for i in lines(packs, places)] == pairs
    for one in packs:
        size = sum(tokens_of(branch, whole) for branch in one.branches)
        assert size == len(one.ids()) == len(one.segments) == len(one.positions())
        [first, *others] = one.branches
        assert size <= budget or (not others and (len(one.places) == 1 or 0 < size <= max(2 * budget, 2 * len(first.prompt))))
        assert [one.ids()[i] for i in one.own()] == one.targets() if whole else len(one.reads()) == len(one.targets())


def test_a_prompt_that_fills_the_budget_is_still_shared() -> None:
    rows = rows_of((60, (20, 20)), (90, (30, 30, 30)))
    packs, _ = pack([(rows.prompt[b], y) for b, row in enumerate(rows.response.tokens) for y in row], 64)
    assert sorted(len(one.segments) for one in packs) == [98, 90 + 3 * 29]


def test_a_pack_of_many_short_prompts_needs_little_more_than_its_tokens() -> None:
    rows = rows_of(*((5 + i % 7, (3 + i % 5, 4 + i % 11)) for i in range(64)))
    packs, _ = pack([(rows.prompt[b], y) for b, row in enumerate(rows.response.tokens) for y in row], 128)
    tokens = sum(len(one.segments) for one in packs)
    assert tokens > 0.95 * 128 * (len(packs) - 1)


def test_a_response_that_is_asked_for_twice_is_run_once_and_gets_both_gradients() -> None:
    policy = tiny_policy(tokenizer=tiny_tokenizer())
    one, two = rows_of((9, (7,))), rows_of((9, (7,)))
    twice = one.replace(response=one.response.join(two.response))
    grads = []
    for rows, weight in ((one, 2.0), (twice, 1.0)):
        grads.append(torch.autograd.grad(weight * policy.score(rows).logp.sum(), policy.parameters()))
    assert len(pack(policy.pairs(twice), 1000)[0][0].places) == 1
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
