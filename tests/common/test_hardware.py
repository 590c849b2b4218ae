"""What suits a machine and a run."""

from m3d_fast.common.hardware import compile_pays


def test_compiling_is_for_long_runs() -> None:
    assert not compile_pays(1_000, 28)
    assert not compile_pays(100_000, 16)
