"""The examples of kernels/README.md run."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "kernels" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=["metrics", "two_sample"])
def test_example_runs(code, capsys):
    exec(compile(code, str(README), "exec"), {})
    assert capsys.readouterr().out
