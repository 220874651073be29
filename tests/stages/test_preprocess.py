"""Arrays and their index agree, a bad file is one exclusion, and an unexpected error names nobody."""

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from minimal import content, dataset
from pydicom.encaps import encapsulate
from stages.study import NAME, SECRETS, picture

from pipeline.datasets.common import Source
from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.imaging import store as store_module
from pipeline.imaging.intensity import Percentiles, Window, ZScore
from pipeline.imaging.store import Store
from pipeline.params import ParamsError, parse
from pipeline.stages import preprocess
from pipeline.tables.contract import read_table
from pipeline.tables.files import Exclusions, Instances
from pipeline.tables.images import Images

RLE = "1.2.840.10008.1.2.5"
# Two segments as the header asks for, of too few bytes: only decoding shows it.
UNDECODABLE = encapsulate([struct.pack("<16L", 2, 64, 66, *[0] * 13) + b"\0a\0b"])


@pytest.fixture(autouse=True)
def decoded(monkeypatch, request):
    """The files that are decoded; in this process, since starting another takes seconds."""
    found = []
    if "isolated" in request.keywords:
        return found

    def here(function, tasks, **_):
        for one in tasks:
            found.append(one.source_id)
            yield function(one)

    monkeypatch.setattr(preprocess, "ordered_map", here)
    return found


def single(study):
    study.params["sites"] = {"north": study.site("north")}
    return study


def test_index_array_and_instances_agree(study):
    single(study)
    for patient in range(5):
        study.put("north", f"{NAME}{patient}", picture("north", patient))
    bad = dataset(syntax=RLE, PixelData=UNDECODABLE, SOPInstanceUID="2.25.5")
    study.put("north", "bad", content(bad))
    study.inventory()
    study.ingest("north")
    out = study.preprocess("north")
    images, exclusions = read_table(Images, out / "images.parquet"), read_table(Exclusions, out / "exclusions.parquet")
    instances = read_table(Instances, study.folder / "ingest/north/instances.parquet")
    assert sorted(images["array_index"]) == list(range(5))
    assert set(images["image_id"]) <= set(instances["image_id"])
    assert sorted(exclusions["reason"]) == ["decode_error"]
    used = set(instances.loc[instances["image_id"].isin(images["image_id"]), "source_id"])
    assert used | set(exclusions["source_id"]) == set(instances["source_id"])
    store = Store(out)
    assert store.shape == (5, 1, 16, 16)
    for row in images.to_dict("records"):
        assert row["pixels_sha256"] == hashlib.sha256(store.read([row["array_index"]]).tobytes()).hexdigest()
        assert (row["resized_rows"], row["pad_top"]) == (13, 1)


def test_spacing_reaches_the_geometry(study):
    single(study)
    study.put("north", "a", content(dataset(np.ones((16, 16), np.uint16), PixelSpacing=[1, 0.5])))
    study.inventory()
    study.ingest("north")
    (row,) = read_table(Images, study.preprocess("north") / "images.parquet").to_dict("records")
    assert (row["resized_rows"], row["resized_columns"], row["pad_left"]) == (16, 8, 4)


def test_a_file_is_used_whole_or_not_at_all(tmp_path, monkeypatch):
    made = dataset(NumberOfFrames=2)
    made.PixelData = made.PixelData * 2
    (tmp_path / "two").write_bytes(content(made))
    both = task(tmp_path / "two", frames=2)
    assert [row["image_id"] for row in preprocess.make_images(both).rows] == ["i0", "i1"]
    real = preprocess.load_adapter("dicom_folder").read_images

    def read_images(data, frames, policy):
        yield from real(data, frames[:1], policy)
        raise preprocess.Refusal("decode_error")

    monkeypatch.setattr("pipeline.datasets.dicom_folder.read_images", read_images)
    made = preprocess.make_images(both)
    assert made.refusal == ("rejected", "decode_error", "")
    assert made.rows == made.planes == []


def test_nothing_decodable(study):
    single(study)
    study.put("north", "bad", content(dataset(syntax=RLE, PixelData=UNDECODABLE)))
    study.inventory()
    study.ingest("north")
    with pytest.raises(PipelineError, match=r"site north: none of 1 files can be used: \{'decode_error': 1\}"):
        study.preprocess("north")


