"""A baseline without pixels: what age, sex, view and scanner alone say of a finding.

What a network finds beyond it, the images added. Where it is as good at home and fails elsewhere, the label can be
read off how the image came about (Badgeley et al., npj Digit Med 2019, 2:31; Zech et al., PLoS Med 2018, 15:e1002683).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from scipy.linalg import LinAlgWarning
from scipy.special import expit, logit
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pipeline.errors import PipelineError
from pipeline.params import StrictParams
from pipeline.tables.baseline import BaselineColumns
from pipeline.tables.contract import make_table, plain_text

NUMBERS = ("age_years", "kvp")
CATEGORIES = ("sex", "view_position", "body_part", "manufacturer", "model")
TESTED = ("id_val", "id_test", "ood_test")
_NULL = ""  # no term of ingest's vocabularies is empty

Doubles = NDArray[np.float64]


class BaselineParams(StrictParams):
    """Section ``baseline``: penalties to choose from on id_val, as scikit-learn's C (inverse strength)."""

    inverse_l2: list[PositiveFloat] = Field(min_length=1)


@dataclass(frozen=True)
class Model:
    """A fitted baseline: ``design`` makes (n, d) float64 of facts, ``weight`` (d,) and ``bias`` a logit of that."""

    design: Any
    weight: Doubles
    bias: float

    def logits(self, facts: pd.DataFrame) -> Doubles:
        """Logits (n,) of the rows of ``facts``."""
        # Not by BLAS, which rounds a row by its place: equal facts must tie, or AUROC counts the noise.
        return np.asarray((self.design.transform(facts) * self.weight).sum(axis=1) + self.bias, dtype=np.float64)


@dataclass(frozen=True)
class WithoutPixels:
    """All findings' baselines.

    Attributes:
        logits: image_id, patient_id, study_id, site, split, finding, logit (float64) of the images in ``TESTED``.
        columns: ``tables.baseline.BaselineColumns``.
        refused: finding to the reason why it has no logits.
    """

    logits: pd.DataFrame
    columns: pd.DataFrame
    refused: dict[str, str]


def without_pixels(
    instances: pd.DataFrame, labels: pd.DataFrame, splits: pd.DataFrame, params: BaselineParams
) -> WithoutPixels:
    """Fit each finding on the images in train, and apply it to those in ``TESTED``.

    Args:
        instances: ``tables.files.Instances`` of all sites.
        labels: ``tables.labels.Labels``; of these, the ones of images in train and id_val are looked at.
        splits: ``tables.images.Splits``.
        params: the section.

    Raises:
        PipelineError: an image of ``splits`` is not in ``instances``, or no fit converged.
    """
    splits = plain_text(splits).sort_values("image_id", ignore_index=True)
    known = facts_of(instances)
    if missing := int((~splits["image_id"].isin(known.index)).sum()):
        raise PipelineError(
            f"every image of the splits must be in ingest's tables; {missing} of {len(splits)} are not. Run `dvc repro`"
        )
    facts = known.loc[splits["image_id"]].reset_index(drop=True)
    tested = splits["split"].isin(TESTED)
    shown = splits.loc[tested, ["image_id", "patient_id", "study_id", "site", "split"]]
    frames, columns, refused = [], [], {}
    for finding, rows in plain_text(labels).groupby("finding", sort=True):
        label = splits["image_id"].map(rows.set_index("image_id")["label"].astype(np.float64))
        train, id_val = ((splits["split"] == side) & label.notna() for side in ("train", "id_val"))
        reason = refusal(label[train], label[id_val])
        notes = why_unused(facts[train])
        for column, note in notes.items():
            used = reason is None and note is None
            columns.append({"finding": finding, "column": column, "used": used, "note": reason or note})
        if reason is not None:
            refused[str(finding)] = reason
            continue
        chosen = [column for column, note in notes.items() if note is None]
        model = fit(facts[train], label[train], facts[id_val], label[id_val], chosen, params.inverse_l2)
        frames.append(shown.assign(finding=finding, logit=model.logits(facts[tested])))
    logits = pd.concat(frames, ignore_index=True) if frames else shown.head(0).assign(finding=None, logit=np.nan)
    return WithoutPixels(logits, make_table(BaselineColumns, columns), refused)


def facts_of(instances: pd.DataFrame) -> pd.DataFrame:
    """By image_id: ``NUMBERS`` as float64 with NaN, ``CATEGORIES`` as text in which null is a level of its own."""
    rows = instances.set_index("image_id")
    numbers = {name: rows[name].astype("Float64").to_numpy(np.float64, na_value=np.nan) for name in NUMBERS}
    terms = {name: rows[name].astype(object).fillna(_NULL) for name in CATEGORIES}
    return pd.DataFrame(numbers | terms, index=rows.index.astype(object))


def refusal(train: pd.Series, id_val: pd.Series) -> str | None:
    """Why a finding with these labels (0 or 1) cannot be fitted; None where it can."""
    positive, negative = int((train == 1).sum()), int((train == 0).sum())
    if not positive or not negative:
        return f"training needs both classes: {positive} positive and {negative} negative images"
    return None if len(id_val) else "the penalty is chosen on id_val, which has no annotated image"


def why_unused(facts: pd.DataFrame) -> dict[str, str | None]:
    """Per column why it can say nothing of these images; None where it can: it varies, or is null on some."""
    notes: dict[str, str | None] = {}
    for name in (*NUMBERS, *CATEGORIES):
        null = facts[name].isna() | facts[name].eq(_NULL)
        constant = len(facts[name].unique()) == 1
        notes[name] = "all null in training" if null.all() else "constant in training" if constant else None
    return notes


def fit(
    facts: pd.DataFrame, labels: pd.Series, id_val_facts: pd.DataFrame, id_val_labels: pd.Series,
    columns: Sequence[str], inverse_l2: Sequence[float],
) -> Model:  # fmt: skip
    """Logistic regression at each penalty; the one of least log loss on id_val, the first of equals.

    Numbers: the median where null, an indicator of that, standardised. Categories: one column a level of training;
    another level adds nothing, which is the unweighted mean of the known ones, since the penalty makes those sum to 0.

    Args:
        facts: of the training images, as ``facts_of``.
        labels: theirs, 0 or 1, both present.
        id_val_facts: of the images that select.
        id_val_labels: theirs, at least one.
        columns: those to use; with none the prediction is the training prevalence.
        inverse_l2: values of C to try.

    Raises:
        PipelineError: no fit converged.
    """
    number = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    category = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    design = ColumnTransformer(
        [
            ("numbers", number, [name for name in NUMBERS if name in columns]),
            ("categories", category, [name for name in CATEGORIES if name in columns]),
        ]
    )
    inputs = design.fit_transform(facts)
    if not columns:
        return Model(design, np.empty(0), float(logit(labels.mean())))
    candidates = []
    for strength in inverse_l2:
        found = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            warnings.simplefilter("error", LinAlgWarning)
            try:
                found.fit(inputs, labels)
            except (ConvergenceWarning, LinAlgWarning):
                continue  # a half-fitted model is no candidate
        model = Model(design, found.coef_[0], float(found.intercept_[0]))
        loss = float(log_loss(id_val_labels, expit(model.logits(id_val_facts)), labels=[0.0, 1.0]))
        candidates.append((loss, model))
    if not candidates:
        raise PipelineError(f"baseline: no fit converged; try smaller baseline.inverse_l2, not {list(inverse_l2)}")
    return min(candidates, key=lambda candidate: candidate[0])[1]
