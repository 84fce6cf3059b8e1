"""What several fine passes say together: who has a say."""

from __future__ import annotations

import numpy as np
import pytest

from kbc.geometry import Window
from kbc.probe import Observation
from kbc.tuning import TUNING
from kbc.verify import FinePass, _heard


def seen_from(mirrored: bool, layout_mirrored: bool, evidence: float) -> FinePass:
    """A pass that looked at the source upright or mirrored, and whose layout lies upright or mirrored."""
    source, target = Window.whole((40, 60)), Window.whole((50, 70))
    source = source.mirror() if mirrored else source
    seen = Observation(source, target, np.zeros((0, 1, 2)), np.zeros((0, 1)), None, 1.0)
    return FinePass(seen, "best", evidence, layout_mirrored, np.zeros((0, 2)), None, None)


@pytest.mark.parametrize("mirrored", [False, True])
def test_who_saw_the_mirror_image_must_be_nearly_as_sure_to_be_heard(mirrored: bool) -> None:
    between = (TUNING.heard + TUNING.heard_mirrored) / 2
    assert TUNING.heard_mirrored < between < TUNING.heard
    best = seen_from(mirrored, mirrored, 3.0)
    assert _heard(best, best, TUNING)
    assert _heard(seen_from(mirrored, mirrored, 3.0 - between), best, TUNING)
    assert not _heard(seen_from(not mirrored, mirrored, 3.0 - between), best, TUNING)
    assert _heard(seen_from(not mirrored, mirrored, 3.0 - TUNING.heard_mirrored / 2), best, TUNING)
    assert not _heard(seen_from(mirrored, not mirrored, 3.0), best, TUNING)  # left would mix with right


def test_the_best_pass_is_heard_though_it_saw_the_mirror_image() -> None:
    best = seen_from(True, False, 3.0)
    assert _heard(best, best, TUNING)
