"""Condensation objectives by name.

A method takes an embedder and the real and synthetic images of some classes with their draws, and
whether the value is wanted. It returns one loss per class ``(C,)``, not connected to autograd (None
if not wanted: values cost work that gradients do not need), and a scalar whose gradient in the
synthetic images is that of the sum of the losses.
"""

from .dm import dm
from .m3d import m3d
from .protocol import Method

METHODS: dict[str, Method] = {"m3d": m3d, "dm": dm}
