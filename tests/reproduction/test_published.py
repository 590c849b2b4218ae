"""Published figures are data with their source; what is not known is None."""

from m3d_fast.comparison.entries import parse_entries
from m3d_fast.loaders import DATASETS
from m3d_fast.networks import NETWORKS
from m3d_fast.reproduction.published import Published, _read_blocks, find_published
from m3d_fast.reproduction.tables import TABLES


def test_figures_of_the_papers_are_found() -> None:
    m3d = find_published("fashionmnist", 1, "convnet3", "m3d")
    assert m3d.accuracy == 0.807
    assert "2312.15927" in m3d.sources[0]
    assert find_published("cifar10", 50, "convnet3", "idm[matching=mmd]").accuracy == 0.696
    first = find_published("cifar10", 10, "convnet3", "moments[third=0]")
    assert (first.accuracy, first.moments) == (0.521, (4.51, 6.96, 6.35))
    hours = find_published("imagenet100", 20, "resnetap10", "idc")
    assert (hours.accuracy, hours.seconds) == (0.537, 185 * 3600)


def test_what_is_not_published_is_none() -> None:
    for row in (
        ("digits", 1, "convnet3", "m3d"),
        ("fashionmnist", 2, "convnet3", "m3d"),
        ("fashionmnist", 1, "resnet18", "m3d"),
        ("fashionmnist", 1, "convnet3", "ddm"),
        ("cifar10", 1, "convnet3", "dm"),
    ):
        assert find_published(*row) == Published()
    same = ("fashionmnist", 1, "convnet3", "m3d")
    assert find_published(*same, size=28).accuracy == 0.807
    assert find_published(*same, size=32) == Published()
    assert find_published(*same, split="held-out") == Published()
    assert find_published(*same, labels="soft") == Published()


def test_every_figure_has_a_source_and_a_place() -> None:
    for block in _read_blocks():
        assert block["source"]
        assert block["dataset"] in DATASETS
        assert block["network"] in NETWORKS
        for method, values in block["values"].items():
            assert len(values) == len(block["ipc"])
            if method != "whole":
                assert parse_entries(method)
            for value in values:
                numbers = value if block["measure"] == "moments" else [value]
                assert all(number is None or 0 < number < 200 for number in numbers)


def test_every_table_is_of_entries_and_data_sets_that_exist() -> None:
    for table in TABLES.values():
        assert set(table.parts) <= set(table.accepts) <= set(DATASETS)
        assert set(table.quick_methods) <= set(table.methods)
        assert set(table.networks) <= set(NETWORKS)
        assert len(parse_entries(",".join(table.methods))) == len(table.methods)
