"""Counter-based randomness: every draw is a function of (seed, purpose, counters) alone.

No generator lives on between draws, so a resumed run needs only its iteration number.
"""

import numpy as np
import torch

PURPOSES = (
    "sampling",
    "network",
    "augment",
    "select",
    "noise",
    "evaluation-network",
    "evaluation-training",
    "coreset",
)


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that differs for every (seed, purpose, counters)."""
    entropy = [seed, PURPOSES.index(purpose), *counters]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device`` seeded by :func:`derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *counters))
