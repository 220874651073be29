"""Series geometry: laws under shuffling and rigid motion, planted flaws, and SimpleITK's order as an oracle."""

import dataclasses
import itertools
import json
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from minimal import content, dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from pipeline.dicom import geometry
from pipeline.dicom.geometry import Plane, Slice, plane_of, series_geometry
from pipeline.dicom.refusal import Quarantine
from pipeline.dicom.structure import parse_structure

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def rotation(quaternion):
    """(3, 3) from four numbers, by the textbook formula."""
    w, x, y, z = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def text_value(value):
    """As a writer of DICOM would round it."""
    return float(format_number_as_ds(float(value)))


def stack(heights, turn=None, origin=(0.0, 0.0, 0.0), round_to=text_value, **changes):
    """Parallel slices at these heights above the origin along the normal; ids in no order of place."""
    turn = np.eye(3) if turn is None else turn
    made = []
    for index, height in enumerate(heights):
        position = tuple(round_to(v) for v in np.asarray(origin) + turn @ np.array([0.0, 0.0, height]))
        orientation = tuple(round_to(v) for v in [*turn[:, 0], *turn[:, 1]])
        made.append(Slice(f"{(index * 7919) % 10007:05d}", Plane(position, orientation, ""), 64, 48, 0.7, 0.7))
    return [dataclasses.replace(one, **changes) for one in made]


def with_plane(one, **changes):
    return dataclasses.replace(one, plane=one.plane._replace(**changes))


def moved(one, by):
    return with_plane(one, position=tuple(np.add(one.plane.position, by)))


turns = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1).map(rotation)
origins = st.tuples(*[st.floats(-1000, 1000)] * 3)
spacings = st.floats(0.1, 20.0)


@st.composite
def flawed_stacks(draw):
    """Any stack, sound or with something planted."""
    spacing, count = draw(spacings), draw(st.integers(2, 12))
    slices = stack(np.arange(count) * spacing, draw(turns), draw(origins))
    normal = np.cross(slices[0].plane.orientation[:3], slices[0].plane.orientation[3:])
    one = draw(st.integers(0, count - 1))
    match draw(st.integers(0, 6)):
        case 0:
            slices[one] = moved(slices[one], 0.5 * spacing * normal)
        case 1:
            slices[one] = moved(slices[one], 3.0 * np.array(slices[one].plane.orientation[:3]))
        case 2:
            slices.append(dataclasses.replace(slices[one], image_id="zzz"))
        case 3:
            slices[one] = with_plane(slices[one], orientation=tuple(-np.array(slices[one].plane.orientation)))
        case 4:
            slices[one] = dataclasses.replace(slices[one], rows=65, row_spacing_mm=None)
        case 5:
            slices += [
                with_plane(dataclasses.replace(each, image_id=f"b{each.image_id}"), stack="b") for each in slices
            ]
        case _:
            pass
    return slices


@settings(deadline=None)
@given(flawed_stacks(), st.randoms())
def test_the_order_of_the_files_makes_no_difference(slices, random):
    expected = series_geometry(slices)
    random.shuffle(slices)
    assert series_geometry(slices) == expected


@settings(deadline=None)
@given(flawed_stacks(), turns, origins)
def test_where_the_patient_lay_makes_no_difference(slices, turn, shift):
    def move(one):
        rows, columns = np.array(one.plane.orientation).reshape(2, 3)
        return with_plane(
            one,
            position=tuple(turn @ np.array(one.plane.position) + shift),
            orientation=(*(turn @ rows), *(turn @ columns)),
        )

    expected, found = series_geometry(slices), series_geometry([move(one) for one in slices])
    assert (found.order, found.flaws) == (expected.order, expected.flaws)
    np.testing.assert_allclose(found.positions_mm, expected.positions_mm, atol=1e-6)
    if expected.spacing_mm is not None:
        assert found.spacing_mm == pytest.approx(expected.spacing_mm, abs=1e-6)


