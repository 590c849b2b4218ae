"""The engine names what it expects of Python and torch, and what it found."""

import pytest

from m3d_fast.common.requirements import check_versions


@pytest.mark.parametrize(("python", "torch"), [((3, 10), "2.15.0"), ((3, 12), "2.5.1+cu124")])
def test_older_versions_are_refused(python, torch):
    with pytest.raises(ImportError, match=r"Python >= 3.11 and torch >= 2.11, this") as error:
        check_versions(python, torch)
    assert f"Python {python[0]}.{python[1]} with torch {torch}" in str(error.value)
    assert "m3d_fast.kernels works here" in str(error.value)


def test_newer_versions_are_taken():
    check_versions((3, 11), "2.11.0")
    check_versions((3, 14), "3.0.0a0+git")
