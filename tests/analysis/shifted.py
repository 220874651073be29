"""Pairs of simulated hospitals with a known shift: embeddings, scores and labels of images in patients."""

import numpy as np
import pandas as pd

from pipeline.analysis.label_shift import Scores
from pipeline.analysis.shift import Embeddings

DIMENSIONS = 6
MODEL = ("opacity", "net", "probe")
# Patients with a label of 1 at home and away, and how far the scanner moves what has nothing to do with the label.
KINDS = {"none": (0.4, 0.0), "label": (0.75, 0.0), "covariate": (0.4, 0.8), "both": (0.75, 0.8)}


def hospital(rng, patients, prevalence, moved=0.0, concept=0.0):
    """Images (N, 6), labels, patient names and a model's logits.

    x | y is Gaussian: the first coordinate carries the label (2 apart), the others do not; half of the variance is
    the patient's. ``moved`` shifts the others, which leaves p(y | x) as it is; the model listens to them a little.
    ``concept`` of the labels are drawn by lot, the images as they were.
    """
    codes = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    labels = (rng.random(patients) < prevalence).astype(np.int64)[codes]
    x = np.sqrt(0.5) * (rng.normal(size=(patients, DIMENSIONS))[codes] + rng.normal(size=(len(codes), DIMENSIONS)))
    x[:, 0] += 2.0 * labels - 1.0
    x[:, 1:] += moved
    logits = 1.5 * x[:, 0] + 0.3 * x[:, 1] - 0.3
    by_lot = rng.random(len(codes)) < concept
    labels = np.where(by_lot, rng.random(len(codes)) < 0.5, labels).astype(np.int64)
    return x, labels, np.array([f"p{code}" for code in codes]), logits


def pair(rng, kind, sizes=(120, 70, 60), concept=0.0, with_labels=False):
    """``embeddings``, ``scores`` and ``labels`` for ``diagnose_site``: source training, source tested, target."""
    prevalence, moved = KINDS[kind]
    x, y, names, _ = hospital(rng, sizes[0], 0.4)
    x_test, y_test, names_test, logits = hospital(rng, sizes[1], 0.4)
    x_target, y_target, names_target, target_logits = hospital(rng, sizes[2], prevalence, moved, concept)
    source = np.concatenate([x, x_test])
    ids = np.array([f"i{index}" for index in range(len(source))])
    patients = np.concatenate([np.char.add("train-", names), np.char.add("test-", names_test)])
    scores = Scores(
        logits, y_test, names_test, target_logits, names_target, y_target.astype(float) if with_labels else None
    )
    embeddings = Embeddings(source, ids, patients, x_target, names_target)
    labels = pd.Series(np.concatenate([y, y_test]), index=ids, dtype="Int8")
    return {"net": embeddings}, {MODEL: scores}, {"opacity": labels}
