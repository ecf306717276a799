"""The exact inner solve: a learner that goes to the minimum of a method's loss, for policies that are small tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .exact.nash import newton
from .learner import GradientLearner
from .types import Method, Metrics, Policy, PreftuneError, Roles, Rows


class Minimiser:
    """Implements `types.Learner`: `descend` ends at the policy that minimises sum(weight * row) over the rows, by Newton's method.

    What the papers write as pi_t+1 = argmin L, where a gradient learner takes one step towards it. Every game of a batch is
    solved by itself. The policy holds one table of logits [games, ..., responses], and the rows give every response a weight
    (enumerate them); a loss without a minimum is refused. Costs one backward pass for every response.
    """

    def __init__(self, policy: Policy, method: Method, roles: Roles):
        self.learner = GradientLearner(policy, method, roles, optimiser="sgd", lr=0.0, clip=0.0)
        if len(self.learner.parameters) != 1:
            raise PreftuneError(
                f"the policy trains {len(self.learner.parameters)} tensors, needed one table of logits; take steps (collect_every=step)"
            )
        self.policy, self.method = policy, method
        self.twin: Any = None

    @property
    def roles(self) -> dict[str, Policy]:
        return self.learner.roles

    @roles.setter
    def roles(self, roles: dict[str, Policy]) -> None:
        self.learner.roles = roles

    def snapshot(self) -> dict[str, Any]:
        return self.learner.snapshot()

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.learner.restore(snapshot)

    def place(self, state: Mapping[str, Tensor]) -> None:
        self.learner.place(state)

    def micro(self, rows: Rows) -> Iterator[Rows]:
        yield rows

    def descend(self, rows: Rows, *, lr_scale: float = 1.0) -> Metrics:
        if lr_scale != 1.0:
            raise PreftuneError(f"lr_scale is {lr_scale}, needed 1: a minimum has no learning rate; use gradient steps for this rule")
        logits = self.learner.parameters[0]
        shape, games = logits.shape, len(logits)
        start = logits.detach().clone()

        def slopes(x: Tensor, second: bool) -> tuple[Tensor, Tensor]:
            """The gradient [games, N] at x [games, N], and where asked for its derivative [games, N, N]."""
            logits.data.copy_(x.reshape(shape))
            with torch.enable_grad():
                scored = self.learner.score(rows)
                total = (self.learner.objective(scored).row * (1.0 if rows.weight is None else rows.weight)).sum()
                gradient = torch.autograd.grad(total, logits, create_graph=second)[0].reshape(games, -1)
                if not second:
                    return gradient, gradient
                columns = [torch.autograd.grad(gradient[:, i].sum(), logits, retain_graph=True)[0] for i in range(gradient.shape[1])]
            return gradient.detach(), torch.stack([column.reshape(games, -1) for column in columns], 2)

        x = start.reshape(games, -1)
        curvature = slopes(x, True)[1].diagonal(dim1=1, dim2=2)
        if not (curvature > 0).all():
            logits.data.copy_(start)
            raise PreftuneError(
                "the loss does not curve upwards in every response's logit, needed a minimum: responses without weight, or labels "
                "without one; let the method train on all its responses (train_on=all), or take a method that learns by steps"
            )
        # Rows are divided by their own curvature, since unlikely responses have flat losses. A constant added to the logits of a
        # softmax changes nothing: the second term holds each table's mean where it was.
        mean = torch.block_diag(*[torch.full((shape[-1], shape[-1]), 1.0 / shape[-1], dtype=x.dtype)] * (x.shape[1] // shape[-1]))

        def residual(point: Tensor) -> Tensor:
            return slopes(point, False)[0] / curvature + (point - x) @ mean

        def jacobian(point: Tensor) -> Tensor:
            return slopes(point, True)[1] / curvature[:, :, None] + mean

        try:
            self.place({**self.policy.state(), "logits": newton(residual, jacobian, x).reshape(shape)})
        except (PreftuneError, torch.linalg.LinAlgError) as error:
            logits.data.copy_(start)
            raise PreftuneError(
                "no minimum was found, needed a loss that has one on these rows (labels that are sure have none); soften the judge's "
                "answers, or take a method that learns by steps"
            ) from error
        with torch.no_grad():
            loss = self.learner.objective(self.learner.score(rows))
        return {"loss": float(loss.row.mean())}