def task(path, frames=1, **params):
    wanted = tuple(preprocess.Frame(f"i{number}", number, 1.0, 1.0, False, None) for number in range(frames))
    chosen = parse(preprocess.PreprocessParams, {"size_px": 16, "voi": "header", **params}, "preprocess")
    return preprocess.Task("dicom_folder", "a" * 32, Source(path.name, path), IngestParams(), wanted, chosen, "s")


def test_unexpected_error_costs_its_file_and_quotes_nothing(tmp_path, monkeypatch):
    path = tmp_path / f"{NAME}.dcm"
    path.write_bytes(picture("north", 1))

    def broken(*arguments):
        raise ZeroDivisionError(f"{NAME}")

    monkeypatch.setattr("pipeline.datasets.dicom_folder.read_images", broken)
    made = preprocess.make_images(task(path))
    assert made.refusal[:2] == ("defect", "defect")
    assert made.refusal[2].startswith("ZeroDivisionError at test_preprocess.py:")
    assert not any(secret in made.refusal[2] for secret in SECRETS)


def test_a_file_that_went_is_unreadable():
    made = preprocess.make_images(task(Path("/nowhere") / NAME))
    assert made.refusal[:2] == ("rejected", "unreadable")
    assert NAME not in made.refusal[2]


def test_a_dead_decoder_costs_its_file():
    made = preprocess.decoder_died(task(Path("x")))
    assert made.refusal[:2] == ("rejected", "decode_error")


def test_archive_changed_since_ingest(study):
    single(study)
    for name in "ab":
        study.put("north", name, picture("north", ord(name)))
    study.inventory()
    study.ingest("north")
    (study.folder / "raw/north/a").unlink()
    with pytest.raises(PipelineError, match="changed since ingest"):
        study.preprocess("north")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"size_px": 8, "voi": "header"}, "preprocess.size_px: .*greater than or equal to 16; got 8"),
        ({"size_px": 32.5, "voi": "header"}, "preprocess.size_px"),
        ({"size_px": 32, "voi": "lungs"}, "preprocess.voi"),
        ({"size_px": 32, "voi": {"center": 1, "width": 0}}, "preprocess.voi.*width.*greater than or equal to 1"),
        ({"size_px": 32}, "preprocess.voi: required, but missing"),
        ({"size_px": 32, "voi": ["lung", "bone"]}, "one, or three for the three channels; got 2"),
        ({"size_px": 32, "voi": ["lung", "bone", "brain"], "neighbours": 3}, "not both"),
        ({"size_px": 32, "voi": "header", "neighbours": 2}, "neighbours must be odd.*got 2"),
        ({"size_px": 32, "voi": "header", "spacing_mm": 0}, "preprocess.spacing_mm: .*greater than 0; got 0"),
        ({"size_px": 32, "voi": {"percentiles": [99, 1]}}, "percentiles must be two of 0 to 100, the lower first"),
        ({"size_px": 32, "voi": {"z_score": 0}}, "z_score"),
        ({"size_px": 32, "voi": "header", "bits": 12}, "preprocess.bits"),
    ],
)
def test_bad_params(raw, text):
    with pytest.raises(ParamsError, match=text):
        parse(preprocess.PreprocessParams, raw, "preprocess")


def test_rules():
    def rules(voi):
        return parse(preprocess.PreprocessParams, {"size_px": 32, "voi": voi}, "preprocess").rules

    assert rules({"center": 1, "width": 9}) == (Window(1.0, 9.0),)
    assert rules("header") == (None,)
    assert rules(["lung", {"center": 1, "width": 9}, {"percentiles": [1, 99]}]) == (
        Window(-600, 1500), Window(1.0, 9.0), Percentiles(1, 99)
    )  # fmt: skip
    assert rules({"z_score": 2.5}) == (ZScore(2.5),)


# --- what the params make of a picture -------------------------------------------------------------------


def made_of(study, params, **files):
    """Images and exclusions of one site with these files, by name, and the store."""
    single(study).params["preprocess"] = {"size_px": 16, "voi": "header", **params}
    for name, dicom in files.items():
        study.put("north", name, content(dicom))
    study.inventory()
    study.ingest("north")
    out = study.preprocess("north")
    return read_table(Images, out / "images.parquet"), read_table(Exclusions, out / "exclusions.parquet"), Store(out)


def picture_of(pixels, number=1, **elements):
    return dataset(pixels, SOPInstanceUID=f"2.25.77{number}", **elements)


CORNER = np.zeros((16, 16), np.uint16)
CORNER[:4, 12:] = 4095  # first rows, last columns


