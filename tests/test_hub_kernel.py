"""The op as a folder of the Kernel Hub: what is in it, and that it is loaded by path."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from m3d_fast import hub_kernel
from m3d_fast.common.commands import run_command
from m3d_fast.kernels import mmd2
from tests.helpers.commands import environment

LOAD = """
import sys, kernels, torch
from pathlib import Path

loaded = kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu")
print(loaded.mmd2(torch.zeros(4, 2), torch.ones(5, 2), loaded.Energy()).item())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("hub") / "kernel"
    assert run_command(hub_kernel.build_parser(), hub_kernel.command, [str(out)]) == 0
    return out


def test_folder_holds_what_the_hub_expects(folder: Path) -> None:
    build = tomllib.loads((folder / "build.toml").read_text())
    assert build["general"]["name"] == "m3d-mmd"
    assert "torch-noarch" in build
    assert (folder / "CARD.md").read_text().startswith("---\nlibrary_name: kernels\n")
    assert sorted(path.name for path in (folder / "build").iterdir()) == ["torch-cpu", "torch-cuda"]
    source = folder / "torch-ext/m3d_mmd"
    assert not (source / "_ops.py").exists()  # the builder writes it
    for name in ("__init__.py", "general/op.py", "triton/jit/small.py", "configs.json"):
        assert (source / name).read_bytes() == (folder / "build/torch-cuda" / name).read_bytes()


def test_configurations_are_those_of_the_launchers(folder: Path) -> None:
    from m3d_fast.kernels.triton.dispatch import CONFIGS

    listed = json.loads((folder / "build/torch-cuda/configs.json").read_text())
    assert len(listed) == len(CONFIGS)
    assert listed[0]["kernel"] == CONFIGS[0].name
    assert listed[-1]["blocks"] == dict(CONFIGS[-1].blocks)


def test_it_is_loaded_by_path_with_ops_of_its_own(folder: Path) -> None:
    """As the kernels package does: a module by the identifier of the build, from its file."""
    build = folder / "build/torch-cpu"
    identifier = json.loads((build / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(identifier, build / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[identifier] = module
    spec.loader.exec_module(module)
    x, y = torch.randn(2, 3, 6, 4)
    torch.testing.assert_close(module.mmd2(x, y), mmd2(x, y), rtol=0, atol=0)
    own = sys.modules[f"{identifier}.ops"].mmd2
    assert own.namespace == identifier.removesuffix("_cpu")
    assert own.namespace != "m3d_fast"


def test_the_kernels_package_loads_it(folder: Path, tmp_path: Path) -> None:
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package kernels is not installed: pip install kernels")
    # not from the root of the repository, whose own folder has that name
    clean = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder / "build")],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2 * 2**0.5, rel=1e-6)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "mine").write_text("mine")
    status = run_command(hub_kernel.build_parser(), hub_kernel.command, [str(tmp_path)])
    assert status == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
