"""Evaluations whose features for herding and k-center are trained briefly."""

import pytest

from tests.helpers.quick_evaluate import EPOCHS, IMAGES, features


@pytest.fixture(autouse=True)
def _brief_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "EPOCHS", EPOCHS)
    monkeypatch.setattr(features, "IMAGES", IMAGES)
