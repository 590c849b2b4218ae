"""Methods and their options by name; presets belong to the method; bad input is one sentence."""

import json
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from m3d_fast.common.errors import UserError
from m3d_fast.config import CondenseConfig, ResolvedConfig
from m3d_fast.methods import METHODS, build_method
from m3d_fast.methods.registry import parse_option
from m3d_fast.settings import weights


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("3.0", int, 3),
        ("1e-2", float, 0.01),
        (2, float, 2.0),
        ("True", bool, True),
        ("false", bool, False),
        ("mean", str | float, "mean"),
        ("0.5", str | float, 0.5),
        ("1,2", tuple[float, ...], (1.0, 2.0)),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
    ],
)
def test_options_are_read_by_their_type(text, kind, value) -> None:
    parsed = parse_option("x", text, kind)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2.5", int),
        ("many", int),
        ("inf", int),
        (True, int),
        ("yes", bool),
        ("1,x", tuple[float, ...]),
        (3, str),
        (None, float),
    ],
)
def test_what_an_option_cannot_be_is_refused(text, kind) -> None:
    with pytest.raises(UserError, match=r"option x: expected .*, got "):
        parse_option("x", text, kind)


def resolve(**given) -> ResolvedConfig:
    fixed = {"dataset": "fashionmnist", "device": "cpu", "compile": False}
    return CondenseConfig(**(fixed | given)).resolve()


def test_every_option_is_kept_and_survives_json(tmp_path: Path) -> None:
    config = resolve(options={"scales": "0.5,2", "bandwidth": "3"})
    assert config.options["scales"] == (0.5, 2.0)
    assert config.options["bandwidth"] == 3.0
    assert config.options["degree"] == 2, "also those not given"
    again = ResolvedConfig.from_dict(json.loads(json.dumps(config.as_dict())), tmp_path)
    assert again == config
    assert again.build_method() == config.build_method()


def test_kernel_is_short_for_its_option() -> None:
    assert resolve(kernel="linear").options["kernel"] == "linear"
    assert resolve(options={"kernel": "linear"}).kernel == "linear"
    with pytest.raises(UserError, match="expected one of them"):
        resolve(kernel="linear", options={"kernel": "gammas"})


def test_a_method_has_its_published_settings_and_m3d_s_on_request() -> None:
    m3d, dm = resolve(ipc=10), resolve(ipc=10, method="dm")
    assert (m3d.factor, m3d.init, m3d.ipm, m3d.iterations) == (2, "mix", 5, 10_000)
    assert (dm.factor, dm.init, dm.ipm, dm.iterations, dm.real_batch) == (1, "real", 1, 20_000, 256)
    assert dm.lr_img == pytest.approx(0.353**2), "published for pixels divided by their deviation"
    assert dm.augment == "one:color_crop_cutout_flip_scale_rotate"
    shared = resolve(ipc=10, method="dm", preset="m3d")
    names = ("factor", "init", "ipm", "iterations", "real_batch", "augment", "lr_img", "momentum")
    assert [getattr(shared, name) for name in names] == [getattr(m3d, name) for name in names]
    assert resolve(ipc=10, method="dm", factor=2).factor == 2


def test_the_paper_s_learning_rate_is_flat_and_ours_grows_with_ipc() -> None:
    assert [resolve(ipc=n).lr_img for n in (1, 10)] == [1.0, 10.0]
    assert [resolve(ipc=n, preset="paper").lr_img for n in (1, 10)] == [1.0, 1.0]
    large = {"dataset": "imagenet10", "data_root": "x", "size": 224, "ipc": 10}
    assert resolve(**large).lr_img == pytest.approx(1.0)
    assert resolve(**large, preset="paper").lr_img == pytest.approx(0.1)


def test_the_strong_preset_adds_terms_to_pixels_under_a_pool() -> None:
    strong = resolve(ipc=10, preset="strong")
    assert dict(strong.add) == {"ridge": 1.0}
    assert (strong.networks_from, strong.draws, strong.average) == ("random", "all", 0.95)
    tiles = resolve(ipc=10, preset="strong", decode="tiles")
    assert dict(tiles.add) == {"ridge": 1.0, "calibration": 0.1}
    assert (tiles.networks_from, tiles.lr_img) == ("pool", 5.0)
    assert resolve(ipc=100, preset="strong").networks_from == "pool", "whole images"
    assert resolve(preset="strong", add={"calibration": 1.0}).networks_from == "pool"
    plain = resolve(preset="strong", add={}, method="dm")
    assert (dict(plain.add), plain.networks_from, plain.draws) == ({}, "random", "class")
    assert weights("none") == {}


def test_the_strong_preset_at_50_is_that_of_the_set_of_the_project() -> None:
    names = "iterations", "real_batch", "pool_epochs", "pool_stages", "decoded"
    settings = {n: resolve(ipc=n, preset="strong") for n in (49, 50, 100)}
    assert {n: tuple(getattr(s, name) for name in names) for n, s in settings.items()} == {
        49: (1_000, 128, 0.35, 1, 200),
        50: (300, 256, 1.0, 3, 200),
        100: (300, 256, 1.0, 3, None),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"average": 1.0}, "average: expected a number from 0 to below 1, got 1.0"),
        ({"group": 0}, "group: expected a number above 0, got 0"),
        ({"draws": "al"}, "did you mean all"),
        ({"method": "mm3d"}, "did you mean m3d"),
        ({"options": {"scale": "1"}}, "option of m3d: 'scale' is not known; did you mean scales"),
        ({"options": {"scales": "0"}}, "scales: expected a number above 0"),
        ({"options": {"scales": ()}}, "scales: expected at least one"),
        ({"kernel": "gausian"}, "did you mean gaussian"),
        ({"method": "dc", "options": {"x": 1}}, "dc has no options"),
        ({"method": "no_such_module:Mine"}, "expected package.module:Class"),
        ({"method": "json:nothing"}, "expected package.module:Class"),
        ({"method": "json:loads"}, "expected a class that extends"),
        ({"preset": "papers"}, "did you mean paper"),
        ({"networks_from": "randm"}, "did you mean random"),
        ({"init": "mixed"}, "did you mean mix"),
    ],
)
def test_bad_input_is_one_sentence(given, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name: str) -> None:
    method = build_method(name, {})
    assert method.terms
    assert method.scope in ("class", "group", "set", "joint")
    assert is_dataclass(method), "its fields are its options"
    assert hash(method) == hash(build_method(name, {}))
    assert resolve(method=name).iterations > 0
