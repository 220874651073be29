"""ChestX-ray14's layout: views as sites, labels from the list, PNG files that are none."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from minimal import spread

from pipeline.assignment import assign
from pipeline.datasets import chestxray14 as adapter
from pipeline.datasets import image_files
from pipeline.datasets.common import Source
from pipeline.datasets.inventory import identify
from pipeline.dicom.headers import IngestParams
from pipeline.dicom.refusal import Refusal
from pipeline.params import parse
from pipeline.splits import SplitParams
from pipeline.tables.contract import make_table
from pipeline.tables.images import Duplicates, Ledger
from pipeline.tables.labels import Labels

KEY = b"k" * 32
FACTS = {"Patient ID": "4711", "Patient Age": "58", "Patient Gender": "F", "View Position": "AP", "Follow-up #": "3"}


def site(root="images", file="entries.csv", view=None):
    entry = {"adapter": "chestxray14", "root": root, "view_position": view,
             "labels": {"file": file, "columns": {"pneumonia": "Pneumonia"}}}  # fmt: skip
    return parse(adapter.Params, entry, "sites.ap")


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def describe(content, max_pixels=10**6, **facts):
    source = Source("a.png", None, {**FACTS, **facts})
    policy = IngestParams(max_pixels=max_pixels)
    return adapter.describe(source, content, site="ap", issuer="nih", key=KEY, policy=policy).rows


def test_facts_hold_no_number_of_the_patient():
    (row,) = describe(png(GREY))
    assert (row["rows"], row["columns"], row["age_years"], row["sex"], row["view_position"]) == (20, 30, 58, "F", "ap")
    assert "4711" not in repr(row)
    assert "a.png" not in repr(row)


@pytest.mark.parametrize(("age", "years"), [("058Y", 58), ("414", 90), ("6M", 0), ("", None), ("old", None)])
def test_age(age, years):
    assert describe(png(GREY), **{"Patient Age": age})[0]["age_years"] == years


def bomb(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"GIF89a", "non_image_object"),
        (png(GREY)[:8], "truncated"),
        (bomb(60000, 60000), "decompression_bomb"),
        (bomb(2000, 2000), "decompression_bomb"),
        (bomb(0, 5), "invalid_dimensions"),
    ],
)
def test_refusals_that_need_no_decoding(content, reason, monkeypatch):
    monkeypatch.setattr(image_files.cv2, "imdecode", None)  # ingest decodes nothing
    with pytest.raises(Refusal) as raised:
        describe(content)
    assert raised.value.reason == reason
    assert describe(png(GREY))[0]["rows"] == 20


@pytest.mark.parametrize("content", [png(GREY)[:-20], png(GREY)[:60]])
def test_a_broken_file_is_found_when_it_is_decoded(content):
    assert len(describe(content)) == 1
    with pytest.raises(Refusal) as raised:
        list(adapter.read_images(content, [0], IngestParams()))
    assert raised.value.reason == "decode_error"


def test_no_patient_is_refused():
    with pytest.raises(Refusal, match="missing_required_tag"):
        describe(png(GREY), **{"Patient ID": ""})


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_values_as_they_stand(channels):
    image = GREY if channels == 1 else np.dstack([GREY] * 3 + [np.full_like(GREY, 255)] * (channels - 3))
    (read,) = adapter.read_images(png(image), [0], IngestParams())
    np.testing.assert_array_equal(spread(read).values, GREY)
    with pytest.raises(Refusal):
        list(adapter.read_images(png(image), [1], IngestParams()))


def test_labels_and_views(tmp_path):
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    (tmp_path / "entries.csv").write_text(
        header + "b.png,Pneumonia|Edema,0,1,50,M,AP\na.png,No Finding,0,1,50,M,PA\nc.png,,0,2,50,M,AP\n"
        "d.png,Pneumothorax,0,2,50,M,AP\n"
    )
    labels = {row.target: row.labels["pneumonia"] for row in adapter.read_labels(site(view="AP"), tmp_path)}
    assert labels == {"b.png": "present", "c.png": None, "d.png": "absent"}
    assert [source.relative for source in adapter.list_sources(site(), tmp_path)] == [f"{n}.png" for n in "abcd"]


def test_real_views_and_the_patients_they_share(shared):
    base = shared / "data/chestxray14_subset"
    rows = []
    for view in ("PA", "AP"):
        entry = site("images", "Data_Entry_2017_v2020.csv", view)
        sources = identify(adapter, entry, view.lower(), base, KEY)
        labels = [row.labels["pneumonia"] for row in adapter.read_labels(entry, base)]
        assert (len(sources), labels.count("present")) == {"PA": (433, 275), "AP": (566, 225)}[view]
        assert all(source.path.is_file() for source in sources.values())
        rows += [
            {"image_id": source_id, "source_id": source_id, "site": view.lower(), "patient_id": s.facts["Patient ID"]}
            for source_id, s in sources.items()
        ]
    import pandas as pd

    instances = pd.DataFrame(rows).assign(study_id="s")
    params = SplitParams(seed=1, source=["pa"], target=["ap"])
    nothing = [make_table(table, []) for table in (Labels, Duplicates, Ledger)]
    assigned = assign(instances, *nothing, params)
    splits, crossing = assigned.splits, assigned.left_out["patient_in_source"]
    gone = instances[instances["image_id"].isin(crossing["image_id"])]
    assert gone["patient_id"].nunique() == 42
    assert set(gone["site"]) == {"ap"}
    assert (splits["site"] == "pa").sum() == 433
    assert len(splits) + len(gone) == 999
    content = next(iter(sources.values())).path.read_bytes()
    assert describe(content)[0]["rows"] == 256
