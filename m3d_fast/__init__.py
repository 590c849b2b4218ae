"""m3d_fast: dataset condensation by Maximum Mean Discrepancy, and the fused MMD op."""

from typing import TYPE_CHECKING

from .lazy import import_on_first_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .comparison.comparison import compare as compare
    from .comparison.config import CompareConfig as CompareConfig
    from .config import CondenseConfig as CondenseConfig
    from .construction import condense as condense
    from .evaluation.config import EvaluateConfig as EvaluateConfig
    from .evaluation.evaluator import evaluate as evaluate
    from .kernels import Gaussian as Gaussian
    from .kernels import Linear as Linear
    from .kernels import MMDLoss as MMDLoss
    from .kernels import Polynomial as Polynomial
    from .kernels import mmd2 as mmd2
    from .synthetic import SyntheticSet as SyntheticSet

# imported on first use: the op needs torch alone
_HOMES = {
    "CompareConfig": "comparison.config",
    "CondenseConfig": "config",
    "EvaluateConfig": "evaluation.config",
    "Gaussian": "kernels",
    "Linear": "kernels",
    "MMDLoss": "kernels",
    "Polynomial": "kernels",
    "SyntheticSet": "synthetic",
    "compare": "comparison.comparison",
    "condense": "construction",
    "evaluate": "evaluation.evaluator",
    "mmd2": "kernels",
}

__all__ = sorted(_HOMES)
__getattr__ = import_on_first_use(__name__, _HOMES)
