"""Installed as a wheel in a clean environment it imports and runs, from another folder."""

import math
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.helpers.commands import environment
from tests.helpers.sources import ROOT, module_files

# prints where the package lies, and the modules that it could import of all that it holds
IMPORT_ALL = """
import importlib, pkgutil, m3d_fast

print(m3d_fast.__file__)
for module in pkgutil.walk_packages(m3d_fast.__path__, "m3d_fast."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as missing:
        # extras that this machine may lack
        if missing.name not in ("ffcv", "numba", "torchmetrics", "triton"):
            raise
    print(module.name)
for package in (m3d_fast, m3d_fast.kernels, m3d_fast.loaders):
    for name in package.__all__:
        assert getattr(package, name) is not None, name
"""

# calls every public name of the op, prints a value, and the help of a command
CALL_OP = """
import torch
from m3d_fast.kernels import *

x, y = torch.zeros(1, 4, 2), torch.ones(1, 4, 2, requires_grad=True)
for kernel in (Gaussian(), Polynomial(), Linear()):
    MMDLoss(kernel)(x, y).backward()
    assert y.grad.isfinite().all()
    assert gram(x[0], y[0], kernel).shape == (4, 4)
assert mmd2_and_grad(x, y)[1].shape == y.shape
assert len(permutation_test(x[0], y[0], permutations=9)) == 3
for metric in (CMMD(), KID(subsets=2, subset_size=3)):
    metric.update(torch.rand(6, 4), real=True)
    metric.update(torch.rand(6, 4), real=False)
    metric.compute()
print(mmd2(x, y).item())

from m3d_fast.loaders.pack import main

main(["--help"])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel, and sees this one's dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(copy_of_tree(folder))], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    # torch and its friends are 5 GB: the new environment borrows them, not m3d_fast itself
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return python


def copy_of_tree(folder: Path) -> Path:
    """The tracked sources alone: building writes into the tree it builds."""
    target = folder / "source"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = ROOT / name, target / name
        if not source.exists() and not source.is_symlink():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        else:
            copy.write_bytes(source.read_bytes())
    return target


def run(python: Path, folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments], cwd=folder, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_wheel_can_be_imported(python: Path, tmp_path: Path) -> None:
    place, *imported = run(python, tmp_path, "-c", IMPORT_ALL).split()
    assert str(python.parent.parent) in place, "the wheel, not the checkout"
    assert {"m3d_fast", *imported} == module_files().keys()


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in module_files().values()}
    assert len(folders) > 10
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_wheel_runs_elsewhere(python: Path, tmp_path: Path) -> None:
    # all pairs across are 2 apart, the mean squared distance of the 8 points is 8/7
    across = sum(math.exp(-2 / (8 / 7 * scale)) for scale in (0.25, 0.5, 1, 2, 4))
    value, printed = run(python, tmp_path, "-c", CALL_OP).split("\n", 1)
    assert float(value) == pytest.approx(2 * 5 - 2 * across, abs=2e-3)
    assert "--data-root" in printed
    flags = ["--dataset", "digits", "--iterations", "2", "--real-batch", "4", "--device", "cpu"]
    run(python, tmp_path, "-m", "m3d_fast.condense", *flags, "--out", "run")
    assert (tmp_path / "run" / "synthetic.safetensors").exists()
    quick = ["--epochs", "1", "--repeats", "1"]
    assert "initial" in run(python, tmp_path, "-m", "m3d_fast.evaluate", "run", *quick)


def test_only_one_top_level_package_is_installed(python: Path) -> None:
    site = next(python.parent.parent.glob("lib/python*/site-packages"))
    packages = {p.name for p in site.iterdir() if p.is_dir() and not p.name.endswith(".dist-info")}
    assert packages == {"m3d_fast"}
    for data in ("loaders/imagenet_subsets.json", "reproduction/published.json"):
        assert (site / "m3d_fast" / data).exists()
    assert (site / "m3d_fast" / "py.typed").exists()


def test_the_op_needs_torch_alone_and_an_older_one_than_the_engine(tmp_path: Path) -> None:
    code = """
import sys, torch

torch.__version__ = "2.5.1"
import m3d_fast, m3d_fast.adapters, m3d_fast.kernels

assert m3d_fast.mmd2 is m3d_fast.kernels.mmd2
assert m3d_fast.adapters.SamplesLoss() is not None
heavy = {"triton", "ffcv", "torchvision", "safetensors", "sklearn", "PIL"}
print(sorted(heavy & set(sys.modules)))
try:
    m3d_fast.condense
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    heavy, refused = done.stdout.splitlines() or (done.stderr, "")
    assert heavy == "[]"
    assert refused.startswith("m3d_fast's engine expects Python >= 3.11 and torch >= 2.11")


def test_function_and_module_of_one_name_both_work() -> None:
    code = (
        "import m3d_fast.condense, m3d_fast.evaluate, m3d_fast.compare;"
        "from m3d_fast import CompareConfig, CondenseConfig, compare, condense;"
        "from m3d_fast.construction import condense as function;"
        "\ntry: m3d_fast.condense(CondenseConfig(dataset='x'))"
        "\nexcept ValueError as error: print(error)"
        "\ntry: compare(CompareConfig(methods='y'))"
        "\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert "dataset: 'x' is not known" in done.stdout, done.stderr
    assert "methods: 'y' is not known" in done.stdout, done.stderr
