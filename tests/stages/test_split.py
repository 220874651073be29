"""The joint stage: invariants over all sites, and what it refuses."""

from io import BytesIO

import pytest
from pydicom import dcmread
from stages.study import NAME, SECRETS, picture

from pipeline.errors import PipelineError
from pipeline.key import PUBLIC_KEY, fingerprint
from pipeline.ledger import read_ledger
from pipeline.tables.contract import read_table, read_tables
from pipeline.tables.files import Exclusions, Instances, Manifest
from pipeline.tables.images import Duplicates, Flow, Images, Leakage, Splits

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
    from pipeline.imaging.store import Store
    from pipeline.tables.training import Samples

    prepared.split()
    out = prepared.gather()
    samples = read_table(Samples, out / "samples.parquet")
    index = read_table(Images, prepared.folder / "images/north/images.parquet").set_index("image_id")
    assert set(samples["site"]) == {"north"}
    assert sorted(samples["array_index"]) == list(range(len(samples)))
    gathered, store = Store(out), Store(prepared.folder / "images/north")
    for row in samples.to_dict("records"):
        own = store.read([index.loc[row["image_id"], "array_index"]])
        assert (gathered.read([row["array_index"]]) == own).all()


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


def test_the_ledger_is_kept_and_a_second_run_changes_no_byte(prepared):
    prepared.split()
    ledger = (prepared.folder / "splits.csv").read_bytes()
    first = prepared.outputs()
    assert "0 patients known, 64 new; commit it" in prepared.told
    prepared.split()
    assert "64 patients known, 0 new" in prepared.told
    assert (prepared.folder / "splits.csv").read_bytes() == ledger
    assert prepared.outputs() == first
    for secret in SECRETS:
        assert secret.encode() not in ledger


def test_a_swap_of_roles_makes_no_tested_patient_train(prepared):
    tests = {"id_test", "ood_test"}
    before = read_table(Splits, prepared.split() / "splits.parquet")
    prepared.params["split"] |= {"source": ["east"], "target": ["north"]}
    after = read_table(Splits, prepared.split() / "splits.parquet")
    tested = set(before.loc[before["split"].isin(tests), "patient_id"])
    assert tested
    assert set(after.loc[after["patient_id"].isin(tested), "split"]) <= tests


def test_each_site_in_turn_is_left_out_with_one_ledger(prepared):
    ledgers = []
    for site in SITES:
        prepared.params["split"] = {"seed": 1, "source": list(SITES), "leave_out": site}
        splits = read_table(Splits, prepared.split() / "splits.parquet")
        # All of north's patients are east's too, and serve the source: of north as the target nobody is left.
        assert set(splits.loc[splits["role"] == "target", "site"]) == {site} - {"north"}
        ledgers.append((prepared.folder / "splits.csv").read_bytes())
        (prepared.folder / "splits.csv").unlink()
    assert ledgers[0] == ledgers[1]


def test_a_picture_of_two_patients_stays_on_one_side(prepared):
    """East's 100 is north's 3 under another number; so is north's 50, who joins after north's 3 was given a side."""
    prepared.split()
    sides = read_ledger(prepared.folder / "splits.csv", fingerprint(PUBLIC_KEY)).set_index("patient_id")["side"]
    pixels = dcmread(BytesIO(picture("north", 3))).PixelData
    prepared.put("north", f"{NAME}_50.dcm", picture("north", 50, PixelData=pixels))
    prepared.put("east", "100", picture("east", 100, PixelData=pixels))
    prepared.label("north", {f"{NAME}_{patient:02d}.dcm": patient % 2 for patient in [*range(24), 50]})
    prepared.inventory()
    for site in SITES:
        prepared.ingest(site)
        prepared.labels(site)
        prepared.preprocess(site)
    out = prepared.split()
    pairs = read_table(Duplicates, out / "duplicates.parquet")
    assert len(pairs) == 2  # of three equal images, the first with each other
    assert not pairs["same_patient"].any()
    splits = read_table(Splits, out / "splits.parquet")
    shown = {*pairs["image_id"], *pairs["duplicate_of"]}
    left = splits[splits["image_id"].isin(shown)]
    assert set(left["site"]) == {"north"}
    assert left["split"].nunique() == 1
    exclusions = read_table(Exclusions, out / "exclusions.parquet")
    assert (exclusions["reason"] == "near_duplicate").sum() == 3 - len(left)  # north's too where a side was taken
    leaks = read_table(Leakage, out / "leakage.parquet").set_index("check")
    assert leaks.loc["near_duplicates_across_patients", "count"] == 2
    assert (leaks.loc[leaks["must_be_zero"], "count"] == 0).all()
    again = read_ledger(prepared.folder / "splits.csv", fingerprint(PUBLIC_KEY)).set_index("patient_id")["side"]
    assert again.to_dict().items() >= sides.to_dict().items()


def test_a_refused_run_gives_nobody_a_side(prepared):
    prepared.label("north", {})
    prepared.labels("north")
    with pytest.raises(PipelineError, match="no labelled image"):
        prepared.split()
    assert not (prepared.folder / "splits.csv").exists()


def test_a_ledger_of_another_key_is_refused(prepared):
    (prepared.folder / "splits.csv").write_text("# key 0123456789abcdef\npatient_id,site,stratum,side\n")
    with pytest.raises(PipelineError, match="written under the key 0123456789abcdef"):
        prepared.split()


def test_sites_of_one_collection_need_one_issuer(prepared):
    for site in SITES:
        prepared.params["sites"][site]["origin"] = "tcga"
        prepared.labels(site)
    leaks = read_table(Leakage, prepared.split() / "leakage.parquet").set_index("check")
    assert leaks.loc["overlapping_origins", "count"] == 1
    assert "north and east (tcga)" in leaks.loc["overlapping_origins", "description"]
    del prepared.params["sites"]["east"]["issuer"]
    with pytest.raises(PipelineError, match="'north' and of target site 'east' come from one collection"):
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
