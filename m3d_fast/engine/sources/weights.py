"""The parameters of a network as one tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Weights:
    """Reads and writes tensors of the shapes of a network's parameters, in place.

    The networks that embed have no other state (no batch norm).

    Args:
        parameters: of a network, or their momentum; they keep their addresses.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self.count = sum(parameter.numel() for parameter in self._parameters)

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set the parameters to ``flat``, ``(count,)`` float32."""
        torch._foreach_copy_(self._parameters, self._split(flat))

    @torch.no_grad()
    def read(self, out: Tensor) -> None:
        """Copy the parameters to ``out``, ``(count,)`` float32."""
        torch._foreach_copy_(self._split(out), self._parameters)

    def copy(self) -> Tensor:
        """The parameters, a new ``(count,)`` float32 on their device."""
        flat = torch.empty(self.count, device=self._parameters[0].device)
        self.read(flat)
        return flat

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([parameter.numel() for parameter in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]
