"""Counter-based randomness: every draw is a function of (seed, purpose, counters) alone.

No generator state is kept between draws, so a resumed run needs only its iteration number.
"""

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
