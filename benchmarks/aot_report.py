"""Compile every shipped configuration for sm_80 and sm_90, without a GPU, and say what came out.

    python benchmarks/aot_report.py [--write]

Prints a table; ``--write`` puts it into ``results/aot.md`` beside this file. Exit status 1 if a
configuration spills registers, asks for more shared memory than the chip has, or lacks the
tensor-core instructions that the table promises. Results are kept in ``.cache/aot``, by source,
configuration and version, so that only what changed is compiled again.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# the interpreter would stand in for the compiler
os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from m3d_fast.kernels.triton.configs import CONFIGS, VARIANTS, Config  # noqa: E402

SHARED_MEMORY = {80: 166912, 90: 232448}  # bytes a block may have
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
CACHE = ROOT / ".cache/aot"
# what a configuration is compiled with unless it says otherwise
CONSTANTS = {
    "KERNEL": "gaussian",
    "ORDER": 5,
    "UNBIASED": False,
    "VALUE": True,
    "INTERPRET": False,
    "OWN": 1,
    "SAME": True,
    "HAS_X_LENGTHS": True,
    "HAS_Y_LENGTHS": True,
}


@dataclass(frozen=True)
class Compiled:
    """One configuration on one architecture."""

    kernel: str
    function: str
    products: str
    blocks: str
    warps: int
    stages: int
    architecture: int
    registers: int
    stack: int
    shared: int
    tensor_cores: str
    expected: str

    @property
    def faults(self) -> list[str]:
        """What is wrong with it."""
        found = []
        if self.stack:
            found.append(f"spills {self.stack} bytes")
        if self.shared > SHARED_MEMORY[self.architecture]:
            found.append(f"needs {self.shared} bytes of shared memory")
        if self.architecture == 90 and self.tensor_cores != self.expected:
            found.append(f"has {self.tensor_cores}, not {self.expected}")
        return found


def _kernel(config: Config) -> Any:
    module, function = config.kernel.split(".")
    return getattr(importlib.import_module(f"m3d_fast.kernels.triton.jit.{module}"), function)


def _source(config: Config, *, ones: bool = False) -> ASTSource:
    """What to compile; ``ones`` makes every integer the constant that Triton makes of a one."""
    kernel = _kernel(config)
    given = {**CONSTANTS, "PRECISION": config.products, **config.blocks, **config.constants}
    parameters = ("fp32",) * (2 if given["KERNEL"] == "polynomial" else 1)
    signature: dict[str, Any] = {}
    aligned, constants = {}, {}
    for at, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name] = "constexpr"
            constants[name] = given[name]
        elif ones and not name.endswith("_ptr") and name != "parameters":
            signature[name] = "constexpr"
            constants[name] = 1
        elif name == "parameters":
            signature[name] = parameters
        else:
            pointer = name.endswith("_ptr")
            signature[name] = f"*{config.pointers.get(name, 'fp32')}" if pointer else "i32"
            if pointer or name.endswith("_stride") or name == "D":
                aligned[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)


def _options(config: Config) -> dict[str, Any]:
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _compile(config: Config, architecture: int) -> Compiled:
    target = GPUTarget("cuda", architecture, 32)
    binary = triton.compile(_source(config), target=target, options=_options(config))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return Compiled(
        *config.kernel.split("."),
        products=config.products,
        blocks="x".join(str(size) for size in config.blocks.values()),
        warps=config.warps,
        stages=config.stages,
        architecture=architecture,
        registers=registers,
        stack=stack,
        shared=binary.metadata.shared,
        tensor_cores=_tensor_cores(binary.asm["ptx"]),
        expected=config.tensor_cores,
    )


def check_sizes_of_one() -> None:
    """Compile each kernel once with all its integers one: a constant has no methods."""
    for config in {config.kernel: config for config in CONFIGS}.values():
        file = CACHE / f"{_key(config, 0)}.ones"
        if not file.exists():
            triton.compile(
                _source(config, ones=True),
                target=GPUTarget("cuda", 90, 32),
                options=_options(config),
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def _tensor_cores(ptx: str) -> str:
    if "wgmma.mma_async" in ptx:
        return "wgmma"
    return "mma" if "mma.sync" in ptx else "none"


def _key(config: Config, architecture: int) -> str:
    # cache_key covers the source of the helpers a kernel calls
    material = [_kernel(config).cache_key, repr(config), str(architecture), triton.__version__]
    material.append(Path(__file__).read_text())
    return hashlib.sha256("\n".join(material).encode()).hexdigest()[:32]


def compiled(configs: tuple[Config, ...] = CONFIGS + VARIANTS) -> Iterator[Compiled]:
    """Every configuration on each of its architectures, from the cache where it can be."""
    for config in configs:
        for architecture in config.architectures:
            file = CACHE / f"{_key(config, architecture)}.json"
            if not file.exists():
                result = _compile(config, architecture)
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(asdict(result)))
                part.replace(file)
            yield Compiled(**json.loads(file.read_text()))


def table(rows: list[Compiled]) -> str:
    """Markdown."""
    lines = [
        f"Compiled by triton {triton.__version__}, without a GPU. Shared memory in bytes; a block"
        f" may have {SHARED_MEMORY[80]} on sm_80 and {SHARED_MEMORY[90]} on sm_90.",
        "",
        "| kernel | products | blocks | warps, stages | sm | registers | stack | shared"
        " | tensor cores | faults |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.kernel}.{row.function} | {row.products} | {row.blocks} | {row.warps}, {row.stages}"
        f" | {row.architecture} | {row.registers} | {row.stack} | {row.shared}"
        f" | {row.tensor_cores} | {'; '.join(row.faults) or 'none'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write results/aot.md")
    write = parser.parse_args().write
    rows = list(compiled())
    check_sizes_of_one()
    text = table(rows)
    print(text)
    if write:
        file = Path(__file__).parent / "results/aot.md"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return any(row.faults for row in rows)


if __name__ == "__main__":
    sys.exit(main())
