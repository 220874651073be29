"""What the diagnosis of domain shift reads and says."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table
from pipeline.tables.images import SOURCE_SPLITS, TARGET_SPLITS

# What a target is compared with; see analysis/shift.py.
HYPOTHESES = ("no_shift", "label_shift_only", "covariate_shift_only", "label_and_covariate_shift")
SHIFT_VERDICTS = ("compatible", "rejected", "undetermined")
PROBE_KINDS = ("domain", "site", "label_within_site", "shortcut", "out_of_distribution")
OUTLYING_SCORES = ("mahalanobis", "energy")


class Embedded(Table):
    """The images of all splits and sites: row ``row`` of the features.npy beside it. No label was read."""

    columns: ClassVar = {
        "image_id": pa.string(),
        "row": pa.int64(),
        "patient_id": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = ("row", "patient_id", "site", "split")
    vocabulary: ClassVar = {"split": frozenset(SOURCE_SPLITS + TARGET_SPLITS)}


class Diagnoses(Table):
    """Whether a target site's data is compatible with a hypothesis, as seen by one finding, backbone and method.

    ``statistic`` and ``p_value`` (Holm over the site's tests of the hypothesis) are of ``test``, the one with the
    smallest p-value; null where nothing can test it (``note``). ``estimate`` with 95 % limits: label_shift_only, the
    target's prevalence by black-box shift estimation, and beside it ``likelihood``, the same by maximum likelihood;
    with target labels, among images of one propensity, covariate_shift_only, the label's log odds at the mean score
    less the source's, and label_and_covariate_shift, their slope on the logit less the source's. ``num_patients``: the
    target's. ``finding`` and ``method`` are "" where there are no predictions for the site.
    """

    columns: ClassVar = {
        "finding": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "site": pa.string(),
        "hypothesis": pa.string(),
        "verdict": pa.string(),
        "test": pa.string(),
        "statistic": pa.float64(),
        "p_value": pa.float64(),
        "estimate": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "likelihood": pa.float64(),
        "likelihood_low": pa.float64(),
        "likelihood_high": pa.float64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "backbone", "method", "site", "hypothesis")
    required: ClassVar = ("verdict", "num_patients")
    vocabulary: ClassVar = {"hypothesis": frozenset(HYPOTHESES), "verdict": frozenset(SHIFT_VERDICTS)}


class ShiftTests(Table):
    """Every test behind ``Diagnoses``; a backbone's embeddings are tested once for all ("" in finding and method)."""

    columns: ClassVar = {
        "finding": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "site": pa.string(),
        "hypothesis": pa.string(),
        "test": pa.string(),
        "statistic": pa.float64(),
        "p_value": pa.float64(),
        "p_holm": pa.float64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "backbone", "method", "site", "hypothesis", "test")
    required: ClassVar = ("num_patients",)
    vocabulary: ClassVar = {"hypothesis": frozenset(HYPOTHESES)}


class Probes(Table):
    """AUROC of a question put to features, cues or scores; out of fold by patient, but for out_of_distribution.

    ``kind``: domain, source against target ``site`` (``a_distance``: proxy A-distance, 0 alike to 2 apart); site, a
    source hospital against the other sources, each label weighing the same in every hospital; label_within_site, the
    finding inside one source hospital; shortcut, the finding at home from a ``cue`` alone; out_of_distribution, the
    score ``cue`` of id_test against a target ``site``. What does not apply is "".
    """

    columns: ClassVar = {
        "kind": pa.string(),
        "finding": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "site": pa.string(),
        "cue": pa.string(),
        "auroc": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "a_distance": pa.float64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("kind", "finding", "backbone", "method", "site", "cue")
    required: ClassVar = ("num_images", "num_patients")
    vocabulary: ClassVar = {"kind": frozenset(PROBE_KINDS)}


class Outlyingness(Table):
    """How far an image lies from the source's training images, higher is farther; see analysis/outlying.py.

    mahalanobis is a backbone's ("" in finding and method); energy is of a finding, backbone and method.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "site": pa.string(),
        "split": pa.string(),
        "finding": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "score": pa.string(),
        "value": pa.float64(),
    }
    key: ClassVar = ("image_id", "finding", "backbone", "method", "score")
    required: ClassVar = ("site", "split", "value")
    vocabulary: ClassVar = {"score": frozenset(OUTLYING_SCORES)}


class Abstention(Table):
    """A model on the share ``coverage`` of a site's test images that lie nearest by ``score``.

    No label decides which images stay; labels only judge. ``sensitivity`` is at the threshold that has the wanted
    specificity on id_val. Null where undefined (``note``).
    """

    columns: ClassVar = {
        "finding": pa.string(),
        "backbone": pa.string(),
        "method": pa.string(),
        "site": pa.string(),
        "score": pa.string(),
        "coverage": pa.float64(),
        "auroc": pa.float64(),
        "ci_low": pa.float64(),
        "ci_high": pa.float64(),
        "sensitivity": pa.float64(),
        "num_images": pa.int64(),
        "num_patients": pa.int64(),
        "note": pa.string(),
    }
    key: ClassVar = ("finding", "backbone", "method", "site", "score", "coverage")
    required: ClassVar = ("num_images", "num_patients")
    vocabulary: ClassVar = {"score": frozenset(OUTLYING_SCORES)}