@pytest.mark.parametrize(
    ("orientation", "rows", "columns"),
    [
        ("L\\F", slice(0, 4), slice(12, 16)),  # as shown
        ("R\\F", slice(0, 4), slice(0, 4)),  # stored as seen from behind: the corner is at the right hand
        ("L\\H", slice(12, 16), slice(12, 16)),  # upside down
        ("R\\H", slice(12, 16), slice(0, 4)),
        ("F\\L", slice(12, 16), slice(0, 4)),  # lying: further along the row is further down
        ("", slice(0, 4), slice(12, 16)),  # not known
    ],
)
def test_laterality_of_a_radiograph(study, orientation, rows, columns):
    (index, _, store) = made_of(study, {}, a=picture_of(CORNER, PatientOrientation=orientation))
    lit = store.read([0])[0, 0] > 127
    assert lit[rows, columns].all()
    assert lit.sum() == 16
    assert index.loc[0, ["transposed", "flipped_rows", "flipped_columns"]].any() == (orientation not in ("", "L\\F"))


@pytest.mark.parametrize(
    ("cosines", "flips"),
    [
        ([1, 0, 0, 0, 1, 0], (False, False)),
        ([-1, 0, 0, 0, -1, 0], (True, True)),
        ([1, 0, 0, 0, -1, 0], (True, False)),
    ],
)
def test_laterality_of_a_slice(study, cosines, flips):
    slices = picture_of(CORNER, Modality="CT", ImageOrientationPatient=cosines, ImagePositionPatient=[0, 0, 0])
    index, _, store = made_of(study, {}, a=slices)
    assert (index.loc[0, "flipped_rows"], index.loc[0, "flipped_columns"]) == flips
    expected = CORNER[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1] > 0
    np.testing.assert_array_equal(store.read([0])[0, 0] > 127, expected)


@pytest.mark.parametrize("params", [{"orientation": "as_stored"}, {}])
def test_no_turn_where_none_is_asked_for_or_of_mammograms(study, params):
    modality = "DX" if params else "MG"
    mirrored = picture_of(CORNER, PatientOrientation="R\\F", Modality=modality)
    index, _, store = made_of(study, params, a=mirrored)
    assert not index.loc[0, ["transposed", "flipped_rows", "flipped_columns"]].any()
    np.testing.assert_array_equal(store.read([0])[0, 0] > 127, CORNER > 0)


def test_monochrome1_twins(study):
    values = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    one = picture_of(values, 1, WindowCenter=2048, WindowWidth=4096)
    other = picture_of(4095 - values, 2, WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation="MONOCHROME1")
    index, _, store = made_of(study, {}, a=one, b=other)
    assert sorted(index["inverted"]) == [False, True]
    pair = store.read([0, 1]).reshape(2, -1)
    assert np.corrcoef(pair)[0, 1] > 0.999
    assert np.abs(pair[0].astype(int) - pair[1]).max() <= 1


def test_three_windows_are_three_channels(study):
    values = np.full((16, 16), 1024 + 40, np.uint16)
    ct = picture_of(values, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    index, _, store = made_of(study, {"voi": ["lung", "soft_tissue", "bone"]}, a=ct)
    assert store.shape == (1, 3, 16, 16)
    # By hand from PS3.3 C.11.2.1.2.1: ((40 - (c - 0.5)) / (w - 1) + 0.5) x 255
    expected = [
        min(255, round(((40 - (c - 0.5)) / (w - 1) + 0.5) * 255)) for c, w in ((-600, 1500), (40, 400), (400, 1800))
    ]
    assert store.read([0])[0, :, 5, 5].tolist() == expected
    assert index.loc[0, "voi"] == "window_linear+window_linear+window_linear"
    assert pd.isna(index.loc[0, "window_center"])


def test_sixteen_bits(study):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    _, _, store = made_of(study, {"bits": 16}, a=picture_of(values, WindowCenter=2048, WindowWidth=4096))
    np.testing.assert_array_equal(store.read([0])[0, 0], np.rint(values / 4095 * 65535).astype(np.uint16))


def test_millimetres(study):
    white = {"WindowCenter": 100, "WindowWidth": 50}
    files = {
        "patient": picture_of(np.full((20, 20), 4095, np.uint16), 1, PixelSpacing=[0.4, 0.4], **white),
        "detector": picture_of(np.full((20, 20), 4095, np.uint16), 2, ImagerPixelSpacing=[0.4, 0.4], **white),
        "tiny": picture_of(np.full((20, 20), 4095, np.uint16), 3, PixelSpacing=[9e5, 9e5]),
    }
    index, exclusions, store = made_of(study, {"spacing_mm": 1.0}, **files)
    assert index[["resized_rows", "pad_top", "spacing_mm"]].values.tolist() == [[8, 4, 1.0]]
    assert (store.read([0]) > 0).sum() == 64
    assert exclusions["outcome"].tolist() == ["quarantined"] * 2
    assert exclusions["reason"].tolist() == ["invalid_spacing"] * 2
    assert sorted(exclusions["detail"]) == [
        "no pixel spacing, which preprocess.spacing_mm needs",
        "resampled to preprocess.spacing_mm it would be too large",
    ]
    study.params["preprocess"]["detector_spacing"] = True
    assert len(read_table(Images, study.preprocess("north") / "images.parquet")) == 2


def slices(count, **elements):
    return {
        f"s{number}": picture_of(
            np.full((16, 16), number * 100, np.uint16), number, Modality="CT",
            ImagePositionPatient=[0, 0, 2.0 * number], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1], WindowCenter=2048, WindowWidth=4096, InstanceNumber=count - number, **elements,
        )
        for number in range(count)
    }  # fmt: skip


