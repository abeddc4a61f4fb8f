"""Loss tracker: delayed reads, and losses that are not finite."""

import math

import pytest
import torch

from helper import UserError
from training.loss_tracker import LossTracker

NONE = torch.zeros(0)


def test_a_delayed_read_returns_the_losses_before_the_last_read() -> None:
    tracker = LossTracker(epoch=1, n_steps=6, before=NONE)
    means = []
    for value in (1.0, 3.0, 5.0, 7.0, 9.0):
        tracker.add(torch.tensor(value))
        if value in (3.0, 7.0):
            means.append(tracker.read_delayed())
    assert means == [None, 2.0]
    assert tracker.read().tolist() == [1.0, 3.0, 5.0, 7.0, 9.0]


def test_losses_before_a_resume_come_first() -> None:
    tracker = LossTracker(epoch=1, n_steps=4, before=torch.tensor([1.0, 2.0]))
    tracker.add(torch.tensor(3.0))
    assert tracker.read().tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_is_named(bad: float) -> None:
    tracker = LossTracker(epoch=3, n_steps=9, before=NONE)
    for step in range(1, 8):
        tracker.add(torch.tensor(bad if step >= 5 else 1.0))
        if step == 2:
            tracker.read_delayed()
    assert tracker.read_delayed() == 1.0
    with pytest.raises(UserError, match="epoch 3, step 5 of 9"):
        tracker.read()
