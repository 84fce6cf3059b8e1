"""A user's network as it is: called in batches or one by one, its numbers taken over, its steadiness examined."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kbc.errors import MatcherError
from kbc.tensors import floating_type, real

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_STEADY = 0.1
"""How far, relative to its length, an answer may lie from the one before; dropout moves it farther. Our choice."""


class NetworkRunner:
    """Calls a network in batches, or one by one where it takes or gives no more than one.

    Its numbers come back as finite float32 on `device`, whatever floating type and device they had.

    Args:
        who: for messages, e.g. "`encode` of matcher 'hog'".
        form: of what it gives after the batch, for messages, e.g. "C, h, w".
        device: where the answer is put.
    """

    def __init__(self, who: str, form: str, device: str | torch.device) -> None:
        self.who = who
        self.form = form
        self.device = device
        self._one_by_one = False
        self._examined = False

    def run(self, network: Callable[..., Any], *inputs: Tensor) -> Tensor:
        """What the network gives for inputs (B, …): (B, …) float32, finite.

        Raises:
            MatcherError: no tensor, another number of answers, or numbers that are not real and finite.
        """
        return self._alone(network, inputs) if self._one_by_one else self._together(network, inputs)

    def _together(self, network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Tensor:
        try:
            return self._call(network, inputs)
        except Exception as error:
            if len(inputs[0]) == 1:
                raise
            try:
                found = self._alone(network, inputs)
            except Exception:
                raise error from None  # the batch was not what it failed at
        self._one_by_one = True
        return found

    def _alone(self, network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Tensor:
        import torch

        count = len(inputs[0])
        return torch.cat([self._call(network, tuple(x[i : i + 1] for x in inputs)) for i in range(count)])

    def _call(self, network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Tensor:
        kind = floating_type(network)
        values, count = self.numbers(network(*(one.to(kind) for one in inputs))), len(inputs[0])
        if values.shape[:1] != (count,):
            raise MatcherError(f"{self.who} must give ({count}, {self.form}), received {tuple(values.shape)}")
        return values

    def numbers(self, output: Any) -> Tensor:
        """What a network gave as a finite float32 tensor on the device. Errors as `run`."""
        import torch

        if isinstance(output, np.ndarray):
            output = torch.from_numpy(np.ascontiguousarray(output))
        if not isinstance(output, torch.Tensor):
            hint = "; of several give one, such as the last: lambda *images: network(*images)[-1]"
            several = isinstance(output, (list, tuple, dict))
            kind = type(output).__name__
            raise MatcherError(
                f"{self.who} must give a tensor or a NumPy array, received {kind}{hint if several else ''}"
            )
        try:
            values = real(output).to(self.device, torch.float32)
        except TypeError as error:
            raise MatcherError(f"{self.who} must give numbers, received {error}") from error
        if not values.numel():
            raise MatcherError(f"{self.who} must give numbers, received none: {tuple(values.shape)}")
        # The sum is had in a fraction of the time; of finite values it is finite, but for those that overflow.
        if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
            raise MatcherError(f"{self.who} must give finite values, received NaN or infinity")
        return values

    def examine(self, network: Callable[..., Any], images: Tensor, answers: Tensor) -> None:
        """Ask for the first of the images (B, …) once more, the first time this is called; warn of another answer."""
        if self._examined:
            return
        self._examined = True
        first = answers[:1]
        try:
            again = self._call(network, (images[:1],))
        except Exception:  # it takes no batch of one
            return
        if again.shape != first.shape or bool((again - first).norm() > _STEADY * first.norm()):
            warnings.warn(
                f"{self.who} answers otherwise when it is asked again: its answers cannot be relied on; is a network "
                "in it in training mode? call .eval() on it",
                stacklevel=2,
            )
