"""The joint stage: invariants over all sites, and what it refuses."""

import pytest
from stages.study import NAME, picture

from pipeline.errors import PipelineError
from pipeline.tables import Exclusions, Flow, Images, Instances, Leakage, Manifest, Splits, read_table, read_tables

SITES = ("north", "east")


@pytest.fixture
def prepared(study):
    study.params["sites"]["east"]["issuer"] = "north"  # they share patient numbers
    study.fill(24)
    for patient in range(100, 140):
        study.put("east", f"{patient}", picture("east", patient))
    cells = {f"{NAME}_{patient:02d}.dcm": patient % 2 for patient in range(24)}
    study.label("east", cells | {str(patient): patient % 2 for patient in range(100, 138)})  # two have no row
    study.inventory()
    for site in SITES:
        study.ingest(site)
        study.labels(site)
        study.preprocess(site)
    return study


def test_invariants(prepared):
    out = prepared.split()
    splits, exclusions = read_table(Splits, out / "splits.parquet"), read_table(Exclusions, out / "exclusions.parquet")
    folder = prepared.folder
    instances = read_tables(Instances, [folder / "ingest" / site / "instances.parquet" for site in SITES])
    assert (splits.groupby("patient_id")["split"].nunique() == 1).all()
    known = splits.merge(instances, on=["image_id", "patient_id", "site"], validate="one_to_one")
    assert len(known) == len(splits)
    for site in SITES:
        images = read_table(Images, folder / "images" / site / "images.parquet")
        assert set(splits.loc[splits["site"] == site, "image_id"]) <= set(images["image_id"])
        manifest = set(read_table(Manifest, folder / f"manifests/{site}.parquet")["source_id"])
        used = set(known.loc[known["site"] == site, "source_id"])
        gone = set(exclusions.loc[exclusions["site"] == site, "source_id"])
        assert used | gone == manifest
        assert not used & gone
    east = exclusions[exclusions["site"] == "east"]
    assert (east["reason"] == "patient_in_source").sum() == 24
    unlabelled = 40 - (splits["site"] == "east").sum()
    assert (east["reason"] == "missing_label").sum() == unlabelled <= 2
    flow = read_table(Flow, out / "flow.parquet")
    end = flow[(flow["stage"] == "split") & (flow["kind"] == "remaining")].set_index("site")
    assert end.loc["north", "num_images"] == 24
    leaks = read_table(Leakage, out / "leakage.parquet")
    assert (leaks.loc[leaks["must_be_zero"], "count"] == 0).all()


def test_gathered_images_are_the_source_sites_own(prepared):
    from pipeline.imaging.store import open_images
    from pipeline.tables import Samples

    prepared.split()
    out = prepared.gather()
    samples = read_table(Samples, out / "samples.parquet")
    index = read_table(Images, prepared.folder / "images/north/images.parquet").set_index("image_id")
    assert set(samples["site"]) == {"north"}
    assert sorted(samples["array_index"]) == list(range(len(samples)))
    gathered, store = open_images(out), open_images(prepared.folder / "images/north")
    for row in samples.to_dict("records"):
        assert (gathered[row["array_index"]] == store[index.loc[row["image_id"], "array_index"]]).all()


def test_joining_a_target_moves_nothing_of_the_source(prepared):
    prepared.split()
    before = {path: data for path, data in prepared.outputs().items() if path.startswith("labels/north")}
    prepared.gather()
    gathered = {path.name: path.read_bytes() for path in (prepared.folder / "gather").iterdir()}
    prepared.params["sites"]["farther"] = prepared.site("farther")
    prepared.params["split"]["target"] = ["east", "farther"]
    prepared.label("farther", {str(n): n % 2 for n in range(6)})
    for patient in range(6):
        prepared.put("farther", str(patient), picture("farther", 500 + patient))
    prepared.inventory()
    for step in (prepared.ingest, prepared.labels, prepared.preprocess):
        step("farther")
    prepared.split()
    prepared.gather()
    assert {path.name: path.read_bytes() for path in (prepared.folder / "gather").iterdir()} == gathered
    assert before


def test_one_class_in_training_is_refused(prepared):
    prepared.label("north", {f"{NAME}_{patient:02d}.dcm": 0 for patient in range(24)})
    prepared.labels("north")
    with pytest.raises(PipelineError, match=r"finding 'opacity': .*\['north'\] have 0 positive and .* in train"):
        prepared.split()


def test_no_label_at_all_is_refused(prepared):
    prepared.label("north", {})
    prepared.labels("north")
    with pytest.raises(PipelineError, match="no labelled image of the source sites"):
        prepared.split()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": ["eest"]}, "split.target: unknown site 'eest'; did you mean 'east'"),
        ({"source": ["east"], "target": ["east"]}, "not both"),
        ({"target": [5]}, "split.target.0: .*string; got 5"),
        ({"id_val_fraction": 1.5}, "split.id_val_fraction: .*less than 1; got 1.5"),
    ],
)
def test_bad_params(study, changes, text):
    study.params["split"] |= changes
    with pytest.raises(PipelineError, match=text):
        study.split()


def test_folders_of_removed_sites_go(prepared):
    (prepared.folder / "labels/old").mkdir()
    prepared.split()
    assert not (prepared.folder / "labels/old").exists()


def test_the_same_image_at_two_sites_is_told(prepared):
    prepared.put("east", "again", picture("north", 0))
    prepared.inventory()
    prepared.ingest("east")
    prepared.labels("east")
    prepared.preprocess("east")
    with pytest.raises(PipelineError, match="1 images stand at more than one site"):
        prepared.split()
