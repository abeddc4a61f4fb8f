from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from evaluation.metrics import compute_confusion, compute_metrics, softmax
from reporting import canvas, plots, trust_plots

NAMES = [
    "Glioma",
    "Meningioma of the convexity",
    "Pituitary_adenoma_not_otherwise_specified",
    "Lymphoma",
    "Schwannoma",
    "No tumour",
    "Other",
    "Medulloblastoma",
]
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [1.1, 0.7, 0.5],
        "val_loss": [1.0, 0.8, 0.9],
        "val_accuracy": [0.5, 0.8, 0.7],
        "val_macro_f1": [0.4, 0.8, 0.7],
        "lr": [1e-4, 1e-3, 0.0],
    }
)


def plot_everything(folder: Path, n_classes: int, absent: int | None = None) -> list[Path]:
    rng = np.random.default_rng(n_classes)
    classes = NAMES[:n_classes]
    labels = np.arange(80) % n_classes
    if absent is not None:
        labels[labels == absent] = (absent + 1) % n_classes
    logits = rng.normal(size=(80, n_classes)) + 2 * np.eye(n_classes)[labels]
    probs = softmax(logits)
    confusion = compute_confusion(logits.argmax(axis=1), labels, n_classes)
    ids = np.arange(80)
    per_class = compute_metrics(probs, labels, ids, ids, classes)["per_class"]
    paths = [folder / f"{name}.png" for name in ("confusion", "roc", "pr", "classes")]
    plots.plot_confusion_matrix(confusion, classes, paths[0])
    plots.plot_roc_curves(probs, labels, classes, paths[1])
    plots.plot_pr_curves(probs, labels, classes, paths[2])
    plots.plot_class_metrics(per_class, paths[3])
    return paths


def read_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


@pytest.mark.parametrize(("n_classes", "absent"), [(2, None), (8, None), (3, 1), (2, 0)])
def test_plots_are_pictures_of_sensible_size(
    tmp_path: Path, n_classes: int, absent: int | None
) -> None:
    paths = plot_everything(tmp_path, n_classes, absent)
    for path in paths:
        width_px, height_px = read_size(path)
        assert 600 <= width_px <= 2400
        assert 400 <= height_px <= 1400
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # no temporary file is left


@pytest.mark.parametrize("n_epochs", [1, 3])
def test_training_curves(tmp_path: Path, n_epochs: int) -> None:
    plots.plot_training_curves(HISTORY[:n_epochs], 1, tmp_path / "training.png")
    assert read_size(tmp_path / "training.png") == (1440, 480)


def test_texts_of_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[list[str]] = []
    save = canvas.save

    def record(figure: Figure, path: Path, title: str, stamp: str | None) -> None:
        save(figure, path, title, stamp)
        found = figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
        texts.append([text.get_text() for text in found])  # type: ignore[attr-defined]

    for module in (plots, trust_plots):
        monkeypatch.setattr(module, "save", record)
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    classes = ["Glioma", "Menin", "Tumor"]
    plots.plot_confusion_matrix(confusion, classes, tmp_path / "a.png", stamp="PHANTOM")
    probs = np.array([[0.8, 0.1, 0.1], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8], [0.7, 0.1, 0.2]])
    labels = np.array([0, 0, 2, 2])
    plots.plot_roc_curves(probs, labels, classes, tmp_path / "b.png")
    plots.plot_pr_curves(probs, labels, classes, tmp_path / "c.png")
    plots.plot_training_curves(HISTORY, 2, tmp_path / "d.png")
    trust_plots.plot_reliability({"softmax": probs}, labels, tmp_path / "e.png")
    trust_plots.plot_risk_coverage(probs, labels, tmp_path / "f.png")
    exhibit = (np.zeros((8, 8), np.uint8), np.zeros((8, 8)), "Glioma, called Tumor (0.99)")
    trust_plots.plot_gallery([exhibit] * 5, "Errors", tmp_path / "g.png")
    matrix, roc, pr, training, reliability, _, shown = texts
    assert {"Confusion matrix: accuracy 87.5 % of 8 images · PHANTOM", "PHANTOM"} <= set(matrix)
    assert {"75.0 %", "25.0 %", "100.0 %", "–"} <= set(matrix)
    # Glioma 0.8 and 0.6 against 0.1 and 0.7: 3 of 4 pairs; Tumor 0.8 and 0.2 against 0.1 and 0.3.
    assert {"Glioma\nAUC 0.750", "Tumor\nAUC 0.750"} <= set(roc)
    assert "no curve where one side has no images: Menin" in roc
    # Glioma by rank: right, wrong, right: 1/2 * 1 + 1/2 * 2/3.
    assert "Glioma\nAP 0.833, prevalence 0.50" in pr
    assert "Training: best val macro F1 0.800 at epoch 2" in training
    assert all(canvas.FOOTER in found for found in texts)
    # 0.8 and 0.8 right, 0.6 right, 0.7 wrong: |0.2 + 0.2 - ...| of 4 in the bins of 15
    assert "softmax: ECE 0.3750" in reliability
    assert shown.count("Glioma, called Tumor (0.99)") == 5
    assert "PHANTOM" not in roc + pr + training


