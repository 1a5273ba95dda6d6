"""The optimisers of the point generator and the learning-rate schedules of a stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

# The schedule `decay` (our choice).
_RISE = 0.04  # the share of the iterations at the beginning in which the learning rate rises
_FALL = 0.5  # the share of the iterations at the end in which it falls
_LAST = 0.05  # the least factor of the learning rate during the fall

# The optimiser `muon` (our choice).
_MOMENTUM = 0.8
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: singular values go to 0.7 to 1.2
_NUM_NEWTON_SCHULZ = 5  # iterations


def build_optimizer(
    generator: nn.Module, name: Literal["adam", "muon"], learning_rate: float
) -> Optimizer:
    """Build the optimiser of all parameters of the generator.

    Args:
        generator: the module to train.
        name: "adam" for Adam (Section 4.1) in its fused implementation, or "muon" for `Muon`.
        learning_rate: the learning rate before the schedule.
    """
    if name == "muon":
        return Muon(generator.parameters(), learning_rate)
    return Adam(generator.parameters(), lr=learning_rate, fused=True)


class Muon(Optimizer):
    """Muon: a matrix moves along its averaged gradient with all singular values brought near 1.

    Directions that a gradient hardly shows are learnt as quickly as those that dominate it. The
    step is that of `torch.optim.Muon` with Nesterov's momentum, without weight decay and with
    `adjust_lr_fn="match_rms_adamw"`, by which its root mean square is about a fifth of the learning
    rate, as it is with Adam. In contrast to torch's class, matrices of one shape are computed
    together, and a vector is a parameter too, namely a matrix of one row, which moves along its
    averaged gradient. Workers round alike only on processors of one kind, as with any bfloat16.

    Args:
        parameters: vectors and matrices.
        lr: the learning rate.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the
    size of the step is from J. Liu et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters that have a gradient.

        As with every optimiser of torch, a `closure` computes the loss and the gradients before,
        and the loss is returned.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group["lr"])
        return loss

    def _update(self, parameters: list[nn.Parameter], lr: float) -> None:
        """Update parameters of one shape."""
        ahead = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["average"] = torch.zeros_like(gradient)
            state["average"].lerp_(gradient, 1 - _MOMENTUM)
            ahead.append(torch.atleast_2d(gradient.lerp(state["average"], _MOMENTUM)))
        steps = orthogonal(torch.stack(ahead))
        size = 0.2 * max(steps.shape[1:]) ** 0.5
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.sub_(step.view_as(parameter), alpha=lr * size)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices [N, rows, columns] to between about 0.7 and 1.2.

    Those below about a thousandth of the matrix's norm remain smaller. What is computed is five
    iterations of Newton and Schulz, in bfloat16 as in torch's class. A matrix of a single row or
    column is divided by its norm.
    """
    found = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if 1 in matrices.shape[1:]:
        return found
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = (found.mT if is_tall else found).bfloat16()
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NUM_NEWTON_SCHULZ):
        gram = found @ found.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, gram, found, beta=a)
    return (found.mT if is_tall else found).to(matrices.dtype)


def build_schedule(
    optimizer: Optimizer, name: Literal["constant", "decay"], *, num_iterations: int, done: int = 0
) -> LambdaLR:
    """Build the learning-rate schedule of a stage.

    Args:
        optimizer: the optimiser.
        name: "constant", or "decay" for a linear rise, a constant part and a linear fall (our
            choice; the paper does not mention a schedule).
        num_iterations: the iterations of the stage.
        done: the iterations that were done before an interruption.
    """

    def decay(iteration: int) -> float:
        share = iteration / max(1, num_iterations)
        return min(1.0, (share + 1 / num_iterations) / _RISE, max(_LAST, (1 - share) / (1 - _FALL)))

    factor = decay if name == "decay" else lambda iteration: 1.0
    return LambdaLR(optimizer, factor, last_epoch=done - 1 if done else -1)