@settings(deadline=None)
@given(st.integers(2, 40), spacings, turns, origins, st.sampled_from([text_value, lambda v: round(v, 2)]))
def test_a_sound_stack_has_no_flaw_and_its_spacing_is_found(count, spacing, turn, origin, round_to):
    # With two decimals the cosines themselves would be off by more than is allowed.
    slices = stack(np.arange(count) * spacing, turn, origin, round_to)
    exact = stack([0.0], turn)[0].plane.orientation
    found = series_geometry([with_plane(one, orientation=exact) for one in slices])
    assert found.flaws == ()
    assert found.order == tuple(one.image_id for one in slices)
    exactness = 1e-8 if round_to is text_value else 0.0174  # sqrt(3) * 0.01
    assert found.spacing_mm == pytest.approx(spacing, abs=exactness)
    np.testing.assert_allclose(found.positions_mm, np.arange(count) * spacing, atol=exactness)
    assert found.positions_mm[0] == 0.0


@settings(deadline=None)
@given(st.integers(4, 30), spacings, turns, origins, st.data())
def test_a_missing_slice_is_a_gap_and_nothing_else(count, spacing, turn, origin, data):
    slices = stack(np.arange(count) * spacing, turn, origin)
    del slices[data.draw(st.integers(1, count - 2))]
    assert series_geometry(slices).flaws == ("gap",)


@settings(deadline=None)
@given(st.integers(3, 30), spacings, turns, origins, st.data())
def test_a_slice_twice_is_a_duplicate_and_nothing_else(count, spacing, turn, origin, data):
    slices = stack(np.arange(count) * spacing, turn, origin)
    copy = dataclasses.replace(data.draw(st.sampled_from(slices)), image_id="copy")
    found = series_geometry([*slices, copy])
    assert found.flaws == ("duplicate_position",)
    assert found.spacing_mm == pytest.approx(spacing)
    # in another stack the place may be taken, but then all of that stack's are wanted
    assert series_geometry([*slices, with_plane(copy, stack="echo 2")]).flaws == ("gap",)
    second = [with_plane(dataclasses.replace(one, image_id=f"2{one.image_id}"), stack="echo 2") for one in slices]
    assert series_geometry([*slices, *second]).flaws == ()


@settings(deadline=None)
@given(st.integers(3, 30), spacings, turns, origins, st.floats(0.5, 30.0), st.sampled_from([-1, 1]))
def test_gantry_tilt(count, spacing, turn, origin, degrees, sign):
    """The table moves along z while the slices lean: each is displaced by tan(tilt) of the step, down its columns."""
    slices = stack(np.arange(count) * spacing, turn, origin)
    shift = sign * np.tan(np.radians(degrees)) * spacing
    assume(abs(shift) * (count - 1) > geometry.STEP_TOLERANCE_MM * 1.01)
    tilted = [moved(one, index * shift * np.array(one.plane.orientation[3:])) for index, one in enumerate(slices)]
    found = series_geometry(tilted)
    assert found.flaws == ("tilt",)
    assert found.spacing_mm == pytest.approx(spacing)


def test_a_real_tilt_by_hand():
    # 20 degrees about x, table steps of 5 mm along z: along the normal 5 cos 20.
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    slices = [
        Slice(str(k), Plane((-120.0, -80.0, 5.0 * k), (1, 0, 0, 0, cos, -sin), ""), 9, 9, None, None) for k in range(4)
    ]
    found = series_geometry(slices)
    assert found.flaws == ("tilt",)
    assert found.spacing_mm == pytest.approx(5 * cos)


@pytest.mark.parametrize(
    ("heights", "flaws"),
    [
        ([0, 1, 2, 3.0199], ()),  # the floor of 0.02 mm is above 1 % of 1 mm
        ([0, 1, 2, 3.0201], ("gap",)),
        ([0, 10, 20, 30.099], ()),
        ([0, 10, 20, 30.101], ("gap",)),
        ([0, 5, 7], ("gap",)),
        ([0, 5], ()),
        ([0, 5, 5.009], ("duplicate_position",)),
        ([0, 5, 5.011], ("gap",)),
        ([0.0, 0.62, 1.25, 1.88, 2.5], ()),  # 0.625 with two decimals
    ],
)
def test_tolerances_along_the_normal(heights, flaws):
    assert series_geometry(stack(heights)).flaws == flaws