STRESS = {
    "clean": {"value": 0.9, "ci95": [0.8, 0.95]},
    "majority": 0.4,
    "positions": {
        "as stored": {"value": 0.9, "ci95": [0.8, 0.95]},
        "mirrored": {"value": 0.8, "ci95": [0.7, 0.9]},
    },
    "corruptions": {
        "blur": [
            {"strength": level, "accuracy": {"value": 0.9 - level / 10}} for level in range(1, 6)
        ]
    },
    "probes": {
        "blank_interior": {"accuracy": {"value": None, "ci95": None}},
        "matched_brightness": {"accuracy": {"value": 0.85, "ci95": [0.8, 0.9]}},
    },
}


def test_trust_plots_are_pictures(tmp_path: Path) -> None:
    trust_plots.plot_stress(STRESS, tmp_path / "stress.png", stamp="PHANTOM")
    for count in (1, 4, 9):
        exhibit = (np.zeros((8, 8), np.uint8), np.ones((8, 8)), "a")
        trust_plots.plot_gallery([exhibit] * count, "b", tmp_path / f"{count}.png")
    for path in tmp_path.iterdir():
        width_px, height_px = read_size(path)
        assert 300 <= width_px <= 2400
        assert 300 <= height_px <= 1400


def test_stamp_lies_over_the_picture(tmp_path: Path) -> None:
    plots.plot_training_curves(HISTORY, 2, tmp_path / "plain.png")
    plots.plot_training_curves(HISTORY, 2, tmp_path / "stamped.png", stamp="PHANTOM")
    plain, stamped = (
        np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        for name in ("plain.png", "stamped.png")
    )
    changed = (plain != stamped).any(axis=2)[80:]  # below the title line
    assert 0.03 < changed.mean() < 0.5
    assert np.abs(plain - stamped)[80:].max() < 64  # pale: what lies under it is still read


def test_failed_plot_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    path = tmp_path / "training.png"
    path.write_bytes(b"the picture of before")
    with pytest.raises(OSError, match="disk full"):
        plots.plot_training_curves(HISTORY, 2, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the picture of before"


def test_global_state_of_matplotlib_is_untouched(tmp_path: Path) -> None:
    before = plt.get_backend()
    try:
        plt.switch_backend("svg")
        own = plt.figure()
        settings = dict(matplotlib.rcParams)
        plot_everything(tmp_path, 3)
        plots.plot_training_curves(HISTORY, 2, tmp_path / "training.png", stamp="PHANTOM")
        assert matplotlib.get_backend() == "svg"
        assert plt.get_fignums() == [own.number]
        assert dict(matplotlib.rcParams) == settings
        plt.close(own)
    finally:
        plt.switch_backend(before)


def test_names_break_at_spaces_and_underscores() -> None:
    assert canvas.wrap("Meningioma of the convexity") == "Meningioma of the\nconvexity"
    assert canvas.wrap("Craniopharyngioma_unspecified") == "Craniopharyngioma_\nunspecified"
