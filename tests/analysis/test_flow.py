"""The funnel adds up by hand, and training without both classes is refused with the finding's name."""

import pandas as pd
import pytest

from pipeline.analysis.flow import composition, patient_flow, require_both_classes
from pipeline.errors import PipelineError

INSTANCES = pd.DataFrame(
    [("i1", "s1", "p1"), ("i2", "s1", "p1"), ("i3", "s2", "p2"), ("i4", "s3", "p3"), ("i5", "s4", "p3")],
    columns=["image_id", "source_id", "patient_id"],
).assign(site="north")
EXCLUSIONS = pd.DataFrame(
    [
        ("s9", "ingest", "quarantined", "localizer"),
        ("s2", "preprocess", "rejected", "decode_error"),
        ("s4", "split", "unused", "missing_label"),
    ],
    columns=["source_id", "stage", "outcome", "reason"],
).assign(site="north")
SPLITS = pd.DataFrame(
    [("i1", "p1", "train"), ("i2", "p1", "train"), ("i4", "p3", "id_val")], columns=["image_id", "patient_id", "split"]
).assign(site="north")


def test_by_hand():
    flow = patient_flow({"north": 5}, INSTANCES, EXCLUSIONS, SPLITS)
    counts = ["num_files", "num_images", "num_patients"]
    remaining = flow[flow["kind"] == "remaining"].set_index("stage")[counts]
    assert remaining.loc["inventory", "num_files"] == 5
    assert remaining.loc["ingest"].tolist() == [4, 5, 3]
    assert remaining.loc["preprocess"].tolist() == [3, 4, 2]
    assert remaining.loc["split"].tolist() == [2, 3, 2]
    excluded = flow[flow["kind"] != "remaining"].set_index(["kind", "reason"])[counts]
    assert excluded.loc[("quarantined", "localizer"), "num_files"] == 1
    assert pd.isna(excluded.loc[("quarantined", "localizer"), "num_images"])
    assert excluded.loc[("rejected", "decode_error")].tolist() == [1, 1, 1]
    assert excluded.loc[("unused", "missing_label")].tolist() == [1, 1, 1]


@pytest.mark.parametrize("found", [4, 6])
def test_a_file_too_many_or_too_few_is_a_defect(found):
    with pytest.raises(PipelineError, match="defect: site north"):
        patient_flow({"north": found}, INSTANCES, EXCLUSIONS, SPLITS)


def test_used_and_excluded_is_a_defect():
    both = pd.concat([EXCLUSIONS.iloc[1:], EXCLUSIONS.iloc[:1].assign(source_id="s1")])
    with pytest.raises(PipelineError, match="defect"):
        patient_flow({"north": 4}, INSTANCES, both, SPLITS)


def counts(values):
    labels = pd.DataFrame({"image_id": ["i1", "i2", "i4"], "finding": "opacity", "label": pd.array(values, "Int8")})
    return composition(SPLITS, labels)


def test_composition_by_hand():
    table = counts([1, None, 0]).set_index("split")
    wanted = ["num_images", "num_patients", "num_positive", "num_negative", "num_unknown"]
    assert table.loc["train", wanted].tolist() == [2, 1, 1, 0, 1]
    assert table.loc["id_val", wanted].tolist() == [1, 1, 0, 1, 0]


def test_one_class_is_refused():
    with pytest.raises(PipelineError, match=r"finding 'opacity': .* 2 positive and 0 negative images in train"):
        require_both_classes(counts([1, 1, 0]), ["north"])
    with pytest.raises(PipelineError, match="1 negative images in id_val"):
        require_both_classes(counts([1, 0, 0]), ["north"])
    with pytest.raises(PipelineError, match="no labelled image"):
        require_both_classes(counts([1, 0, 0]), ["south"])
