"""The optimiser of Section 4.1 and the learning-rate schedules of a stage."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

# The schedule `decay` (our choice).
_RISE = 0.04  # the share of the iterations at the beginning in which the learning rate rises
_FALL = 0.5  # the share of the iterations at the end in which it falls
_LAST = 0.05  # the least factor of the learning rate during the fall


def build_optimizer(generator: nn.Module, learning_rate: float) -> Adam:
    """Build Adam, in its fused implementation, over all parameters of the generator."""
    return Adam(generator.parameters(), lr=learning_rate, fused=True)


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
