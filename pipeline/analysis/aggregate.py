"""From slices to studies: one prediction for all images of a study, where the label is the study's."""

from typing import Literal

import numpy as np
import pandas as pd

from pipeline.errors import PipelineError
from pipeline.tables.contract import make_table
from pipeline.tables.predictions import Predictions

Aggregation = Literal["mean", "max"]


def to_studies(predictions: pd.DataFrame, how: Aggregation) -> pd.DataFrame:
    """One row a run, finding and study, its image_id the study's pseudonym.

    Args:
        predictions: as ``tables.predictions.Predictions``.
        how: "mean" of the logits; or "max", for findings that few slices show (the assumption of multiple-instance
            learning: a study is positive if one of its images is). The label is positive if one image's is, null where
            none is annotated.

    Raises:
        PipelineError: images without a study, or a study on two sides.
    """
    if predictions["study_id"].isna().any():
        raise PipelineError("evaluate.unit is study, but some images are of no study")
    keys = ["run", "finding", "study_id"]
    groups = predictions.groupby(keys, sort=False)
    for column in ("patient_id", "site", "split"):
        if (groups[column].transform("first") != predictions[column]).any():
            raise PipelineError(f"evaluate.unit is study, but a study has images of more than one {column}")
    # Of what all images of a study share the first; then what differs.
    together = groups.first().reset_index()
    together["logit"] = groups["logit"].agg(how).to_numpy(np.float64)
    together["label"] = groups["label"].max().array
    together["probability"] = np.exp(-np.logaddexp(0.0, -together["logit"]))
    together["image_id"] = together["study_id"]
    return make_table(Predictions, together)
