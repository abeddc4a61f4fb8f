"""The experiment that tells persons apart: loss, pair scores, hand-made features, the command."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_auc_score

from experiments import person_embedding, person_features, person_pairs
from experiments.person_pairs import Ranking
from tests.support.builders import expect_refusal

Pixels = NDArray[np.uint8]


def draw_head(width: int = 30, height: int = 40, *, neck: bool = False, nose: int = 0) -> Pixels:
    """Draw a head on black, 128 x 128; a nose makes the halves differ."""
    picture = np.zeros((128, 128), np.uint8)
    cv2.ellipse(picture, (64, 60), (width, height), 0, 0, 360, 120, -1)
    cv2.ellipse(picture, (64, 60), (width - 6, height - 6), 0, 0, 360, 80, -1)
    if neck:
        cv2.rectangle(picture, (64 - width, 60), (64 + width, 110), 100, -1)
    if nose:
        cv2.rectangle(picture, (64 - width - nose, 70), (64, 110), 140, -1)
    return picture


def test_the_contrastive_loss_by_hand() -> None:
    first, second = [1.0, 0.0], [0.0, 1.0]
    blocks = torch.tensor([[first, first, second, second]])  # two persons with two slices
    # each slice: cosine 1 with its positive, 0 with the two others
    expected = np.log(np.exp(1 / 0.5) + 2) - 1 / 0.5
    loss = person_embedding.compute_contrastive_loss(blocks, 2, temperature=0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    other_class = torch.tensor([[first, second, first, second]])  # cosine 0 with the positive
    both = torch.cat([blocks, other_class])
    loss = person_embedding.compute_contrastive_loss(both, 2, temperature=0.5)
    assert loss.item() == pytest.approx((expected + expected + 2) / 2, rel=1e-5)


def test_batches_hold_several_slices_of_persons_of_every_class() -> None:
    table = pd.DataFrame({"label": list("AAAAAABBBB"), "patient": list("aaaabbccdd")})
    generator = torch.Generator().manual_seed(0)
    batches = person_embedding.draw_batches(table, 5, generator)
    for rows in batches:
        drawn = table.iloc[rows.tolist()]
        assert drawn["label"].tolist() == ["A"] * 6 + ["B"] * 6
        blocks = drawn["patient"].to_numpy().reshape(4, 3)
        assert all(len(set(block)) == 1 for block in blocks)
        assert sorted(blocks[:, 0]) == list("abcd")
    of_a = [row for rows in batches for row in rows.tolist() if row < 4]
    assert len(set(of_a[:3])) == 3  # a person with enough slices gives each only once


def test_pairs_lie_within_a_class() -> None:
    pairs = person_pairs.list_pairs(np.array(list("ABAA")), np.array(list("pqpr")))
    assert list(zip(*(values.tolist() for values in pairs), strict=True)) == [
        (0, 2, True),
        (0, 3, False),
        (2, 3, False),
    ]


def test_scores_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    is_same = generator.random(400) < 0.3
    similarity = np.round(generator.normal(size=400) + 1.2 * is_same, 1)  # with ties
    weights = generator.integers(0, 4, 400).astype(float)
    for crowding in (1.0, 5.0):
        scores = Ranking(similarity, is_same, crowding).score(weights)
        auc = roc_auc_score(is_same, similarity, sample_weight=weights)
        assert scores["auc"] == pytest.approx(auc)
        crowded = np.where(is_same, weights, crowding * weights)
        precision, recall, _ = precision_recall_curve(is_same, similarity, sample_weight=crowded)
        for least in (0.5, 0.9):
            expected = max(recall[precision >= least])
            found = scores[f"recall_at_precision_{least}_among_all"]
            assert found == pytest.approx(expected), (crowding, least)


def test_more_persons_crowd_the_pairs_by_hand() -> None:
    # 10 of 20 pairs show one person here, but 1 of 10 among all: 9 others instead of 1
    is_same = np.arange(20) < 10
    assert person_pairs.compute_crowding(is_same, 0.1) == pytest.approx(9)
    scores = Ranking(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), 9.0).score()
    assert scores["recall_at_precision_0.5"] == 1
    assert scores["recall_at_precision_0.5_among_all"] == 0.5


def test_intervals_draw_persons() -> None:
    persons, classes = np.repeat(np.arange(12), 4), np.repeat(["A", "B"], 24)
    pairs = person_pairs.list_pairs(classes, persons)
    generator = np.random.default_rng(1)
    similarity = generator.normal(size=len(pairs.first)) + pairs.is_same
    widths = []
    for is_drawn in (persons < 13, (persons % 6) < 3):  # all, and half of the persons
        chosen = is_drawn[pairs.first] & is_drawn[pairs.second]
        found = person_pairs.score_pairs(
            *(similarity[chosen], pairs.take(chosen), persons, classes, 1.0, 200),
            np.random.default_rng(0),
        )
        assert found is not None
        low, high = found["auc"]["ci95"]
        assert low < found["auc"]["value"] < high
        widths.append(high - low)
    assert widths[0] < widths[1]
    one_kind = pairs.take(pairs.is_same)
    values = similarity[pairs.is_same]
    assert not person_pairs.score_pairs(values, one_kind, persons, classes, 1.0, 9, generator)


def test_outline_does_not_depend_on_place_side_and_size() -> None:
    head = draw_head(nose=8)
    described = person_features.describe_slice(head)
    moved = person_features.describe_slice(np.roll(head, (5, -4), axis=(0, 1)))
    mirrored = person_features.describe_slice(np.ascontiguousarray(head[:, ::-1]))
    double = person_features.describe_slice(np.kron(head, np.ones((2, 2), np.uint8)))
    wider = person_features.describe_slice(draw_head(width=38, nose=8))
    changes = [
        np.linalg.norm(other["outline"] - described["outline"])
        for other in (moved, mirrored, double, wider)
    ]
    assert max(changes[:2]) < 0.01
    assert changes[2] < 0.7 * changes[3]  # its small coefficients depend on the pixels
    assert np.abs(moved["field"] - described["field"])[:4].max() == pytest.approx(5 / 128)


def test_noise_and_grey_are_measured() -> None:
    clean = draw_head()
    noise = np.random.default_rng(0).normal(0, 6, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    quiet, loud = (person_features.describe_slice(picture) for picture in (clean, noisy))
    assert (loud["noise"] > quiet["noise"]).all()
    darker = person_features.describe_slice(clean // 2)
    assert darker["grey"][8] == pytest.approx(quiet["grey"][8] / 2, abs=1 / 255)
    blank = person_features.describe_slice(np.zeros((64, 64), np.uint8))
    assert all(np.isfinite(values).all() for values in blank.values())


def test_planes_are_guessed_from_symmetry_and_neck() -> None:
    pictures = [draw_head(), draw_head(neck=True), draw_head(nose=16)]
    symmetry = np.stack([person_features.describe_slice(each)["plane"] for each in pictures])
    unlike = np.eye(3) + 0.01
    assert person_features.guess_planes(symmetry, unlike).tolist() == list(person_features.PLANES)


def test_an_embedding_of_features_tells_unseen_persons_apart() -> None:
    generator = np.random.default_rng(0)
    persons = np.repeat(np.arange(60), 6)
    values = 3 * generator.normal(size=(360, 12))  # ten of the twelve are noise
    values[:, :2] = generator.normal(size=(60, 2))[persons] + 0.1 * generator.normal(size=(360, 2))
    table = pd.DataFrame({"label": "A", "patient": persons})
    features = {"grey": torch.from_numpy(values).float()}
    slices = person_embedding.Slices(table, torch.zeros(0), features, [])
    is_train = persons < 40
    batches = person_embedding.draw_batches(table[is_train], 100, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = person_embedding.embed_features(slices, ("grey",), is_train, batches)
    pairs = person_pairs.list_pairs(is_train.astype(str), persons)
    pairs = pairs.take(~is_train[pairs.first])
    cosines = person_embedding.compare_pairs({"network": found, "hand-made": found}, pairs)
    assert Ranking(cosines["network"], pairs.is_same).score()["auc"] > 0.85
    standard = values / np.linalg.norm(values, axis=1, keepdims=True)
    raw = np.einsum("md,md->m", standard[pairs.first], standard[pairs.second])
    assert Ranking(raw, pairs.is_same).score()["auc"] < 0.65


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line on 36 drawn slices of two classes, two folds and eleven persons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(person_embedding, "HAND_MADE_STEPS", 5)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(36):
        label, person = "AB"[number % 2], number // 3
        path = f"{label}/{number}.png"
        rows.append((path, f"{label}{number // 6}", "12"[(number // 12) % 2], str(person)))
        picture = draw_head(24 + person, 36 + number % 3, nose=number % 5)
        noisy = np.clip(picture + generator.normal(0, 3, picture.shape), 0, 255)
        Path("slices", label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"slices/{path}", noisy.astype(np.uint8))
    table = pd.DataFrame(rows, columns=["path", "patient", "fold", "scan"])
    table.to_csv("patients.csv", index=False, lineterminator="\n", encoding="utf-8")
    torch.save(torchvision.models.mobilenet_v2().state_dict(), "weights.pth")
    arguments = ["slices", "--patients", "patients.csv", "--weights", "weights.pth"]
    sizes = ["--image-size", "32", "--steps", "2", "--replicates", "9", "--threads", "1"]
    return [*arguments, *sizes, "--json", "figures.json"]


def test_the_command_measures_and_resumes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert person_embedding.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("CPU time") == 2  # one network per fold
    figures = json.loads(Path("figures.json").read_text("utf-8"))
    assert figures["n_images"] == 36
    methods = {"outline", "field", "noise", "grey", "hand-made", "network", "frozen network"}
    assert set(figures["pooled"]) == methods | {"network and hand-made", "SIFT score"}
    subsets = figures["pooled"]["network"]
    assert subsets["all"]["n_same"] == (
        subsets["within_plane"]["n_same"] + subsets["across_planes"]["n_same"]
    )
    for entry in figures["by_fold"]["1"]["methods"].values():
        assert 0 <= entry["unseen"]["auc"] <= 1
    value = subsets["all"]["auc"]["value"]
    assert f"| network | all | {value:.3f}" in printed
    assert person_embedding.main(command) == 0
    assert "CPU time" not in capsys.readouterr().out  # nothing is trained again
    assert json.loads(Path("figures.json").read_text("utf-8"))["pooled"] == figures["pooled"]


def test_a_person_of_two_folds_counts_to_the_last(command: list[str]) -> None:
    table = pd.read_csv("patients.csv", dtype=str)
    table.loc[table.index[0], "fold"] = "2"
    table.to_csv("patients.csv", index=False, lineterminator="\n", encoding="utf-8")
    slices = person_embedding.load_slices(Path("slices"), Path("patients.csv"), 32)
    first = slices.table["patient"] == slices.table["patient"].iloc[0]
    assert slices.table["fold"][first].tolist() == ["2"] * 3


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("fold", None, ("patients.csv", "no column fold")),
        ("fold", "1", ("two folds",)),
        ("patient", "P", ("two persons",)),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    column: str,
    value: str | None,
    words: tuple[str, ...],
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pd.read_csv("patients.csv", dtype=str)
    table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    table.to_csv("patients.csv", index=False, lineterminator="\n", encoding="utf-8")
    message = expect_refusal(capsys, person_embedding.main(command))
    assert all(word in message for word in words)


def test_an_unknown_fold_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = expect_refusal(capsys, person_embedding.main([*command, "--folds", "7"]))
    assert "--folds 7" in message