@pytest.mark.parametrize(("angle", "flaws"), [(0.0009, ()), (0.0011, ("mixed_orientation",))])
def test_tolerance_of_orientation(angle, flaws):
    slices = stack([0, 1, 2])
    slices[1] = with_plane(slices[1], orientation=(np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0))
    assert series_geometry(slices).flaws == flaws


def test_orientation_decides_before_anything_that_needs_a_normal():
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    for other in (sagittal, (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)):
        slices = stack([0, 1, 5, 5])
        slices[2] = with_plane(slices[2], orientation=other)
        found = series_geometry(slices)
        assert found.flaws == ("mixed_orientation",)
        assert found.spacing_mm is None
        assert len(found.positions_mm) == len(set(found.order)) == 4


@pytest.mark.parametrize(
    ("change", "flaws"),
    [
        ({"rows": 63}, ("mixed_shape",)),
        ({"columns": 49}, ("mixed_shape",)),
        ({"row_spacing_mm": 0.7006}, ()),
        ({"row_spacing_mm": 0.7008}, ("mixed_spacing",)),
        ({"column_spacing_mm": 0.699}, ("mixed_spacing",)),
        ({"column_spacing_mm": None}, ("mixed_spacing",)),
        ({"rows": 63, "row_spacing_mm": 1.4}, ("mixed_shape", "mixed_spacing")),
    ],
)
def test_shape_and_spacing(change, flaws):
    slices = stack([0, 1, 2])
    slices[1] = dataclasses.replace(slices[1], **change)
    assert series_geometry(slices).flaws == flaws
    assert set(flaws) <= set(geometry.FLAWS)


def test_few_slices():
    assert series_geometry([]) == geometry.SeriesGeometry((), (), None, ())
    (one,) = stack([3.0])
    assert series_geometry([one]) == geometry.SeriesGeometry((one.image_id,), (0.0,), None, ())
    # a perfusion of one place
    again = [with_plane(dataclasses.replace(one, image_id=str(k)), stack=f"t{k}") for k in range(3)]
    assert series_geometry(again) == geometry.SeriesGeometry(("0", "1", "2"), (0.0, 0.0, 0.0), None, ())


def test_axial_slices_go_from_the_feet_to_the_head():
    slices = stack([30, 10, 20])
    assert series_geometry(slices).order == tuple(slices[index].image_id for index in (1, 2, 0))


def test_ten_thousand_slices_are_fast():
    slices = stack(np.arange(10_000) * 0.5, rotation([1, 2, 3, 4]))
    begun = time.perf_counter()
    found = series_geometry(slices)
    assert time.perf_counter() - begun < 5.0  # 0.1 s on an idle core
    assert found.flaws == ()
    assert found.order == tuple(one.image_id for one in slices)


# --- reading the plane of a frame ---------------------------------------------------------------------------


def item(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def read(frame=0, **elements):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plane_of(parse_structure(content(dataset(**elements)), 2**20).main, frame)


def test_plane_at_the_top_level():
    found = read(ImagePositionPatient=["-1.5", "2e1", "3"], ImageOrientationPatient=[*map(str, AXIAL)])
    assert found == Plane((-1.5, 20.0, 3.0), AXIAL, "")
    assert json.loads(json.dumps(found)) == [[-1.5, 20.0, 3.0], list(AXIAL), ""]


def test_no_plane():
    assert read() is None
    assert read(ImagePositionPatient=[1, 2, 3]) is None
    assert read(ImageOrientationPatient=[*AXIAL]) is None
    assert read(ImagePositionPatient=None, ImageOrientationPatient="") is None
    both = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [*AXIAL]}
    assert read(NumberOfFrames=2, **both) is None
    assert read(NumberOfFrames=1, **both) is not None
    assert read(NumberOfFrames="", **both) is not None


