"""The learner: a policy, its optimiser, and one exact step over a batch of any size.

Normalisation, said once: the gradient is that of sum(weight * row) / sum(count) over the GLOBAL batch. Micro-batches add
up unnormalised gradients and the quotient is taken once at the end, so their number and sizes change nothing. Policies
whose prompts are independent problems (games) sum over problems instead: the quotient is multiplied by their number.

Several processes are no other case: each makes the gradient of its share of the rows, the gradients add up before the quotient,
and what was scored is gathered, so that every process takes the same step on the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from . import processes
from .optimisers import make
from .types import Key, Loss, Method, Metrics, Needs, Objective, Policy, PreftuneError, Roles, Rows, Scored, Want, needs_of


class Diverged(PreftuneError):
    """Loss or gradient became NaN or infinite; `rows` are the ids of the rows that caused it. Nothing was changed."""

    def __init__(self, message: str, rows: list[str]):
        super().__init__(message)
        self.rows = rows


ROWS = 8  # of a forward pass, where neither a number is given nor the policy knows what a row takes


@runtime_checkable
class Sized(Protocol):
    """A policy that knows how many rows one pass holds."""

    def parts(self, rows: Rows) -> Sequence[range]:
        """Consecutive rows that go through the model together, gradient and all."""


@runtime_checkable
class Headed(Protocol):
    """A policy that gives the outputs of its heads without log-probs for less."""

    def score_heads(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """As `score`, with log-probs of 0."""


class GradientLearner:
    """Descends a method's objective with an optimiser. Implements `types.Learner`."""

    def __init__(
        self,
        policy: Policy,
        method: Method,
        roles: Roles,
        *,
        optimiser: str = "adamw",
        lr: Callable[[int], float] | float = 1e-6,
        beta1: float = 0.9,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        micro_batch: int | None = None,
        seed: int = 0,
    ):
        if micro_batch is not None and micro_batch < 1:
            raise PreftuneError(f"micro_batch is {micro_batch}, needed at least 1: the rows of one forward pass")
        self.policy, self.method, self.roles = policy, method, dict(roles)
        self.needs: Needs = needs_of(method.objective)
        absent = [name for name in self.needs.other if name not in self.roles]
        if absent:
            raise PreftuneError(f"the objective reads {', '.join(absent)}, but the roles are {', '.join(roles)}; give a policy for each")
        if self.needs.reference and "reference" not in self.roles:
            raise PreftuneError(f"the objective reads a reference, but the roles are {', '.join(roles)}; give roles['reference']")
        self.lr = lr if callable(lr) else lambda step, value=lr: value
        self.clip, self.micro_batch = clip, micro_batch
        if method.heads:
            policy.attach(method.heads, Key.of(seed).fold("heads"))
        self.parameters = policy.parameters()
        self.optimiser = make(optimiser, _groups(self.parameters), self.lr(0), beta1, weight_decay)
        self.steps = 0
        self.running: dict[str, Tensor] = {}
        self.twin: dict[str, Any] | None = None

    # --- what an update rule calls ---

    def snapshot(self) -> dict[str, Any]:
        written = self.record()
        return {**written, "optimiser": _copied(written["optimiser"])}

    def record(self) -> dict[str, Any]:
        """A snapshot to be written at once: its moments are the optimiser's own, so that saving takes no more memory than a step."""
        return {
            "policy": self.policy.state(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
            "running": {name: tensor.clone() for name, tensor in self.running.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.policy.load(snapshot["policy"])
        order = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        self.optimiser.load_state_dict(_placed(_copied(snapshot["optimiser"]), order))
        self.steps = snapshot["steps"]
        self.running = {name: tensor.clone() for name, tensor in snapshot["running"].items()}

    def descend(self, rows: Rows, *, lr_scale: float = 1.0) -> Metrics:
        self.optimiser.zero_grad(set_to_none=True)
        scored, loss = self._backward(rows)
        row, total = loss.row, float(len(loss.row) if loss.count is None else loss.count.sum())
        problems = len(set(rows.prompt)) if self.policy.independent else 1
        for gradient in processes.summed_gradients(self.parameters):
            gradient.mul_(problems / total)
        norm = self._check(rows, row)
        lr = lr_scale * self.lr(self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)  # what happens between two steps need not hold the gradient
        self.steps += 1
        self.running |= _running(self.needs, loss)
        weight = torch.ones_like(row) if rows.weight is None else rows.weight.to(row)
        return {"loss": float((weight * row).sum() / total), **_means(loss), **drift(scored), "grad_norm": norm, "lr": lr}

    def place(self, state: Mapping[str, Tensor]) -> None:
        self.policy.load(state)
        self.steps += 1

    def micro(self, rows: Rows) -> Iterator[Rows]:
        parts = self._parts(rows)
        if len(parts) <= 1:
            yield rows
            return
        for part in parts:
            yield rows.take(part)

    def _parts(self, rows: Rows) -> Sequence[range]:
        """Consecutive rows: so many as were asked for, otherwise as many as the policy says that one pass holds."""
        if self.micro_batch is None and isinstance(self.policy, Sized):
            return self.policy.parts(rows)
        size = self.micro_batch or ROWS
        return [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]

    # --- how the gradient is made ---

    @property
    def objective(self) -> Objective:
        if self.method.objective is None:
            raise PreftuneError("this method has no objective to descend, needed one; its update rule moves the policy without gradients")
        return self.method.objective

    def score(self, rows: Rows) -> Scored:
        """The policy's log-probs, with gradient where enabled, beside the reference's, without. The policy comes last: weights in
        shards stay together from its pass to the backward pass."""
        wants = tuple(want for want in self.needs.wants if want == "segments")
        with torch.no_grad():
            reference = self.roles["reference"].score(rows, wants) if self.needs.reference else None
            other = {name: self.roles[name].score(rows).logp for name in self.needs.other}
        scored = replace(self._own(rows), other=other, running=self.running)
        if reference is None:
            return scored
        return replace(scored, ref_logp=reference.logp, segment_ref_logp=reference.segment_logp)

    def _own(self, rows: Rows) -> Scored:
        """What the policy in training says, as far as the objective reads it."""
        if not self.needs.logp and isinstance(self.policy, Headed):
            return self.policy.score_heads(rows, self.needs.wants)
        return self.policy.score(rows, self.needs.wants)

    @torch.no_grad()
    def measure(self, rows: Rows) -> tuple[Scored, Loss]:
        """Scores and losses without gradients, micro-batch by micro-batch; as one where the objective couples the batch."""
        mine, own = self._share(rows)
        micro = list(self.micro(own)) if mine else []
        if self.needs.batch:
            whole = self._scored(rows, mine, micro)
            return whole, self.objective(whole)
        parts = [self.score(part) for part in (*micro, *self._idle(rows, len(micro)))][: len(micro)]
        return self._together(rows, mine, parts, [self.objective(part) for part in parts])

    def _backward(self, rows: Rows) -> tuple[Scored, Loss]:
        """Adds the gradient of sum(weight * row) over this process's share to the parameters; returns what was scored of all rows,
        without graphs."""
        mine, own = self._share(rows)
        micro = list(self.micro(own)) if mine else []
        if self.needs.batch and not (len(micro) == processes.size() == 1):
            return self._backward_whole(rows, mine, micro)
        scored, losses, idle = [], [], self._idle(rows, len(micro))
        for part in micro:
            s = self.score(part)
            loss = self.objective(s)
            _weighted(part, loss).sum().backward()
            scored.append(_detach(s))
            losses.append(_detach_loss(loss))
        for part in idle:
            (0 * torch.stack([x.sum() for x in _trained(self.score(part))]).sum()).backward()
        return self._together(rows, mine, scored, losses)

    def _backward_whole(self, rows: Rows, mine: list[int], micro: list[Rows]) -> tuple[Scored, Loss]:
        """For objectives that couple the batch: score everything first, differentiate second.

        The loss is a function of what was scored, so its gradient at these numbers, fed back micro-batch by micro-batch, is
        the gradient of the whole batch; no graph of more than one micro-batch is ever held.
        """
        with torch.no_grad():
            whole = self._scored(rows, mine, micro)
        leaves = _trained(whole)
        for leaf in leaves:
            leaf.requires_grad_()
        loss = self.objective(whole)
        gradients = torch.autograd.grad(_weighted(rows, loss).sum(), leaves, allow_unused=True)
        sizes, idle = [len(part) for part in micro], self._idle(rows, len(micro))
        split = [(torch.zeros_like(leaf) if g is None else g)[mine].split(sizes) for leaf, g in zip(leaves, gradients, strict=True)]
        for part, *slices in zip(micro, *split, strict=True):
            again = _trained(self._own(part))
            torch.stack([(x * g).sum() for x, g in zip(again, slices, strict=True)]).sum().backward()
        for part in idle:
            (0 * torch.stack([x.sum() for x in _trained(self._own(part))]).sum()).backward()
        return _detach(whole), _detach_loss(loss)

    def _share(self, rows: Rows) -> tuple[list[int], Rows]:
        """Which rows this process takes, and these rows."""
        if processes.size() == 1:
            return list(range(len(rows))), rows
        mine = processes.share(processes.costs(rows))
        return mine, rows.take(mine)

    def _idle(self, rows: Rows, passes: int) -> list[Rows]:
        """The passes that other processes make more of: where weights are in shards all must make as many. The cheapest row stands
        for them, and counts 0."""
        if not processes.sharding():
            return []
        cost = processes.costs(rows)
        return [rows.take([cost.index(min(cost))])] * (int(processes.largest(passes)) - passes)

    def _scored(self, rows: Rows, mine: list[int], micro: list[Rows]) -> Scored:
        """All that is scored of all rows, from the micro-batches of this process and of the others."""
        parts = [self.score(part) for part in (*micro, *self._idle(rows, len(micro)))][: len(micro)]
        names = (*TENSORS, "heads", "other")
        found = processes.gathered(mine, _joined([{name: getattr(part, name) for name in names} for part in parts]))
        return Scored(rows, running=self.running, **found)

    def _together(self, rows: Rows, mine: list[int], scored: list[Scored], losses: list[Loss]) -> tuple[Scored, Loss]:
        """What is told of all rows, from the micro-batches of this process and of the others."""
        table = [
            {**{name: getattr(s, name) for name in TOLD}, "loss": {"row": loss.row, "metrics": loss.metrics, "count": loss.count}}
            for s, loss in zip(scored, losses, strict=True)
        ]
        found = processes.gathered(mine, _joined(table))
        loss = Loss(**found.pop("loss"), running=losses[0].running if losses else {})
        return Scored(rows, **found), loss

    def _check(self, rows: Rows, row: Tensor) -> float:
        """Clip, and return the norm before it; raises Diverged with row ids when something is not finite."""
        bad = (~torch.isfinite(row)).nonzero().flatten().tolist()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = processes.norm(gradients)
        if not bad and math.isfinite(norm):
            if self.clip and norm > self.clip:
                for gradient in gradients:
                    gradient.mul_(self.clip / norm)
            return norm
        what = "loss" if bad else "gradient"
        ids = ([] if self.needs.batch else [rows.id[i] for i in bad]) or self._culprits(rows)
        self.optimiser.zero_grad(set_to_none=True)
        raise Diverged(
            f"the {what} is not finite at step {self.steps + 1}, caused by rows {ids[:10]}{' ...' if len(ids) > 10 else ''}; "
            "needed finite numbers; lower lr or beta, or look at these rows (the last checkpoint is good, nothing was changed)",
            ids,
        )

    def _culprits(self, rows: Rows) -> list[str]:
        """Rows whose own gradient is not finite (all of them where only their sum overflows)."""
        found = []
        for i in range(len(rows)):
            self.optimiser.zero_grad(set_to_none=True)
            part = rows.take([i])
            scored = self.score(part)
            known = [scored.logp] + ([] if scored.ref_logp is None else [scored.ref_logp])
            finite = all(bool(torch.isfinite(x).all()) for x in known)
            if finite and not self.needs.batch:
                _weighted(part, self.objective(scored)).sum().backward()
                finite = all(bool(torch.isfinite(p.grad).all()) for p in self.parameters if p.grad is not None)
            if not finite:
                found.append(rows.id[i])
        return found or list(rows.id)


def _copied(state: Any) -> Any:
    """An optimiser's state with tensors of its own, which no later step writes into."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _placed(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimiser's state with each moment in shards where its parameter is, and whole where that is whole."""

    def like(value: Any, parameter: Tensor) -> Any:
        return processes.like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value

    slots = {i: {name: like(value, parameters[i]) for name, value in slot.items()} for i, slot in state["state"].items()}
    return {**state, "state": slots}


def _weighted(rows: Rows, loss: Loss) -> Tensor:
    return loss.row if rows.weight is None else loss.row * rows.weight.to(loss.row)


TENSORS = ("logp", "ref_logp", "length", "segment_logp", "segment_ref_logp", "states", "collision")


TOLD = ("logp", "ref_logp", "length")  # what `drift` reads


def _joined(parts: list[Any]) -> Any:
    """Micro-batches as one: tensors [B, ...], None, and dicts of these."""
    if not parts or parts[0] is None:
        return None
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _trained(s: Scored) -> list[Tensor]:
    """Everything in a score that a gradient may flow through, in a fixed order."""
    return [s.logp, *([] if s.segment_logp is None else [s.segment_logp]), *(s.heads[name] for name in sorted(s.heads))]


def _groups(parameters: list[Tensor]) -> list[dict[str, Any]]:
    """Optimiser groups by precision and by the scale of the learning rate, which heads carry as an attribute; all else has 1 and
    groups of its own, since weights may be in shards and heads never are."""
    kind = lambda p: (getattr(p, "lr_scale", 0.0), str(p.dtype))
    found = sorted({kind(p) for p in parameters})
    return [{"params": [p for p in parameters if kind(p) == one], "lr_scale": one[0] or 1.0} for one in found]


def _running(needs: Needs, loss: Loss) -> dict[str, Tensor]:
    """The new running statistics. Only an objective that sees the whole batch at once can say them."""
    if loss.running and not needs.batch:
        raise PreftuneError(
            "the objective returns running statistics but not needs batch=True; micro-batches would change them; declare it"
        )
    return {name: value.detach() for name, value in loss.running.items()}


def _detach(s: Scored) -> Scored:
    return Scored(s.rows, s.logp.detach(), s.ref_logp, s.length)


def _detach_loss(loss: Loss) -> Loss:
    metrics = {name: value.detach() for name, value in loss.metrics.items()}
    return Loss(loss.row.detach(), metrics, loss.count, loss.running)


def _means(loss: Loss) -> Metrics:
    return {name: float(value.double().mean()) for name, value in loss.metrics.items()}


def drift(scored: Scored) -> Metrics:
    """Mean log-prob drift from the reference in nats, of column 0 and of column 1 where the rows are ranked; tokens scored."""
    tokens = {} if scored.length is None else {"tokens": float(scored.length.sum())}
    if scored.ref_logp is None or not scored.rows.ranked:
        return tokens
    logratio = scored.logratio
    names = ("logp_chosen", "logp_rejected")[: logratio.shape[1]]
    return {**{name: float(logratio[:, column].mean()) for column, name in enumerate(names)}, **tokens}
