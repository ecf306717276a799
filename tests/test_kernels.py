"""The softmax behind the head, in place: by torch on a CPU, by the Triton kernel on a card or under Triton's interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from preftune.policies.text.kernels import token_logp_
from preftune.types import PreftuneError

Run = Callable[..., tuple[Tensor, Tensor | None]]

SHAPES = [(1, 1), (5, 2), (4, 400), (3, 1000), (2, 8192), (3, 8193), (2, 20000)]  # the kernel holds 8192 logits at a time
LAWS = [{}, {"scale": 0.25}, {"softcap": 30.0}, {"softcap": 5.0, "scale": 2.0}]


@pytest.fixture(params=["torch", "triton"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`token_logp_`, or the kernel behind it."""
    if request.param == "torch":
        return token_logp_
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton, about 1 GB, runs the kernel in its interpreter")
    if torch.cuda.is_available():
        return on_card
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from preftune.policies.text.kernels_triton import launch

    def interpreted(logits: Tensor, targets: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        values = {"slope": False, "softcap": None, "scale": 1.0, "collision": False, "target_logits": None, **options}
        return launch(logits, targets, *values.values())  # type: ignore[arg-type]

    return interpreted


def on_card(logits: Tensor, targets: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
    """`token_logp_` on a CUDA device, with its results and its changes brought back."""
    there = logits.cuda()
    moved = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in options.items()}
    logp, second = token_logp_(there, targets.cuda(), **moved)  # type: ignore[arg-type]
    logits.copy_(there)
    return logp.cpu(), None if second is None else second.cpu()


def drawn(n: int, vocabulary: int, seed: int = 0, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Random logits float32 [n, V] and targets [n], both ends of the vocabulary among them."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    targets[0], targets[-1] = 0, vocabulary - 1
    return spread * torch.randn(n, vocabulary, generator=generator), targets


def truth(logits: Tensor, targets: Tensor, softcap: float | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """logp [n], -d logp / d logits [n, V] and log sum p^2 [n] in float64, by autograd."""
    z = logits.double().detach().requires_grad_()
    table = torch.log_softmax(seen(z, softcap, scale), 1)
    logp = table.gather(1, targets[:, None])[:, 0]
    (slope,) = torch.autograd.grad(-logp.sum(), z)
    return logp.detach(), slope, (2 * table).logsumexp(1).detach()


def seen(z: Tensor, softcap: float | None = None, scale: float = 1.0) -> Tensor:
    """What the softmax sees of raw logits, in float64."""
    return scale * z.double() if softcap is None else softcap * torch.tanh(scale * z.double() / softcap)


def off(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||, in float64; b may be 0 where a is."""
    return float((a.detach().double() - b).norm() / b.norm().clamp_min(1e-30))


def test_two_tokens_by_hand(run: Run) -> None:
    """Logits 0 and log 3: p = 1/4, 3/4. Target 1: logp = log 3/4, slope of the loss 1/4 and 3/4 - 1; sum p^2 = 1/16 + 9/16."""
    logits = torch.tensor([[0.0, math.log(3.0)]])
    logp, second = run(logits, torch.tensor([1]), slope=True, collision=True)
    assert logp.tolist() == pytest.approx([math.log(0.75)])
    assert logits[0].tolist() == pytest.approx([0.25, -0.25])
    assert second is not None
    assert second.tolist() == pytest.approx([math.log(10 / 16)])


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logp_slope_and_collision_are_those_of_float64(run: Run, shape: tuple[int, int], law: dict[str, float]) -> None:
    logits, targets = drawn(*shape)
    logp, slope, collision = truth(logits, targets, **law)
    ours, second = run(logits, targets, slope=True, collision=True, **law)
    assert ours.dtype == torch.float32
    assert (ours - logp).abs().max() < 4e-6  # a few roundings of numbers up to 30
    assert (second - collision).abs().max() < 4e-6
    assert off(logits, slope) < 1e-6


@pytest.mark.parametrize("vocabulary", [50, 400, 1000, 9000])
def test_of_a_uniform_law_log_prob_and_collision_are_the_same_bits(run: Run, vocabulary: int) -> None:
    """log p = log sum_v p_v^2 = -log V: what weighs a token by their difference weighs it by exactly 1."""
    logp, second = run(torch.full((3, vocabulary), 2.5), torch.tensor([0, 7, 49]), slope=False, collision=True)
    assert torch.equal(logp, second)
    assert logp.tolist() == pytest.approx([-math.log(vocabulary)] * 3)


def test_without_slope_the_numbers_are_the_same_bits(run: Run) -> None:
    logits, targets = drawn(4, 1000)
    with_slope, _ = run(logits.clone(), targets, slope=True)
    without, second = run(logits, targets, slope=False)
    assert torch.equal(with_slope, without)
    assert second is None


def test_the_slopes_of_a_row_add_up_to_nothing(run: Run) -> None:
    """p adds up to one. A row whose p is off by a factor 1 + e is off by e W^T p, which points the same way for every token and grows in
    the sum over tokens, where rounding cancels: real weights show it (torch.softmax leaves 1.3e-6 here)."""
    logits, targets = drawn(4, 49152)
    run(logits, targets, slope=True)
    assert float(logits.double().sum(1).abs().max()) < 3e-7


def test_a_quarter_of_a_million_tokens_leave_no_bias(run: Run) -> None:
    """Sums over that many terms in plain float32 are too small by 1e-5 in every row, which 512 tokens of a response add up."""
    logits, targets = drawn(2 if run is not token_logp_ else 16, 256000)
    logp, slope, _ = truth(logits, targets)
    ours, _ = run(logits, targets, slope=True)
    assert abs(float((ours - logp).mean())) < 1.5e-6
    assert (ours - logp).abs().max() < 4e-6
    assert off(logits, slope) < 2e-6


def test_logits_of_ten_thousand_stay_finite_and_exact(run: Run) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-1e4, -1e4, -1e4, -1e4]])
    logp, slope, collision = truth(logits, targets := torch.tensor([0, 2]))
    ours, second = run(logits, targets, slope=True, collision=True)
    assert torch.allclose(ours.double(), logp)
    assert torch.allclose(second.double(), collision)
    assert torch.allclose(logits.double(), slope)


def test_a_target_far_below_the_rest_keeps_its_digits(run: Run) -> None:
    """Its probability is 0 in float32; its log-probability is not."""
    logits = torch.zeros(1, 100)
    logits[0, 7] = -5000.0
    ours, _ = run(logits, torch.tensor([7]), slope=True)
    assert ours.item() == pytest.approx(-5000 - math.log(99), rel=1e-6)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_masked_tokens_have_no_slope_and_do_not_count(run: Run, softcap: float | None) -> None:
    """The first 9000 are minus infinity: more than the kernel holds at a time."""
    logits, targets = drawn(3, 9500)
    targets = targets.clamp_min(9000)
    logits[:, :9000] = -math.inf
    law = {} if softcap is None else {"softcap": softcap}
    logp, slope, _ = truth(logits, targets, **law)
    ours, _ = run(logits, targets, slope=True, **law)
    assert (ours - logp).abs().max() < 4e-6
    assert torch.all(logits[:, :9000] == 0)
    assert off(logits, slope.nan_to_num()) < 1e-6


def test_a_masked_target_is_impossible(run: Run) -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    ours, _ = run(logits, torch.tensor([1]), slope=True)
    assert ours.tolist() == [-math.inf]
    assert logits[0].tolist() == pytest.approx([0.5, -1.0, 0.5])


def test_a_nan_is_passed_on_in_its_row_alone(run: Run) -> None:
    logits, targets = drawn(3, 400)
    logits[1, 5] = math.nan
    ours, _ = run(logits, targets, slope=True)
    assert ours.isnan().tolist() == [False, True, False]


def test_a_constant_added_to_a_row_changes_nothing(run: Run) -> None:
    logits, targets = drawn(3, 1000)
    moved = logits + 8.0
    ours, _ = run(logits, targets, slope=True)
    theirs, _ = run(moved, targets, slope=True)
    assert (ours - theirs).abs().max() < 4e-6
    assert logits.sum(1).abs().max() < 1e-5  # so the slope has no part along the constant


def test_bfloat16_logits_lose_nothing_but_the_rounding_of_the_slope(run: Run) -> None:
    logits, targets = drawn(4, 9000)
    logits = logits.bfloat16()
    logp, slope, collision = truth(logits, targets)
    ours, second = run(logits, targets, slope=True, collision=True)
    assert ours.dtype == torch.float32
    assert (ours - logp).abs().max() < 4e-6
    assert (second - collision).abs().max() < 4e-6
    assert logits.dtype == torch.bfloat16
    assert ((logits.double() - slope).abs() <= slope.abs() / 128 + 1e-30).all()  # 8 bits; the interpreter cuts, a card rounds


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_target_logits_computed_apart_take_the_place_of_the_rounded_ones(run: Run, law: dict[str, float]) -> None:
    logits, targets = drawn(4, 1000)
    rounded = logits.bfloat16()
    exact, coarse = (seen(z.gather(1, targets[:, None])[:, 0], **law) for z in (logits, rounded))
    expected = truth(rounded, targets, **law)[0] - coarse + exact
    ours, _ = run(rounded, targets, slope=True, target_logits=logits.gather(1, targets[:, None])[:, 0], **law)
    assert (exact - coarse).abs().max() > 1e-4
    assert (ours - expected).abs().max() < 4e-6


def test_a_chunk_of_a_larger_buffer_is_changed_and_its_neighbours_are_not(run: Run) -> None:
    logits, targets = drawn(4, 1000)
    buffer = torch.full((6, 1100), 7.0)
    buffer[1:5, :1000] = logits
    _, slope, _ = truth(logits, targets)
    run(buffer[1:5, :1000], targets, slope=True)
    assert off(buffer[1:5, :1000], slope) < 1e-6
    buffer[1:5, :1000] = 7.0
    assert torch.all(buffer == 7.0)


def test_no_rows_give_no_numbers(run: Run) -> None:
    logp, second = run(torch.empty(0, 400), torch.empty(0, dtype=torch.int64), slope=True, collision=True)
    assert logp.shape == (0,)
    assert second is not None
    assert second.shape == (0,)


def test_float64_logits_give_float64_numbers() -> None:
    logits, targets = drawn(4, 1000)
    logits = logits.double()
    logp, slope, _ = truth(logits, targets)
    ours, _ = token_logp_(logits, targets, slope=True)
    assert ours.dtype == torch.float64
    assert (ours - logp).abs().max() < 1e-13
    assert off(logits, slope) < 1e-14


@pytest.mark.parametrize("vocabulary", [400, 9000])
def test_no_bit_of_a_row_depends_on_the_rows_beside_it(run: Run, vocabulary: int) -> None:
    logits, targets = drawn(5, vocabulary)
    together = logits.clone()
    logp, second = run(together, targets, slope=True, collision=True)
    for i in range(5):
        alone = logits[i : i + 1].clone()
        lp, sq = run(alone, targets[i : i + 1], slope=True, collision=True)
        assert (lp[0], sq[0]) == (logp[i], second[i])
        assert torch.equal(alone[0], together[i])


def test_the_kernel_refuses_columns_that_are_not_neighbours(run: Run) -> None:
    if run is token_logp_:
        pytest.skip("torch knows strides")
    with pytest.raises(PreftuneError, match="neighbouring"):
        run(torch.zeros(400, 3).T, torch.zeros(3, dtype=torch.int64), slope=True)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from preftune.policies.text.kernels_triton import row_kernel

for logits in ("bf16", "fp32"):
    for capability in (80, 90):
        types = {"logits": f"*{logits}", "stride": "i64", "targets": "*i64", "target_logits": "*fp32", "logp": "*fp32", "second": "*fp32"}
        types |= {"V": "i32", "scale": "fp32", "softcap": "fp32"}
        fixed = {"SLOPE": True, "COLLISION": True, "SOFTCAP": True, "APART": logits == "bf16", "BLOCK": 8192}
        source = ASTSource(row_kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 16}).asm["cubin"]
print("compiled")
"""


def test_the_kernel_compiles_for_cards_that_are_not_here(tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler does: types that change in a loop, for one."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton, about 1 GB, compiles the kernel without a card")
    world = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    world |= {"TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300, env=world)
    assert ran.stdout == "compiled\n", ran.stderr
