import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.analysis.probes import (
    FIELDS,
    a_distance,
    auroc_of,
    border_cues,
    header_cues,
    label_balanced,
    probe,
    shortcut_probes,
    site_probes,
)
from pipeline.tables.files import Instances

OPTIONS = {"resamples": 200, "seed": 1}


def cohort(rng, num=120, effect=2.0, width=5):
    """Two images a patient, half of the patients positive; the first feature carries the label."""
    patients = np.array([f"p{index // 2:03d}" for index in range(num)])
    labels = np.arange(num) // 2 % 2
    features = rng.normal(size=(num, width))
    features[:, 0] += effect * labels
    return features, labels, patients


def test_auroc_is_scikit_learns_with_weights():
    rng = np.random.default_rng(0)
    features, labels, patients = cohort(rng)
    weights = rng.random(len(labels))
    found = auroc_of(labels, features[:, 0], patients, weights=weights, **OPTIONS)
    assert found.value == pytest.approx(roc_auc_score(labels, features[:, 0], sample_weight=weights))
    assert found.low < found.value < found.high
    assert (found.num_images, found.num_patients) == (120, 60)


def test_probe_reads_what_is_there_and_no_more():
    rng = np.random.default_rng(1)
    features, labels, patients = cohort(rng)
    assert probe(features, labels, patients, **OPTIONS).value > 0.85
    nothing = [probe(*cohort(rng, effect=0.0), **OPTIONS).value for _ in range(5)]
    assert np.mean(nothing) < 0.56
    # The patient's own mark, the same on both images: folds by image would read the label off it.
    marks = np.repeat(rng.normal(size=(60, 300)), 2, axis=0)
    assert probe(marks, labels, patients, **OPTIONS).value < 0.7


def test_a_distance():
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert a_distance(labels, np.array([-1, -1, -1, -1, 1, 1.0])) == 2
    assert a_distance(labels, np.array([-1, -1, 1, 1, 1, 1.0])) == 1  # errors 1/2 and 0
    assert a_distance(labels, np.full(6, 1.0)) == 0
    assert np.isnan(a_distance(labels, np.full(6, np.nan)))


def test_weights_balance_labels_in_every_site():
    labels, sites = np.array([1, 1, 1, 0, 0, 1]), np.array(list("aaaabb"))
    weights = label_balanced(labels, sites)
    sums = pd.Series(weights).groupby([sites, labels]).sum()
    assert sums.to_numpy() == pytest.approx(sums.iloc[0])
    assert weights.mean() == pytest.approx(1)


def test_hospitals_of_other_prevalence_are_not_named_by_the_label():
    """Two hospitals alike but for prevalence; then one with a mark of its own."""
    rng = np.random.default_rng(2)
    patients = np.array([f"p{index}" for index in range(400)])
    sites = np.repeat(["a", "b"], 200)
    labels = (rng.random(400) < np.where(sites == "a", 0.8, 0.2)).astype(int)
    features = rng.normal(size=(400, 4))
    features[:, 0] += 2 * labels
    rows = {(row["kind"], row["site"]): row for row in site_probes(features, labels, sites, patients, **OPTIONS)}
    assert rows["site", "a"]["auroc"] < 0.6
    naive = probe(features, (sites == "a").astype(int), patients, **OPTIONS)
    assert naive.value > 0.7
    assert min(rows["label_within_site", site]["auroc"] for site in "ab") > 0.8
    features[:, 1] += 3 * (sites == "a")
    rows = {(row["kind"], row["site"]): row for row in site_probes(features, labels, sites, patients, **OPTIONS)}
    assert rows["site", "b"]["auroc"] > 0.9
    # A feature that only tells the hospitals apart says nothing of the label inside one.
    only = 3 * (sites == "a")[:, None] + rng.normal(size=(400, 1))
    rows = {(row["kind"], row["site"]): row for row in site_probes(only, labels, sites, patients, **OPTIONS)}
    assert max(rows["label_within_site", site]["auroc"] for site in "ab") < 0.62


def test_one_site_one_class_or_few_patients_say_why():
    rng = np.random.default_rng(0)
    features, labels, patients = cohort(rng)
    rows = site_probes(features, labels, np.full(120, "a"), patients, **OPTIONS)
    assert {row["kind"]: row["note"] for row in rows}["site"] == "needs two source sites with both labels"
    sites = np.where(labels == 1, "a", "b")
    notes = [row["note"] for row in site_probes(features, labels, sites, patients, **OPTIONS)]
    assert "one class only" in notes
    few = probe(features[:6], labels[:6], patients[:6], **OPTIONS)
    assert np.isnan(few.value)
    assert few.note == "needs 5 patients of each class; there are 1 with and 2 without"
    assert auroc_of(labels[:0], features[:0, 0], patients[:0], **OPTIONS).note == "no labels"


def test_shortcuts_are_found_one_by_one():
    rng = np.random.default_rng(3)
    labels, patients = np.arange(100) % 2, np.array([f"p{index}" for index in range(100)])
    images = rng.integers(0, 60, (100, 64, 64)).astype(np.uint8)
    images[labels == 1, 2:7, 57:62] = 255  # a marker, in a corner and off the border
    cues = {**border_cues(images), "constant": np.ones((100, 3)), "noise": rng.normal(size=(100, 2))}
    rows = {row["cue"]: row for row in shortcut_probes(cues, labels, patients, **OPTIONS)}
    assert rows["corners"]["auroc"] == 1.0
    assert rows["border"]["auroc"] < 0.75
    assert rows["noise"]["auroc"] < 0.75
    assert np.isnan(rows["constant"]["auroc"])
    assert rows["constant"]["note"] == "the cue is the same on all images"


def test_border_cues_look_at_the_border_alone():
    image = np.zeros((1, 64, 64), np.uint8)
    before = border_cues(image)
    image[:, 8:56, 8:56] = 200
    after = border_cues(image)
    assert all((after[cue] == before[cue]).all() for cue in before)
    image[:, 0, 30] = 64
    top = border_cues(image)
    assert top["border"][0, :3] == pytest.approx([64 / 128, np.sqrt(64**2 * 127) / 128, 64])
    assert (top["corners"] == after["corners"]).all()


def test_header_cues():
    assert {name for names in FIELDS.values() for name in names} <= {*Instances.columns, "size_bytes"}
    base = dict.fromkeys(("site", "source_id", "patient_id", "study_id", "source_hmac"), "x")
    rows = pd.DataFrame(
        [{**base, "image_id": f"i{index}", "frame": 0, "rows": 10 + index, "columns": 5} for index in range(4)]
    )
    rows = rows.reindex(columns=[*Instances.columns, "size_bytes"])
    rows["kvp"] = [80.0, None, 120.0, None]
    rows["manufacturer"] = pd.array(["A", "B", None, "A"], dtype="string")
    rows["lossy"] = pd.array([True, False, None, True], dtype="boolean")
    cues = header_cues(rows)
    assert np.isfinite(cues["acquisition"]).all()
    columns = {tuple(column) for column in cues["acquisition"].T}
    assert {(80, 100, 120, 100), (0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0)} <= columns
    assert {(10, 11, 12, 13), (1, 0, 0, 1)} <= {tuple(column) for column in cues["file"].T}
