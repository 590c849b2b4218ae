"""The op by a chosen family of Triton kernels, in poisoned memory."""

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import Gaussian, Kernel
from m3d_fast.kernels.arguments import OpArguments
from tests.helpers.triton_kernels import GuardedMemory, surround_with_nan

COMPILER_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


@pytest.fixture(scope="session", autouse=True)
def _patched_once_per_launch() -> Iterator[None]:
    """The interpreter patches triton.language in every launch and call of a device function.

    That takes a third of its time. A call finds it patched by its launch, and the names of builtins
    are searched once; the rest is as it was.
    """
    from triton.runtime import interpreter

    names: dict[Any, list[str]] = {}
    languages: dict[Callable[..., Any], list[ModuleType]] = {}

    def patch_builtin(package: Any, *arguments: Any) -> None:
        if package not in names:
            members = inspect.getmembers(package)
            names[package] = [name for name, value in members if core.is_builtin(value)]
        for name in names[package]:
            member = getattr(package, name)
            if core.is_builtin(member):  # not yet replaced
                interpreter._patch_attr(package, name, member, *arguments)

    def patch_language(function: Callable[..., Any]) -> Any:
        if function not in languages:
            seen = function.__globals__.values()
            languages[function] = [one for one in seen if one is core or one is interpreter.tl]
        if languages[function] and not any(core.is_builtin(m.load) for m in languages[function]):
            return interpreter._LangPatchScope()
        return patch_unpatched(function)

    core = interpreter.tl.core
    patch_unpatched = interpreter._patch_lang
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        patch.setattr(interpreter, "_patch_lang", patch_language)
        yield


@pytest.fixture
def triton_device() -> torch.device:
    """Where Triton runs: in the interpreter on the CPU, compiled (TRITON_INTERPRET=0) on a GPU."""
    from m3d_fast.kernels.triton.call import is_interpreted

    return torch.device("cpu" if is_interpreted() else "cuda")


@pytest.fixture(autouse=True)
def _exact_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on keyword arguments that a kernel lacks: a GPU fails, the interpreter drops them."""
    from triton.runtime import interpreter

    launch = interpreter.GridExecutor.__call__

    def check_and_launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        assert not args, "launchers pass every argument by keyword"
        assert set(kwargs) - COMPILER_OPTIONS == set(executor.arg_names)
        launch(executor, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", check_and_launch)


@pytest.fixture
def no_tile_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families hand samples that their tiles do not cover to the tile family: make that fail."""
    # dispatch keeps the families' functions as they are when it is first imported
    from m3d_fast.kernels.triton import dispatch, tile

    assert dispatch.LAUNCHERS["tile"] is tile.run
    monkeypatch.setattr(tile, "run", None)


@pytest.fixture
def triton_op(
    monkeypatch: pytest.MonkeyPatch, triton_device: torch.device
) -> Iterator[Callable[..., tuple[Tensor | None, ...]]]:
    """The op by one family of Triton kernels.

    ``triton_op(family, x, y, kernel, wrt=, value=, estimator=, precision=, x_lengths=,
    y_lengths=)`` returns the value and both gradients, None where not requested. ``family`` None
    leaves the choice to the table. All memory is poisoned, also around the samples.
    """
    from m3d_fast.kernels.triton import dispatch

    guarded, choose_family = GuardedMemory(), dispatch.choose_family
    for name, module in list(sys.modules.items()):
        if name.startswith("m3d_fast.kernels.triton.") and hasattr(module, "empty"):
            monkeypatch.setattr(module, "empty", guarded.empty)

    def run(
        family: str | None,
        x: Tensor,
        y: Tensor,
        kernel: Kernel | None = None,
        *,
        wrt: str = "both",
        value: bool = True,
        estimator: str = "biased",
        precision: str = "highest",
        **lengths: Tensor,
    ) -> tuple[Tensor | None, ...]:
        encoded = (kernel or Gaussian()).encode(x.shape[-1])
        moved = {name: tensor.to(triton_device) for name, tensor in lengths.items()}
        monkeypatch.setattr(
            dispatch, "choose_family", lambda problem: family or choose_family(problem)
        )
        flags = (value, wrt in ("x", "both"), wrt in ("y", "both"))
        arguments = OpArguments(
            surround_with_nan(x.to(triton_device)),
            surround_with_nan(y.to(triton_device)),
            None if encoded.bandwidth is None else encoded.bandwidth.to(triton_device),
            moved.get("x_lengths"),
            moved.get("y_lengths"),
            encoded.name,
            encoded.parameters,
            estimator == "unbiased",
            precision,
            *flags,
        )
        results = dispatch.mmd2_cuda(arguments)
        return tuple(result if flag else None for result, flag in zip(results, flags, strict=True))

    yield run
    guarded.assert_untouched()
