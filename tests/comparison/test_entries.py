"""What is compared, read from one flag."""

import re

import pytest

from m3d_fast.common.errors import UserError
from m3d_fast.comparison.entries import parse_entries


def test_options_and_settings_stand_in_brackets() -> None:
    random, plain, kernel, user = parse_entries(
        "random, dm,m3d[kernel=polynomial,degree=3,factor=1],m3d_fast.methods.dm:DM[lr_img=0.5]"
    )
    assert (random.method, random.steps, plain.method, plain.steps) == ("random", False, "dm", True)
    assert kernel.label == "m3d[kernel=polynomial,degree=3,factor=1]"
    assert dict(kernel.options) == {"kernel": "polynomial", "degree": "3"}
    assert dict(kernel.settings) == {"factor": 1}
    assert dict(user.settings) == {"lr_img": 0.5}
    assert kernel.folder == "m3d-kernel=polynomial-degree=3-factor=1"


def test_variants_of_a_method_have_folders_of_their_own() -> None:
    entries = parse_entries("m3d,m3d[factor=1],m3d[factor=3],whole")
    assert len({entry.folder for entry in entries}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randm", "methods: 'randm' is not known; did you mean random"),
        ("random[bins=3]", "methods: random has no options, got bins"),
        (
            "m3d[kernl=linear]",
            "option or setting of m3d: 'kernl' is not known; did you mean kernel",
        ),
        ("m3d[factor=x]", "option factor: expected int, got 'x'"),
        ("m3d[factor]", "expected OPTION=VALUE in the brackets of m3d, got factor"),
        ("dm,m3d[", "methods: expected NAME or NAME[OPTION=VALUE,...] by commas, got 'm3d['"),
        ("dm,dm", "methods: dm was given twice; expected different ones"),
        ("whole", "methods: expected a method or coreset, got 'whole'"),
        ("no.such:Method", "method no.such:Method: No module named 'no'"),
    ],
)
def test_what_cannot_be_compared_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_entries(text)
