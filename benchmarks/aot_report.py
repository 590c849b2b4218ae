"""Compile every configuration of the kernels for sm_80 and sm_90, without a GPU, and report on it.

    python benchmarks/aot_report.py [--write]

Prints a table; ``--write`` also writes it to ``results/aot.md`` beside this file. Exit status 1 if
a configuration spills registers, needs more shared memory than it declares or the GPU has, waits at
more barriers in its loops than it declares, touches memory before it has waited for the launch that
it depends on, or lacks the tensor-core instructions that its table lists. Results are cached in
``.cache/aot`` by source, configuration and version, so that only what changed is compiled again.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# the interpreter would stand in for the compiler
os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import sass  # noqa: E402
from m3d_fast.kernels.triton import value  # noqa: E402
from m3d_fast.kernels.triton.configs import Config  # noqa: E402
from m3d_fast.kernels.triton.dispatch import CONFIGS  # noqa: E402

SHARED_MEMORY = {80: 166912, 90: 232448}  # bytes that a program may have
CACHE = ROOT / ".cache/aot"
# constexprs, unless a configuration has others
CONSTANTS = {
    "KERNEL": "gaussian",
    "ORDER": 5,
    "UNBIASED": False,
    "VALUE": True,
    "VALUE_TERMS": "all",
    "INTERPRET": False,
    "PDL": True,
    "OWN": 1,
    "SAME": True,
    "GROUP": value.GROUP,
    "CENTRE": True,
    "MEAN_BANDWIDTH": True,
    "HAS_BANDWIDTH": False,
    "HAS_LENGTHS": True,
    "HAS_X_LENGTHS": True,
    "HAS_Y_LENGTHS": True,
    "HAS_OTHER_LENGTHS": True,
    "HAS_OWN_LENGTHS": True,
}
# pointers that are not to float32, unless a configuration has others
POINTERS = {
    "pairs_ptr": "fp64",
    "totals_ptr": "fp64",
    "counts_ptr": "i32",
    "lengths_ptr": "i64",
    "x_lengths_ptr": "i64",
    "y_lengths_ptr": "i64",
    "other_lengths_ptr": "i64",
    "own_lengths_ptr": "i64",
    "members_ptr": "u8",
    "within_ptr": "fp64",
    "touching_ptr": "fp64",
    "all_ptr": "fp64",
}
# a polynomial reads the samples themselves, in their own type
VARIANTS = tuple(
    replace(
        value.CONFIGS[-1],
        constants={"KERNEL": "polynomial", "ORDER": 3},
        pointers={"a_ptr": dtype, "b_ptr": dtype},
    )
    for dtype in ("fp16", "bf16")
)


@dataclass(frozen=True)
class Compiled:
    """One configuration on one architecture."""

    kernel: str
    input_precision: str
    blocks: str
    warps: int
    stages: int
    architecture: int
    registers: int
    stack: int
    shared: int
    instructions: int  # inside loops, as barriers
    barriers: int
    early: bool  # touches memory before it has waited for the launch before it
    tensor_cores: str
    declared: tuple[int, int, str]  # shared memory, barriers, tensor cores

    @property
    def programs(self) -> int:
        """Programs that a multiprocessor of sm_80 or sm_90 holds at a time."""
        threads = 32 * self.warps
        allocated = -(-self.registers // 8) * 8 * threads  # registers come in eights
        # a program takes 1 KiB of shared memory for the system
        in_memory = (SHARED_MEMORY[self.architecture] + 1024) // (self.shared + 1024)
        return min(65536 // allocated, 2048 // threads, in_memory)

    @property
    def faults(self) -> list[str]:
        """Reasons for exit status 1."""
        found = []
        if self.stack:
            found.append(f"spills {self.stack} bytes")
        shared, barriers, tensor_cores = self.declared
        if self.shared > min(shared, SHARED_MEMORY[self.architecture]):
            found.append(f"needs {self.shared} bytes of shared memory")
        if tensor_cores != "none" and self.barriers > barriers:
            found.append(f"waits at {self.barriers} barriers, not {barriers} at most")
        if self.early:
            found.append("touches memory before it waits for the launch before it")
        if self.architecture == 90 and self.tensor_cores != tensor_cores:
            found.append(f"has {self.tensor_cores}, not {tensor_cores}")
        return found


def _describe_source(config: Config, *, ones: bool = False) -> ASTSource:
    """Describe what to compile, by the names of the kernel's arguments.

    ``*_ptr`` is a pointer, ``parameters`` a tuple of one float for a Gaussian and two for a
    polynomial, the rest integers. What Triton specialises is divisible by 16; ``ones`` makes each
    such integer the constant that Triton makes of a one.
    """
    values = {**CONSTANTS, "INPUT_PRECISION": config.input_precision}
    values |= {**config.blocks, **config.constants}
    pointers = {**POINTERS, **config.pointers}
    parameters = ("fp32",) * (2 if values["KERNEL"] == "polynomial" else 1)
    signature: dict[str, Any] = {}
    aligned, constants = {}, {}
    for position, parameter in enumerate(config.kernel.params):
        name, specialized = parameter.name, not parameter.do_not_specialize
        if parameter.is_constexpr:
            signature[name] = "constexpr"
            constants[name] = values[name]
        elif ones and specialized and not name.endswith("_ptr") and name != "parameters":
            signature[name] = "constexpr"
            constants[name] = 1
        elif name == "parameters":
            signature[name] = parameters
        else:
            pointer = name.endswith("_ptr")
            signature[name] = f"*{pointers.get(name, 'fp32')}" if pointer else "i32"
            if specialized:
                aligned[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(config.kernel, signature=signature, constexprs=constants, attrs=aligned)


def _compile(config: Config, architecture: int) -> Compiled:
    target = GPUTarget("cuda", architecture, 32)
    binary = triton.compile(_describe_source(config), target=target, options=config.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage, listing = sass.read_usage(Path(file.name)), sass.disassemble(Path(file.name))
    loops = sass.count_loops(listing)
    dependent = any(parameter.name == "PDL" for parameter in config.kernel.params)
    return Compiled(
        kernel=config.name,
        input_precision=config.input_precision,
        blocks="x".join(str(size) for size in config.blocks.values()),
        warps=config.warps,
        stages=config.stages,
        architecture=architecture,
        registers=usage.registers,
        stack=usage.stack,
        shared=binary.metadata.shared,
        instructions=loops.instructions,
        barriers=loops.barriers,
        early=dependent and not sass.waits_first(listing),
        tensor_cores=_find_tensor_cores(binary.asm["ptx"]),
        declared=(config.shared_memory, config.barriers, config.tensor_cores),
    )


def check_sizes_of_one() -> None:
    """Compile each kernel once with all integers one: Triton makes constants of them."""
    for config in {config.name: config for config in CONFIGS}.values():
        file = CACHE / f"{_compute_key(config, 0)}.ones"
        if not file.exists():
            triton.compile(
                _describe_source(config, ones=True),
                target=GPUTarget("cuda", 90, 32),
                options=config.options,
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def _find_tensor_cores(ptx: str) -> str:
    if "wgmma.mma_async" in ptx:
        return "wgmma"
    return "mma" if "mma.sync" in ptx else "none"


def _compute_key(config: Config, architecture: int) -> str:
    # cache_key covers the source of the helpers a kernel calls
    material = [config.kernel.cache_key, repr(config), str(architecture), triton.__version__]
    material += [Path(file).read_text() for file in (__file__, sass.__file__)]
    return hashlib.sha256("\n".join(material).encode()).hexdigest()[:32]


def compile_all(configs: tuple[Config, ...] = CONFIGS + VARIANTS) -> Iterator[Compiled]:
    """Compile every configuration for each of its architectures, or read it from the cache."""
    for config in configs:
        for architecture in config.architectures:
            file = CACHE / f"{_compute_key(config, architecture)}.json"
            if not file.exists():
                result = _compile(config, architecture)
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(asdict(result)))
                part.replace(file)
            yield Compiled(**json.loads(file.read_text()))


def format_table(rows: list[Compiled]) -> str:
    """Format a Markdown table."""
    lines = [
        f"Compiled by triton {triton.__version__}, without a GPU. Shared memory in bytes; a program"
        f" may have {SHARED_MEMORY[80]} on sm_80 and {SHARED_MEMORY[90]} on sm_90. Loops: the"
        " instructions of a warp inside loops, and the barriers among them. Programs: how many a"
        " multiprocessor holds.",
        "",
        "| kernel | input precision | blocks | warps, stages | sm | registers | stack | shared"
        " | loops | barriers | programs | tensor cores | faults |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.kernel} | {row.input_precision} | {row.blocks} | {row.warps}, {row.stages}"
        f" | {row.architecture} | {row.registers} | {row.stack} | {row.shared}"
        f" | {row.instructions} | {row.barriers} | {row.programs}"
        f" | {row.tensor_cores} | {'; '.join(row.faults) or 'none'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write results/aot.md")
    write = parser.parse_args().write
    rows = list(compile_all())
    check_sizes_of_one()
    text = format_table(rows)
    print(text)
    if write:
        file = Path(__file__).parent / "results/aot.md"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return any(row.faults for row in rows)


if __name__ == "__main__":
    sys.exit(main())