@pytest.mark.parametrize(
    ("keyword", "raw"),
    [
        ("ImagePositionPatient", b"1\\2"),
        ("ImagePositionPatient", b"1\\2\\3\\4 "),
        ("ImagePositionPatient", b"1\\2\\ZEBRAFELD "),
        ("ImagePositionPatient", b"1\\2\\nan "),
        ("ImagePositionPatient", b"1\\2\\1e400 "),
        ("ImagePositionPatient", b"1\\2\\1e300 "),
        ("ImagePositionPatient", b"1\\\\3"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1 "),
        ("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0 "),
        ("ImageOrientationPatient", b"1\\0\\0\\1\\0\\0 "),
        ("ImageOrientationPatient", b"1.002\\0\\0\\0\\1\\0 "),
        ("ImageOrientationPatient", b"1\\0.002\\0\\0\\1\\0 "),
        ("ImageOrientationPatient", b"1e300\\0\\0\\0\\1\\0 "),
        ("ImageOrientationPatient", b"inf\\0\\0\\0\\1\\0 "),
    ],
)
def test_malformed_planes(keyword, raw):
    good = {"ImagePositionPatient": b"1\\2\\3 ", "ImageOrientationPatient": b"1\\0\\0\\0\\1\\0 "}
    made = dataset()
    for name, value in (good | {keyword: raw}).items():
        tag = pydicom.datadict.tag_for_keyword(name)
        made[tag] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), "DS", len(value), value, 0, is_implicit_VR=False, is_little_endian=True
        )
    with pytest.raises(Quarantine) as raised:
        plane_of(parse_structure(content(made), 2**20).main, 0)
    assert (raised.value.reason, raised.value.detail) == ("inconsistent_geometry", f"{keyword} is malformed")


def test_almost_orthonormal_is_accepted():
    assert read(ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[0.7071, 0.7071, 0, -0.7071, 0.7071, 0])


def test_functional_groups():
    def frame(z, **more):
        position = item(ImagePositionPatient=[0, 0, z])
        return item(PlanePositionSequence=[position], **more)

    turned = item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    found = {
        "SharedFunctionalGroupsSequence": [
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=[*AXIAL])],
                MREchoSequence=[item(EffectiveEchoTime=12.0)],
            )
        ],
        "PerFrameFunctionalGroupsSequence": [
            frame(0, FrameContentSequence=[item(TemporalPositionIndex=2, StackID="1")]),
            frame(7, PlaneOrientationSequence=[turned]),
            frame(9, MRDiffusionSequence=[item(DiffusionBValue=800.0)], MREchoSequence=[item(EffectiveEchoTime=-0.0)]),
            item(),
        ],
        "ImagePositionPatient": [5, 5, 5],  # of no frame
        "NumberOfFrames": 4,
    }  # fmt: skip
    first, second, third = (read(index, **found) for index in range(3))
    echo = "EffectiveEchoTime=0000000012.0000"
    assert first == Plane((0, 0, 0), AXIAL, f"TemporalPositionIndex=0000000002.0000 {echo} StackID=1")
    assert second == Plane((0, 0, 7), (0, 1, 0, 0, 0, -1), echo)
    assert third.stack == "EffectiveEchoTime=0000000000.0000 DiffusionBValue=0000000800.0000"
    assert read(3, **found) is None
    assert read(4, **found) is None


def test_the_stack_passes_no_free_text():
    """It is kept between runs, where no identifier may be."""
    planted = "ZEBRAFELD"
    found = read(
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=[*AXIAL],
        ImageType=["DERIVED", planted, "WATER"],
        EchoNumbers=2,
        TemporalPositionIdentifier=None,
        SharedFunctionalGroupsSequence=[item(FrameContentSequence=[item(StackID=planted)])],
    )
    assert found.stack == "EchoNumbers=0000000002.0000 ImageType=DERIVED,?,WATER StackID=?"


