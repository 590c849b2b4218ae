"""Counter-based randomness: every draw is a function of (seed, purpose, counters) alone.

No generator state is kept between draws, so a resumed run needs only its iteration number.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# a position in this list is part of the seed: append only
PURPOSES = (
    "sampling",
    "network",
    "augment",
    "select",
    "noise",
    "evaluation-network",
    "evaluation-training",
    "coreset",
    "pool-network",
    "pool-training",
    "pool-choice",
    "queue-choice",
    "network-training",
    "probe-noise",
    "dropout",
    "class-order",
    "accuracy",
    "unrolled",
)


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that differs for every (seed, purpose, counters)."""
    entropy = [seed, PURPOSES.index(purpose), *counters]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device``, seeded with :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, *counters))


@contextmanager
def seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for a while: dropout draws from them.

    Args:
        seed: of the generators of the CPU and of ``device``.
        device: whose generator, and that of the CPU, are then as they were before.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