def test_neighbours_by_position_are_channels(study):
    index, exclusions, store = made_of(study, {"neighbours": 3}, **slices(4))
    assert len(exclusions) == 0
    assert store.shape == (4, 3, 16, 16)
    grey = [round(number * 100 / 4095 * 255) for number in range(4)]
    found = {tuple(row) for row in store.read(np.arange(4))[:, :, 0, 0].tolist()}
    assert found == {(grey[max(n - 1, 0)], grey[n], grey[min(n + 1, 3)]) for n in range(4)}
    assert sum(shard["planes"] for shard in store_module.read_summary(study.folder / "images/north")["shards"]) == 4
    for row in index.to_dict("records"):
        own = store.read([row["array_index"]])[0, 1]
        assert row["pixels_sha256"] == hashlib.sha256(own.tobytes()).hexdigest()


def test_a_series_that_cannot_be_stacked_is_left_out_and_the_rest_goes_on(study):
    single_slice = picture_of(CORNER, 99, SeriesInstanceUID="2.25.5", Modality="CT")
    bad = slices(3)
    bad["s1"] = dataset(
        syntax=RLE, PixelData=UNDECODABLE, SOPInstanceUID="2.25.771", ImagePositionPatient=[0, 0, 2.0], Modality="CT",
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1], Rows=16, Columns=16,
    )  # fmt: skip
    good = slices(3, SeriesInstanceUID="2.25.6")
    for number, one in enumerate(good.values()):
        one.SOPInstanceUID = f"2.25.88{number}"
    files = {**bad, **{f"good{name}": one for name, one in good.items()}, "alone": single_slice}
    index, exclusions, _ = made_of(study, {"neighbours": 3}, **files)
    assert len(index) == 3
    assert sorted(index["array_index"]) == [0, 1, 2]
    assert sorted(exclusions["reason"]) == ["decode_error", *["inconsistent_geometry"] * 3]


# --- what is kept between runs ---------------------------------------------------------------------------


