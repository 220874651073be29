"""A study's prediction is its slices', and its label is positive if one slice's is."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.aggregate import to_studies
from pipeline.errors import PipelineError


def predictions(**changes):
    rows = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "finding": "opacity",
            "run": "r",
            "backbone": "x",
            "method": "m",
            "patient_id": ["p", "p", "p", "q"],
            "study_id": ["s", "s", "t", "u"],
            "site": "home",
            "split": "id_test",
            "label": pd.array([0, 1, None, 0], dtype="Int8"),
            "logit": [0.0, 4.0, -1.0, 2.0],
            "probability": 0.5,
        }
    )
    return rows.assign(**changes)


@pytest.mark.parametrize(("how", "logit"), [("mean", 2.0), ("max", 4.0)])
def test_by_hand(how, logit):
    found = to_studies(predictions(), how).set_index("image_id")
    assert found.index.tolist() == ["s", "t", "u"]
    assert found["logit"].tolist() == [logit, -1.0, 2.0]
    np.testing.assert_allclose(found["probability"].astype(float), 1 / (1 + np.exp(-found["logit"].astype(float))))
    assert found["label"].isna().tolist() == [False, True, False]
    assert found["label"].dropna().tolist() == [1, 0]


def test_runs_and_findings_stay_apart():
    both = pd.concat([predictions(), predictions(run="other", logit=[1.0, 1.0, 1.0, 1.0])])
    assert len(to_studies(both, "mean")) == 6


@pytest.mark.parametrize("column", ["patient_id", "site", "split"])
def test_a_study_on_two_sides_is_refused(column):
    wrong = predictions(**{column: ["id_test", "id_val", "id_test", "id_test"]})
    with pytest.raises(PipelineError, match=column):
        to_studies(wrong, "mean")


def test_images_of_no_study_are_refused():
    with pytest.raises(PipelineError, match="no study"):
        to_studies(predictions(study_id=["s", "s", None, "u"]), "mean")
