"""History of a run: best epoch, patience and history.csv."""

from pathlib import Path

import pandas as pd

from training.history import History


def make_row(epoch: int, val_macro_f1: float, val_loss: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "val_macro_f1": val_macro_f1, "val_loss": val_loss}


def test_the_best_epoch_has_the_highest_f1_then_the_lowest_loss(tmp_path: Path) -> None:
    history = History(tmp_path, uses_tensorboard=False)
    rows = [(0.5, 0.5), (0.5, 0.6), (0.5, 0.4), (0.4, 0.1), (0.6, 0.9)]
    improved = [history.add(make_row(epoch, *row)) for epoch, row in enumerate(rows, 1)]
    assert improved == [True, False, True, False, True]
    assert history.best["epoch"] == 5


def test_patience_counts_epochs_since_the_best(tmp_path: Path) -> None:
    history = History(tmp_path, uses_tensorboard=False)
    stale = [history.is_stale(2)]
    for epoch, score in enumerate((0.5, 0.7, 0.6, 0.7), 1):
        history.add(make_row(epoch, score))
        stale.append(history.is_stale(2))
    assert stale == [False, False, False, False, True]
    assert not history.is_stale(0)
    history.best = {}  # as in a damaged checkpoint
    assert not history.is_stale(2)


def test_the_file_holds_every_row(tmp_path: Path) -> None:
    history = History(tmp_path, uses_tensorboard=False)
    history.write_csv()
    assert not list(tmp_path.iterdir())
    for epoch in (1, 2):
        history.add(make_row(epoch, 0.5))
    history.write_csv()
    assert pd.read_csv(tmp_path / "history.csv").to_dict("records") == history.rows