@pytest.fixture
def kept(study, monkeypatch, decoded):
    """A site of twelve files in eight shards, made once; and the files that are decoded from here on."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 2 * 16 * 16)
    for patient in range(12):
        study.put("north", f"{NAME}{patient}", picture("north", patient))
    single(study).inventory()
    study.ingest("north")
    study.preprocess("north")
    decoded.clear()
    study.decoded = decoded
    return study


def outputs(study):
    return {name: data for name, data in study.outputs().items() if name.startswith("images")}


def fresh(study):
    """The outputs of a run that knows nothing of earlier ones."""
    shutil.rmtree(study.folder / ".checkpoints/preprocess")
    shutil.rmtree(study.folder / "images")
    study.preprocess("north")
    return outputs(study)


def test_nothing_changed_nothing_is_decoded(kept):
    before = outputs(kept)
    assert len([name for name in before if "planes-" in name]) > 3
    shutil.rmtree(kept.folder / "images")  # as DVC does before each run
    kept.preprocess("north")
    assert kept.decoded == []
    assert outputs(kept) == before


def test_a_changed_file_costs_that_file_and_its_shard(kept):
    before = outputs(kept)
    kept.put("north", f"{NAME}3", picture("north", 3, KVP="77", WindowCenter="100", WindowWidth="50"))
    kept.inventory()
    kept.ingest("north")
    kept.preprocess("north")
    assert len(kept.decoded) == 1
    after = outputs(kept)
    assert sum(after[name] != before[name] for name in before if "planes-" in name) == 1
    assert fresh(kept) == after


@pytest.mark.parametrize("change", ["gone", "more", "many more"])
def test_files_that_come_and_go(kept, change):
    if change == "gone":
        for patient in (0, 5):
            (kept.folder / f"raw/north/{NAME}{patient}").unlink()
    else:
        for patient in range(12, 14 if change == "more" else 40):
            kept.put("north", f"{NAME}{patient}", picture("north", patient))
    kept.inventory()
    kept.ingest("north")
    kept.preprocess("north")
    assert len(kept.decoded) == {"gone": 0, "more": 2, "many more": 28}[change]
    after = outputs(kept)
    assert fresh(kept) == after
    (folder,) = (kept.folder / ".checkpoints/preprocess").glob("north-*")
    names = {path.name for path in (kept.folder / "images/north").glob("planes-*")}
    assert {path.name for path in folder.glob("*.npy")} == names


@pytest.mark.parametrize("harm", ["byte", "card", "no card", "cut", "half written"])
def test_what_is_not_whole_is_made_again(kept, harm):
    before = outputs(kept)
    (folder,) = (kept.folder / ".checkpoints/preprocess").glob("north-*")
    shard = max(folder.glob("planes-*.npy"), key=lambda path: path.stat().st_size)
    data = shard.read_bytes()
    shutil.rmtree(kept.folder / "images")  # or the second name would be harmed as well
    card = shard.with_suffix(".json")
    if harm == "byte":
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "cut":
        shard.write_bytes(data[:-1])
    elif harm == "card":
        card.write_text(card.read_text()[:-1])
    elif harm == "no card":  # killed between the two
        card.unlink()
    else:
        shard.rename(shard.with_name(shard.name + ".part"))
    lost = (len(data) - 128) // 256
    kept.preprocess("north")
    assert len(kept.decoded) == lost > 0
    assert outputs(kept) == before
    assert not list(folder.glob("*.part"))


def test_a_shard_of_a_later_run_with_the_card_of_an_earlier_one(kept):
    """Killed between the rename of a shard and that of its card."""
    (folder,) = (kept.folder / ".checkpoints/preprocess").glob("north-*")
    old_cards = {path: path.read_bytes() for path in folder.glob("*.json")}
    kept.put("north", f"{NAME}3", picture("north", 3, WindowCenter="100", WindowWidth="50"))
    kept.inventory()
    kept.ingest("north")
    kept.preprocess("north")
    after = outputs(kept)
    for path, data in old_cards.items():
        path.write_bytes(data)
    kept.decoded.clear()
    kept.preprocess("north")
    assert kept.decoded
    assert outputs(kept) == after


def test_other_params_use_nothing_of_it(kept):
    kept.params["preprocess"]["voi"] = "lung"
    kept.preprocess("north")
    assert len(kept.decoded) == 12
    assert len(list((kept.folder / ".checkpoints/preprocess").glob("north-*"))) == 1


def test_what_may_go_better_is_tried_again(kept, monkeypatch):
    real = preprocess.read_regular

    def fails(source, limit):
        if source.relative.endswith("7"):
            raise PermissionError
        return real(source, limit)

    shutil.rmtree(kept.folder / ".checkpoints/preprocess")
    monkeypatch.setattr(preprocess, "read_regular", fails)
    kept.preprocess("north")
    assert read_table(Exclusions, kept.folder / "images/north/exclusions.parquet")["reason"].tolist() == ["unreadable"]
    monkeypatch.setattr(preprocess, "read_regular", real)
    kept.decoded.clear()
    kept.preprocess("north")
    assert len(kept.decoded) == 1
    assert len(read_table(Images, kept.folder / "images/north/images.parquet")) == 12


def test_outputs_are_second_names_of_what_is_kept(kept):
    shard = next((kept.folder / "images/north").glob("planes-*"))
    assert shard.stat().st_nlink == 2


def test_without_links_they_are_copies(kept, monkeypatch):
    before = outputs(kept)

    def refuses(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuses)
    shutil.rmtree(kept.folder / "images")
    kept.preprocess("north")
    assert outputs(kept) == before


def test_cards_hold_no_identifier(kept):
    for path in (kept.folder / ".checkpoints/preprocess").rglob("*.json"):
        text = path.read_text().lower()
        assert json.loads(text)
        assert not any(secret.lower() in text for secret in SECRETS)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_that_changed_since_ingest_ends_the_run(study, hashed):
    """Its pixels would go under another file's labels, and be kept as that file's."""
    single(study).params["inventory"]["hash"] = hashed
    for patient in range(3):
        study.put("north", f"{NAME}{patient}", picture("north", patient))
    study.inventory()
    study.ingest("north")
    study.put("north", f"{NAME}1", picture("north", 1, WindowCenter="100", WindowWidth="50"))
    os.utime(study.folder / f"raw/north/{NAME}1", ns=(10**18, 10**18))
    with pytest.raises(PipelineError, match=r"1 files are not what ingest read.*commands.inventory"):
        study.preprocess("north")
    study.inventory()
    study.ingest("north")
    assert len(read_table(Images, study.preprocess("north") / "images.parquet")) == 3


def test_one_series_is_turned_one_way_or_not_at_all(study):
    """At 45 degrees the last digit of a cosine decides between two directions."""
    cosines = ([0.70711, -0.70710, 0, 0, 0, -1], [0.70710, -0.70711, 0, 0, 0, -1])
    files = {
        f"s{number}": picture_of(
            CORNER, number, Modality="MR", ImageOrientationPatient=cosines[number % 2], PixelSpacing=[1, 1],
            ImagePositionPatient=[number * 1.0, number * 1.0, 0],
        )
        for number in range(4)
    }  # fmt: skip
    index, exclusions, _ = made_of(study, {}, **files)
    assert len(index) == 4
    assert len(exclusions) == 0
    assert not index[["transposed", "flipped_rows", "flipped_columns"]].to_numpy(bool).any()


def test_a_window_is_not_for_colours(study):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    colour = dataset(
        pixels[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsStored=8,
        PixelData=pixels.tobytes(),
    )  # fmt: skip
    _, _, store = made_of(study, {"voi": "soft_tissue"}, a=colour)
    assert np.unique(store.read([0])).tolist() == [0, 255]


def test_a_file_whose_images_would_fill_the_memory(tmp_path, monkeypatch):
    made = dataset(NumberOfFrames=2)
    made.PixelData = made.PixelData * 2
    (tmp_path / "two").write_bytes(content(made))
    monkeypatch.setattr(preprocess, "_MAX_MADE_BYTES", 2 * 16 * 16 - 1)
    refusal = preprocess.make_images(task(tmp_path / "two", frames=2)).refusal
    assert refusal == ("quarantined", "decompression_bomb", "its images make 512 bytes, allowed 511")
    assert preprocess.make_images(task(tmp_path / "two", frames=1)).refusal is None


def test_no_memory_ends_the_run_and_blames_no_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(picture("north", 1))

    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr("pipeline.datasets.dicom_folder.read_images", full)
    with pytest.raises(PipelineError, match="out of memory"):
        preprocess.make_images(task(tmp_path / "a"))


def test_a_shard_of_nothing_but_refusals_is_remembered(study, decoded, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_BYTES", 16 * 16)
    for number in range(6):
        study.put("north", f"{number}", picture("north", number))
        bad = dataset(syntax=RLE, PixelData=UNDECODABLE, SOPInstanceUID=f"2.25.5{number}")
        study.put("north", f"bad{number}", content(bad))
    single(study).inventory()
    study.ingest("north")
    study.preprocess("north")
    (folder,) = (study.folder / ".checkpoints/preprocess").glob("north-*")
    assert any(np.load(path).shape[0] == 0 for path in folder.glob("*.npy"))
    before = outputs(study)
    decoded.clear()
    study.preprocess("north")
    assert decoded == []
    assert outputs(study) == before


@pytest.mark.isolated
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_same(study, monkeypatch, workers):
    for patient in range(4):
        study.put("north", f"{NAME}{patient}", picture("north", patient))
    study.put("north", "bad", content(dataset(syntax=RLE, PixelData=UNDECODABLE, SOPInstanceUID="2.25.5")))
    single(study).inventory()
    study.ingest("north")
    study.preprocess("north", workers=workers)
    before = outputs(study)
    monkeypatch.setattr(preprocess, "ordered_map", lambda function, tasks, **_: (function(one) for one in tasks))
    assert fresh(study) == before
