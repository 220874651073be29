"""Pairs of simulated hospitals with a known shift: embeddings, scores and labels of images in patients."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import ndtr

from pipeline.analysis.label_shift import Scores
from pipeline.analysis.shift import Embeddings

DIMENSIONS = 6
MODEL = ("opacity", "net", "probe")
HOME = 0.4  # patients with a label of 1 at home
LISTENS = 0.3  # the model's weight on the second coordinate, which has nothing to do with the label


@dataclass(frozen=True)
class Hospital:
    """What is different there.

    x | y is Gaussian: the first coordinate carries the label (2 apart), the others do not; half of the variance is the
    patient's. ``prevalence`` is of patients. ``moved`` shifts the others, which leaves p(y | x) as it is; the model
    listens to the second (``LISTENS``), unless it is ``deaf`` and the third and further ones move alone. ``concept`` of
    the labels are drawn by lot, the images as they were.
    """

    prevalence: float = HOME
    moved: float = 0.0
    concept: float = 0.0
    deaf: bool = False

    @property
    def positives(self) -> float:
        """The label's frequency, those by lot included."""
        return (1 - self.concept) * self.prevalence + self.concept / 2

    @property
    def auroc(self) -> float:
        """What the model attains there: no shift of the images changes it, since the label's signal does not move.

        Logits of the two true classes are normal, 3 apart, of variance 1.5^2 + LISTENS^2; labels by lot mix them.
        """
        apart = float(ndtr(3.0 / np.sqrt(2 * (1.5**2 + LISTENS**2))))
        true = ((1 - self.concept / 2) * self.prevalence) / self.positives  # of those with a label of 1
        also = (self.concept / 2 * self.prevalence) / (1 - self.positives)  # of those with a 0
        return true * (1 - also) * apart + also * (1 - true) * (1 - apart) + (true * also + (1 - true) * (1 - also)) / 2


# How far the scanner moves what has nothing to do with the label.
KINDS = {
    "none": Hospital(),
    "label": Hospital(prevalence=0.75),
    "covariate": Hospital(moved=0.8),
    "both": Hospital(prevalence=0.75, moved=0.8),
}


def images(rng, patients, there):
    """Images (N, 6), labels, patient names and a model's logits."""
    codes = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    labels = (rng.random(patients) < there.prevalence).astype(np.int64)[codes]
    x = np.sqrt(0.5) * (rng.normal(size=(patients, DIMENSIONS))[codes] + rng.normal(size=(len(codes), DIMENSIONS)))
    x[:, 0] += 2.0 * labels - 1.0
    x[:, 2 if there.deaf else 1 :] += there.moved
    logits = 1.5 * x[:, 0] + LISTENS * x[:, 1] - 0.3
    by_lot = rng.random(len(codes)) < there.concept
    labels = np.where(by_lot, rng.random(len(codes)) < 0.5, labels).astype(np.int64)
    return x, labels, np.array([f"p{code}" for code in codes]), logits


def pair(rng, kind, sizes=(120, 70, 60), concept=0.0, with_labels=False):
    """``embeddings``, ``scores`` and ``labels`` for ``diagnose_site``: source training, source tested, target."""
    there = kind if isinstance(kind, Hospital) else KINDS[kind]
    there = replace(there, concept=concept or there.concept)
    x, y, names, _ = images(rng, sizes[0], Hospital())
    x_test, y_test, names_test, logits = images(rng, sizes[1], Hospital())
    x_target, y_target, names_target, target_logits = images(rng, sizes[2], there)
    source = np.concatenate([x, x_test])
    ids = np.array([f"i{index}" for index in range(len(source))])
    target_ids = np.array([f"t{index}" for index in range(len(x_target))])
    patients = np.concatenate([np.char.add("train-", names), np.char.add("test-", names_test)])
    scores = Scores(
        logits, y_test, np.char.add("test-", names_test), target_logits, names_target,
        y_target.astype(float) if with_labels else None, ids[len(x) :], target_ids,
    )  # fmt: skip
    embeddings = Embeddings(source, ids, patients, x_target, names_target, target_ids)
    labels = pd.Series(np.concatenate([y, y_test]), index=ids, dtype="Int8")
    return {"net": embeddings}, {MODEL: scores}, {"opacity": labels}
