"""What a new image is held against."""

import pandas as pd
import pytest

from pipeline.handover.seen import NOT_RECORDED, describe_seen, header_misfits, window_misfit
from pipeline.imaging.recipe import PreprocessParams

HEADER = PreprocessParams(size_px=32, voi="header")
SOFT_TISSUE = PreprocessParams(size_px=32, voi="soft_tissue")


def trained(modality="ct", voi="window_linear", windows=((40.0, 400.0), (60.0, 350.0)), syntax="1.2.840.10008.1.2.1"):
    names = [f"i{place}" for place in range(len(windows))]
    instances = pd.DataFrame(
        {
            "image_id": names,
            "transfer_syntax": syntax,
            "modality": modality,
            "view_position": None,
            "body_part": "chest",
        }
    )
    images = pd.DataFrame(windows, columns=["window_center", "window_width"]).assign(image_id=names, voi=voi)
    return instances, images


def row(**changes):
    plain = {"modality": "ct", "view_position": None, "body_part": "chest", "voi": "window_linear"}
    return {**plain, "window_center": 50.0, "window_width": 400.0, **changes}


def test_an_image_alike_has_no_misfit():
    seen = describe_seen(*trained(), {})
    assert seen.levels["view_position"] == [NOT_RECORDED]
    assert header_misfits(row(), seen) == {}
    assert window_misfit(row(), seen, HEADER) == ""


@pytest.mark.parametrize(
    ("changes", "misfits"),
    [
        ({"modality": "mr"}, ["other_modality"]),
        ({"modality": None}, ["other_modality"]),
        ({"view_position": "pa"}, ["other_view"]),
        ({"body_part": "knee", "view_position": "ap"}, ["other_view", "other_body_part"]),
    ],
)
def test_another_term_is_a_misfit_unless_it_is_accepted(changes, misfits):
    assert list(header_misfits(row(**changes), describe_seen(*trained(), {}))) == misfits
    accept = {"modality": ["mr", NOT_RECORDED], "view_position": ["pa", "ap"], "body_part": ["knee"]}
    seen = describe_seen(*trained(), accept)
    assert header_misfits(row(**changes), seen) == {}
    assert seen.levels["modality"] == ["ct"]  # what was accepted was not trained on, and is not said to be


@pytest.mark.parametrize(("center", "width"), [(-600.0, 1500.0), (50.0, 1500.0), (39.0, 400.0)])
def test_another_window_of_hounsfield_units_is_a_misfit_where_the_headers_is_taken(center, width):
    seen = describe_seen(*trained(), {})
    other = row(window_center=center, window_width=width)
    told = window_misfit(other, seen, HEADER)
    assert "centres 40 to 60" in told
    assert "1500" not in told  # the file's own numbers stay out of it
    assert "-600" not in told
    assert window_misfit(other, seen, SOFT_TISSUE) == ""  # there every image gets the same


def test_windows_of_units_of_their_own_are_not_compared():
    seen = describe_seen(*trained(modality="dx"), {})
    assert window_misfit(row(modality="dx", window_center=30_000.0), seen, HEADER) == ""


@pytest.mark.parametrize("params", [HEADER, SOFT_TISSUE])
def test_values_without_a_window_are_a_misfit_unless_some_were_trained_on(params):
    windowless = row(voi="range", window_center=50.0)
    assert window_misfit(windowless, describe_seen(*trained(), {}), params)
    assert window_misfit(windowless, describe_seen(*trained(voi="range"), {}), params) == ""


def test_raster_files_record_nothing_that_could_be_checked():
    seen = describe_seen(*trained(modality=None, voi="range", syntax="png"), {})
    assert seen.kind == "raster"
    assert header_misfits(row(modality="mg"), seen) == {}
    assert window_misfit(row(voi="lut"), seen, HEADER) == ""


def test_two_kinds_of_files_are_refused():
    instances, images = trained()
    instances.loc[0, "transfer_syntax"] = "jpeg"
    with pytest.raises(ValueError, match="together"):
        describe_seen(instances, images, {})
