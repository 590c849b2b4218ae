"""Condensation objectives by name.

A method takes an embedder, the real and synthetic images of some classes with their draws, and
whether to compute the value, which costs work that the gradient does not need. It returns one loss
per class ``(C,)``, detached (None without the value), and a scalar whose gradient with respect to
the synthetic images is that of the sum of the losses.
"""

from .dm import dm
from .m3d import m3d
from .protocol import Method

METHODS: dict[str, Method] = {"m3d": m3d, "dm": dm}
