"""Plots: their texts, sizes, stamp and files."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from evaluation.metrics import compute_confusion, compute_metrics, softmax
from reporting import galleries, plots, uncertainty_plots
from tests.support.builders import Patch

NAMES = [
    *("Glioma", "Meningioma of the convexity", "Pituitary_adenoma_not_otherwise_specified"),
    *("Lymphoma", "Schwannoma", "No tumour", "Other", "Medulloblastoma"),
]
HISTORY = pd.DataFrame(
    [[1, 1.1, 1.0, 0.5, 0.4, 1e-4], [2, 0.7, 0.8, 0.8, 0.8, 1e-3], [3, 0.5, 0.9, 0.7, 0.7, 0.0]],
    columns=["epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", "lr"],
)
ESTIMATE = {"value": 0.9, "ci95": [0.8, 0.95]}
STRESS = {
    "clean": ESTIMATE,
    "majority": 0.4,
    "orientations": {"as stored": ESTIMATE, "mirrored": ESTIMATE},
    "corruptions": {"blur": [{"strength": level, "accuracy": ESTIMATE} for level in range(1, 6)]},
    "probes": {
        "blank_interior": {"accuracy": {"value": None, "ci95": None}},
        "matched_brightness": {"accuracy": ESTIMATE},
    },
}
PROBS = np.array([[0.8, 0.1, 0.1], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8], [0.7, 0.1, 0.2]])
LABELS = np.array([0, 0, 2, 2])


def plot_classes(n_classes: int, absent: int | None = None) -> list[Figure]:
    """The plots that depend on the number of classes; one class may have no images."""
    rng = np.random.default_rng(n_classes)
    classes = NAMES[:n_classes]
    labels = np.arange(80) % n_classes
    if absent is not None:
        labels[labels == absent] = (absent + 1) % n_classes
    probs = softmax(rng.normal(size=(80, n_classes)) + 2 * np.eye(n_classes)[labels])
    confusion = compute_confusion(probs.argmax(axis=1), labels, n_classes)
    ids = np.arange(80)
    return [
        plots.plot_confusion_matrix(confusion, classes),
        plots.plot_roc_curves(probs, labels, classes),
        plots.plot_pr_curves(probs, labels, classes),
        plots.plot_class_metrics(compute_metrics(probs, labels, ids, ids, classes)["per_class"]),
    ]


def read_texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    found = figure.findobj(lambda artist: isinstance(artist, matplotlib.text.Text))
    return [text.get_text() for text in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("n_classes", "absent"), [(2, None), (8, None), (3, 1), (2, 0)])
def test_plots_of_classes_have_sensible_sizes(n_classes: int, absent: int | None) -> None:
    for figure in plot_classes(n_classes, absent):
        width_px, height_px = figure.get_size_inches() * plots.DPI
        assert 600 <= width_px <= 2400
        assert 400 <= height_px <= 1400
        assert plots.FOOTER in read_texts(figure)


def test_texts_of_the_confusion_matrix() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    texts = read_texts(plots.plot_confusion_matrix(confusion, ["Glioma", "Menin", "Tumor"]))
    assert "Confusion matrix: accuracy 87.5 % of 8 images" in texts
    assert {"75.0 %", "25.0 %", "100.0 %", "–"} <= set(texts)


@pytest.mark.parametrize("n_runs", [1, 7])
def test_accuracies_with_their_intervals(n_runs: int) -> None:
    estimates = {f"run {number}": ESTIMATE for number in range(n_runs)}
    units = {"accuracy": estimates, "accuracy per patient": estimates}
    figure = plots.plot_accuracies(units, {"majority": 0.4, "brightness": 0.7})
    texts = read_texts(figure)
    assert {"accuracy", "accuracy per patient", "brightness baseline", f"run {n_runs - 1}"} <= set(
        texts
    )
    assert texts.count("0.9000") == 2 * n_runs
    [axes] = figure.axes
    assert [line.get_xdata()[0] for line in axes.get_lines()[-2:]] == [0.4, 0.7]  # type: ignore[index]
    bars = [bar for container in axes.collections for bar in container.get_segments()]  # type: ignore[attr-defined]
    assert {tuple(bar[:, 0].round(6)) for bar in bars} == {(0.8, 0.95)}
    assert min(figure.get_size_inches() * plots.DPI) >= 300


def test_texts_of_curves_match_hand_worked_areas() -> None:
    classes = ["Glioma", "Menin", "Tumor"]
    roc = read_texts(plots.plot_roc_curves(PROBS, LABELS, classes))
    # Glioma 0.8 and 0.6 against 0.1 and 0.7: 3 of 4 pairs; Tumor 0.8 and 0.2 against 0.1 and 0.3.
    assert {"Glioma\nAUC 0.750", "Tumor\nAUC 0.750"} <= set(roc)
    assert any("no curve" in text and "Menin" in text for text in roc)
    # Glioma in order of score: right, wrong, right: 1/2 * 1 + 1/2 * 2/3.
    assert "Glioma\nAP 0.833, prevalence 0.50" in read_texts(
        plots.plot_pr_curves(PROBS, LABELS, classes)
    )
    for n_epochs, best in ((3, "0.800 at epoch 2"), (1, "0.400 at epoch 1")):
        figure = plots.plot_training_curves(HISTORY[:n_epochs], min(n_epochs, 2))
        assert f"Training: best val macro F1 {best}" in read_texts(figure)


def test_reliability_and_review_by_hand() -> None:
    figure = uncertainty_plots.plot_reliability({"plain softmax": PROBS}, LABELS)
    # 0.8 twice and 0.6 right, 0.7 wrong: (2 * 0.2 + 0.4 + 0.7) / 4
    assert "plain softmax: ECE 0.3750" in read_texts(figure)
    rows = [
        {"share_for_review": 0.5, "accuracy_of_the_rest": {"value": 1.0, "ci95": [0.6, 1.0]}},
        {"share_for_review": 1.0, "accuracy_of_the_rest": {"value": None, "ci95": None}},
    ]
    [axes] = uncertainty_plots.plot_risk_coverage(PROBS, LABELS, rows).axes
    curve, _, points = axes.get_lines()[:3]
    assert curve.get_xdata().tolist() == pytest.approx([50, 25, 0])  # type: ignore[union-attr]
    assert curve.get_ydata().tolist() == pytest.approx([0, 100 / 3, 25])  # type: ignore[union-attr]
    assert points.get_xydata().tolist() == [[50, 0]]  # type: ignore[union-attr]
    [plain] = uncertainty_plots.plot_risk_coverage(PROBS, LABELS, None).axes
    # one of four is wrong; one and a half (itself counts half) are not more confident
    assert "by confidence: AUGRC 0.0938" in read_texts(plain.get_figure())  # type: ignore[arg-type]
    assert len(plain.get_lines()) == 2  # without calibration there are no thresholds


def test_robustness_and_galleries() -> None:
    texts = read_texts(plots.plot_robustness(STRESS))
    assert {"mirrored", "brightness matched", "most frequent class"} <= set(texts)
    assert "inside of the head blanked" not in texts  # it is undefined
    item = galleries.GalleryItem(np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32), "name")
    for count in (1, 4, 9):
        figure = galleries.plot_gallery([item] * count, "Errors")
        assert read_texts(figure).count("name") == count
        assert min(figure.get_size_inches() * plots.DPI) >= 300


def test_a_saved_plot_bears_its_stamp(tmp_path: Path) -> None:
    pixels = []
    for stamp in (None, "PHANTOM"):
        figure = plots.plot_training_curves(HISTORY, 2)
        plots.save(figure, tmp_path / "training.png", stamp)
        assert ("PHANTOM" in read_texts(figure)) == bool(stamp)
        assert str(figure.get_suptitle()).endswith("PHANTOM") == bool(stamp)
        with Image.open(tmp_path / "training.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (1440, 480))
            pixels.append(np.asarray(picture.convert("RGB")).astype(int)[80:])  # below the title
    difference = np.abs(pixels[0] - pixels[1])
    assert 0.03 < (difference > 0).any(axis=2).mean() < 0.5
    assert difference.max() < 64  # pale, so that the plot stays legible
    assert [path.name for path in tmp_path.iterdir()] == ["training.png"]


def test_a_failed_save_keeps_the_previous_plot(tmp_path: Path, monkeypatch: Patch) -> None:
    def fail(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    path = tmp_path / "training.png"
    path.write_bytes(b"previous plot")
    with pytest.raises(OSError, match="disk full"):
        plots.save(plots.plot_training_curves(HISTORY, 2), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"previous plot"


def test_the_global_state_of_matplotlib_is_unchanged(tmp_path: Path) -> None:
    before = plt.get_backend(), plt.get_fignums(), dict(matplotlib.rcParams)
    for figure in (*plot_classes(3), plots.plot_training_curves(HISTORY, 2)):
        plots.save(figure, tmp_path / "plot.png", "PHANTOM")
    assert (plt.get_backend(), plt.get_fignums(), dict(matplotlib.rcParams)) == before


def test_names_break_at_spaces_and_underscores() -> None:
    assert plots.wrap("Meningioma of the convexity") == "Meningioma of the\nconvexity"
    assert plots.wrap("Craniopharyngioma_unspecified") == "Craniopharyngioma_\nunspecified"
