"""The examples of kernels/README.md run."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "kernels" / "README.md"
SECTIONS = re.split(r"^## ", README.read_text(), flags=re.MULTILINE)
EXAMPLES = {
    f"{section.splitlines()[0]} {number}": code
    for section in SECTIONS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
}


def test_every_kind_of_user_has_an_example():
    assert len(EXAMPLES) == 8


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, capsys):
    if "KernelInceptionDistance" in EXAMPLES[name]:
        pytest.importorskip("torchmetrics")
    exec(compile(EXAMPLES[name], str(README), "exec"), {})
    assert capsys.readouterr().out
