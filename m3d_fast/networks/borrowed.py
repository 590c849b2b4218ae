"""Networks from other packages: their builders draw the weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.imports import import_object


class Borrowed(nn.Module):
    """A network whose ``build`` draws its weights from torch's global generator.

    It may have batch norm, dropout and parameters of any kind.

    Args:
        build: takes no argument and returns a new network, which maps images to logits; always of
            the same shapes.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self._build = build
        self.network = build()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``."""
        return self.network(images)

    def embed(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``: what the last linear layer receives; without one, the logits.

        A network's own ``embed`` wins.
        """
        own: Callable[[Tensor], Tensor] | None = getattr(self.network, "embed", None)
        if own is not None:
            return own(images)
        received: list[Tensor] = []
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
        if not layers:
            return self.network(images).flatten(1)
        handle = layers[-1].register_forward_pre_hook(lambda _, given: received.append(given[0]))
        try:
            self.network(images)
        finally:
            handle.remove()
        return received[-1].flatten(1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Redraw all parameters and buffers in place, as ``build`` draws them, from a seed."""
        device = generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which also seeds GPUs
            torch.default_generator.manual_seed(seed)
            fresh = self._build()
        theirs = [*fresh.parameters(), *fresh.buffers()]
        ours = [*self.network.parameters(), *self.network.buffers()]
        for tensor, drawn in zip(ours, theirs, strict=True):
            tensor.copy_(drawn)


def borrow(path: str, channels: int, size: int, num_classes: int) -> Borrowed:
    """A network of the user's own.

    Args:
        path: ``package.module:name`` of a callable ``(channels, size, num_classes)`` that returns
            a module.
        channels: of the images.
        size: image side in pixels.
        num_classes: outputs.

    Raises:
        UserError: if it cannot be imported, returns something else, or its network does not map
            ``(B, channels, size, size)`` to ``(B, num_classes)``.
    """
    builder = import_object("network", path, "package.module:name")
    shape = (2, channels, size, size)

    def build() -> nn.Module:
        network = builder(channels, size, num_classes)
        if not isinstance(network, nn.Module):
            raise UserError(
                f"network {path}: expected a callable (channels, size, num_classes) that returns "
                f"a torch.nn.Module, got {type(network).__name__}"
            )
        training = network.training
        try:
            with torch.no_grad():
                logits = network.eval()(torch.zeros(shape))
        except (RuntimeError, ValueError) as error:
            first = str(error).partition("\n")[0]
            raise UserError(f"network {path}: cannot take images of {shape}: {first}") from error
        network.train(training)
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"network {path}: expected logits of {(2, num_classes)} for images of {shape}, "
                f"got {found}"
            )
        return network

    return Borrowed(build)
