"""The condensed sets that come with the project can be trained on."""

from pathlib import Path

import pytest

import benchmarks
from m3d_fast.loaders import dataset_info
from m3d_fast.synthetic import SyntheticSet

SETS = Path(benchmarks.__file__).parent / "results" / "sets"


@pytest.mark.parametrize(("ipc", "decoded"), [(1, 18), (10, 80), (50, 200)])
def test_a_set_has_its_images(ipc: int, decoded: int) -> None:
    synthetic = SyntheticSet.load(SETS / f"fashionmnist-ipc{ipc}.safetensors")
    known = dataset_info(str(synthetic.info["dataset"]))
    assert (synthetic.num_classes, synthetic.stored_per_class) == (known.num_classes, ipc)
    assert (tuple(synthetic.mean), tuple(synthetic.std)) == (known.mean, known.std)
    images, labels = synthetic.decode()
    assert images.shape == (10 * decoded, 1, 28, 28)
    assert labels.bincount().tolist() == [decoded] * 10
    assert 0 <= images.min() < 0.01 < 0.9 < images.max() <= 1


def test_every_set_is_named_in_the_card() -> None:
    card = (SETS / "README.md").read_text()
    assert all(path.name in card for path in SETS.glob("*.safetensors"))
