"""What the loops of a compiled kernel consist of, read from the disassembly of its cubin.

Registers and spills alone do not tell a good configuration: a loop may pass its accumulator through
shared memory at every step, which shows as barriers, or issue many instructions per step.
"""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
LABEL = re.compile(r"\s*(\.L_x_\d+):")
# an address, a predicate where there is one, the operation and its operands
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")

GLOBAL_MEMORY = ("LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP")


class Usage(NamedTuple):
    """What a kernel asks of a multiprocessor, per thread."""

    registers: int
    stack: int  # bytes: registers that are spilled to memory


class Loops(NamedTuple):
    """Instructions inside loops, each counted once, however often its loop runs."""

    instructions: int
    barriers: int


def read_usage(cubin: Path) -> Usage:
    """Read registers and stack."""
    usage = _run("cuobjdump", "--dump-resource-usage", str(cubin))
    found = (re.search(rf"{key}:(\d+)", usage) for key in ("REG", "STACK"))
    return Usage(*(int(match[1]) for match in found if match))


def disassemble(cubin: Path) -> str:
    """List the instructions of a kernel."""
    return _run("nvdisasm", str(cubin))


def count_loops(listing: str) -> Loops:
    """Count what lies between a label and a branch back to it."""
    labels: dict[str, int] = {}
    operations: list[str] = []
    inside: set[int] = set()
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(operations)
        elif instruction := INSTRUCTION.search(line):
            operations.append(instruction[1])
            target = re.search(r"\.L_x_\d+", instruction[2])
            # a branch to itself is the trap after the end of a kernel
            if instruction[1].startswith("BRA") and target and target[0] in labels:
                inside.update(range(labels[target[0]], len(operations) - 1))
    loops = [operations[at] for at in sorted(inside)]
    return Loops(len(loops), sum(operation.startswith("BAR.") for operation in loops))


def waits_first(listing: str) -> bool:
    """Whether a kernel waits for the launch before it ere it touches global memory."""
    operations = [match[1] for match in map(INSTRUCTION.search, listing.splitlines()) if match]
    # the wait of programmatic dependent launch; then loads, copies to shared memory, stores, ...
    kinds = (operation.split(".")[0] for operation in operations)
    first = next(kind for kind in kinds if kind == "ACQBULK" or kind in GLOBAL_MEMORY)
    return first == "ACQBULK"


def _run(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
