"""Optimisers of evaluation networks: their state at fixed addresses, the rate on the device."""

from typing import Protocol as Interface

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from .protocols import Protocol

ADAMW_BETAS, ADAMW_EPSILON = (0.9, 0.999), 1e-8


class Optimizer(Interface):
    """Updates the parameters of a network in place, by their gradients.

    Attributes:
        state: tensors that a step changes besides the parameters.
    """

    state: list[Tensor]

    def step(self, rate: Tensor) -> None:
        """Take one step at the learning rate ``rate``, ``()`` on the device."""
        ...


class SGD:
    """SGD with momentum; a parameter without gradient stays as it is.

    Args:
        network: whose parameters are updated.
        protocol: momentum and weight decay, which all parameters have.
    """

    def __init__(self, network: nn.Module, protocol: Protocol) -> None:
        self._parameters, self._protocol = list(network.parameters()), protocol
        self.state = [torch.zeros_like(parameter) for parameter in self._parameters]

    def step(self, rate: Tensor) -> None:
        """Take one step at the learning rate ``rate``, ``()`` on the device."""
        pairs = list(zip(self._parameters, self.state, strict=True))
        buffers: list[Tensor | None] = [m for p, m in pairs if p.grad is not None]
        sgd(
            [p for p in self._parameters if p.grad is not None],
            [p.grad for p in self._parameters if p.grad is not None],
            buffers,
            fused=True,  # one kernel, which reads the learning rate on the device
            weight_decay=self._protocol.weight_decay,
            momentum=self._protocol.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class AdamW:
    """AdamW; a parameter without gradient stays as it is.

    Args:
        network: whose parameters are updated.
        protocol: weight decay, which weights of two dimensions or more have, not biases or norms.
    """

    def __init__(self, network: nn.Module, protocol: Protocol) -> None:
        named = list(network.named_parameters())
        decayed = [parameter for name, parameter in named if _is_decayed(name, parameter)]
        others = [parameter for name, parameter in named if not _is_decayed(name, parameter)]
        self._groups = [(decayed, protocol.weight_decay), (others, 0.0)]
        self._moments: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {
            parameter: (
                torch.zeros_like(parameter),
                torch.zeros_like(parameter),
                torch.zeros((), device=parameter.device),  # steps
            )
            for _, parameter in named
        }
        self.state = [tensor for moments in self._moments.values() for tensor in moments]

    def step(self, rate: Tensor) -> None:
        """Take one step at the learning rate ``rate``, ``()`` on the device."""
        for parameters, weight_decay in self._groups:
            trained: list[Tensor] = [p for p in parameters if p.grad is not None]
            moments = [self._moments[parameter] for parameter in trained]
            adamw(
                trained,
                [p.grad for p in trained if p.grad is not None],
                [first for first, _, _ in moments],
                [second for _, second, _ in moments],
                [],
                [steps for _, _, steps in moments],
                fused=True,
                amsgrad=False,
                beta1=ADAMW_BETAS[0],
                beta2=ADAMW_BETAS[1],
                lr=rate,
                weight_decay=weight_decay,
                eps=ADAMW_EPSILON,
                maximize=False,
            )


def _is_decayed(name: str, parameter: Tensor) -> bool:
    return "weight" in name and parameter.ndim > 1


def build_optimizer(network: nn.Module, protocol: Protocol) -> Optimizer:
    """The optimiser of a protocol, its state as before the first step."""
    return (AdamW if protocol.optimizer == "adamw" else SGD)(network, protocol)