@pytest.mark.parametrize(
    ("keyword", "low", "high"),
    [
        ("TemporalPositionIdentifier", 2, 10), ("EchoTime", 9.5, 11.25), ("DiffusionBValue", 50.0, 1000.0),
        ("AcquisitionNumber", 1, 2), ("TriggerTime", 0, 700.5), ("ImageType", "M", "P"),
    ],
)  # fmt: skip
def test_stacks_may_share_places_and_go_in_order(keyword, low, high):
    slices = []
    for index, (value, z) in enumerate(itertools.product((high, low), (5, 0))):
        plane = read(ImagePositionPatient=[0, 0, z], ImageOrientationPatient=[*AXIAL], **{keyword: value})
        slices.append(Slice(str(index), plane, 2, 2, None, None))
    found = series_geometry(slices)
    assert found.flaws == ()
    assert found.order == ("3", "1", "2", "0")
    assert found.spacing_mm == 5.0


# --- against GDCM, by way of SimpleITK -----------------------------------------------------------------------


def slice_of(path: Path) -> Slice:
    main = parse_structure(path.read_bytes(), 2**24).main
    plane = plane_of(main, 0)
    assert plane is not None
    return Slice(str(path), plane, 2, 2, None, None)


def gdcm_order(folder: Path, series: str) -> list[str]:
    return list(SimpleITK.ImageSeriesReader_GetGDCMSeriesFileNames(str(folder), series))


@settings(max_examples=10, deadline=None)
@given(turns, st.randoms())
def test_order_and_spacing_equal_simple_itk(tmp_path_factory, turn, random):
    folder = tmp_path_factory.mktemp("series")
    numbers = list(range(1, 13))
    random.shuffle(numbers)
    normal = turn[:, 2]
    for index, number in enumerate(numbers):
        made = dataset(
            np.full((2, 2), index, np.uint16),
            SOPClassUID=CTImageStorage,
            SOPInstanceUID=f"2.25.77{number}",
            Modality="CT",
            InstanceNumber=number,
            SliceLocation=str(-index),  # wrong, and not asked
            ImagePositionPatient=[format_number_as_ds(float(v)) for v in (10, -20, 30) + normal * 2.5 * index],
            ImageOrientationPatient=[format_number_as_ds(float(v)) for v in [*turn[:, 0], *turn[:, 1]]],
            PixelSpacing=[0.5, 0.5],
            RescaleSlope=1,
            RescaleIntercept=0,
        )
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        (folder / f"{number:02d}.dcm").write_bytes(content(made))
    (series,) = SimpleITK.ImageSeriesReader_GetGDCMSeriesIDs(str(folder))
    expected = gdcm_order(folder, series)
    found = series_geometry([slice_of(path) for path in folder.iterdir()])
    assert list(found.order) == expected
    assert found.flaws == ()
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(expected)
    image = reader.Execute()
    assert SimpleITK.GetArrayFromImage(image)[:, 0, 0].tolist() == list(range(12))
    assert found.spacing_mm == pytest.approx(image.GetSpacing()[2], abs=1e-9)


def bundled_series():
    folder = Path(get_testdata_file("DICOMDIR")).parent
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "DICOMDIR" not in path.name and path.read_bytes()[128:132] == b"DICM":
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if "ImagePositionPatient" in header:
                found[path.parent, header.SeriesInstanceUID].append(path)
    return {key: paths for key, paths in found.items() if len(paths) > 1}


def test_order_of_bundled_series_equals_simple_itk():
    series = bundled_series()
    assert len(series) >= 3
    for (folder, uid), paths in series.items():
        found = series_geometry([slice_of(path) for path in paths])
        heights = dict(zip(found.order, found.positions_mm, strict=True))
        expected = gdcm_order(folder, uid)
        assert set(expected) == set(heights)
        if "mixed_orientation" not in found.flaws:
            # GDCM breaks ties by file name, we by stack and image id
            assert [heights[name] for name in expected] == list(found.positions_mm)
