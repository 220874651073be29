"""Logits of two hospitals with known prevalences, calibrated at home up to a slope and an intercept."""

import numpy as np

from pipeline.adaptation.interface import Evidence, Scores


def scores(prevalence, patients, seed, *, slope=1.0, intercept=0.0, home=0.5, images=2, separation=2.0, labelled=True):
    """``images`` a patient; classes N(± separation / 2, 1), of which the logit is separation * x + logit(home)."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.random(patients) < prevalence, images).astype(float)
    x = rng.normal((label - 0.5) * separation, 1.0)
    truth = separation * x + np.log(home / (1 - home))
    names = np.repeat([f"p{seed}-{number:05d}" for number in range(patients)], images)
    return Scores((truth - intercept) / slope, label if labelled else np.full(len(label), np.nan), names)


def evidence(home=0.5, away=0.2, patients=400, seed=0, **changes):
    """A target of unknown labels, and the labels."""
    source = scores(home, patients, 2 * seed, home=home, **changes)
    target = scores(away, patients, 2 * seed + 1, home=home, **changes)
    hidden = Scores(target.logits, np.full(len(target.labels), np.nan), target.patients)
    return Evidence("away", "opacity", source, hidden), target.labels


def log_loss(logits, labels):
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
