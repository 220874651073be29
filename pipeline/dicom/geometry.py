"""Where slices lie in the patient, and whether a series of them is one regular volume (PS3.3 C.7.6.2).

Coordinates are those of the patient, in millimetres: x to the left hand, y to the back, z to the head (C.7.6.2.1.1).
A slice's normal is the cross product of its row and column cosines; slices are ordered along +normal, for axial
slices with rows to the left and columns to the back from the feet to the head. Instance Number plays no part: it
numbers what a scanner or an archive sent, in whatever order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.dicom.attributes import MalformedError, has, integer, items, numbers, texts
from pipeline.dicom.refusal import Quarantine
from pipeline.dicom.structure import Part

Floats = npt.NDArray[np.float64]

# Direction cosines are decimal text of at most 16 characters, and some writers give four: 5e-5 each, at worst 1e-4 in
# a vector. Ten times that still is 0.06 degrees: 0.25 mm at the edge of a field of 500 mm, less than half a pixel.
ANGLE_TOLERANCE = 1e-3
# Coordinates with two decimals are off by 0.005 mm, the step between two of them by 0.01 mm, and along an oblique
# normal or across it by sqrt(3) times that.
STEP_TOLERANCE_MM = 0.02
# What highdicom and dcm2niix call equal spacing as well; a slice that is missing makes 100 %.
STEP_TOLERANCE_RELATIVE = 0.01
# Two slices nearer than this are in one place: no scanner of patients steps by less.
PLACE_TOLERANCE_MM = 0.01
# Pixel spacings: half a pixel over 512 of them.
SPACING_TOLERANCE_RELATIVE = 1e-3
# Beyond a kilometre a coordinate is no position in a scanner, and float32 loses the tenth of a millimetre.
_MAX_MM = 1e6

# In the order in which they are reported.
FLAWS = ("mixed_orientation", "mixed_shape", "mixed_spacing", "duplicate_position", "gap", "tilt")

# What tells images of one place apart. Enhanced objects say it in functional groups, inside the macro that is named
# (C.7.6.16.2, C.8.13.5, C.8.15.3), others at the top level. Acquisition times are not among it: they differ from slice
# to slice, so that no slice would ever be a duplicate.
_STACK_NUMBERS = {
    "": (
        "TemporalPositionIdentifier", "AcquisitionNumber", "EchoNumbers", "EchoTime", "InversionTime", "FlipAngle",
        "DiffusionBValue", "DiffusionGradientOrientation", "TriggerTime", "NominalPercentageOfCardiacPhase",
        "FrameReferenceTime",
    ),
    "FrameContentSequence": ("TemporalPositionIndex",),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRModifierSequence": ("InversionTimes",),
    "MRTimingAndRelatedParametersSequence": ("FlipAngle",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "CardiacSynchronizationSequence": ("NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase"),
}  # fmt: skip
_STACK_TERMS = {
    "": ("ImageType",),
    "FrameContentSequence": ("StackID",),
    "MRImageFrameTypeSequence": ("FrameType", "ComplexImageComponent"),
    "CTImageFrameTypeSequence": ("FrameType",),
}
# The stack is kept, so text passes only as one of these (PS3.3 C.7.6.1.1.2, C.8.13.3.1, C.8.15.3.2, and what vendors
# write), or as a number of a few digits.
_TERMS = frozenset(
    """
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER REFORMATTED MPR MIP MINIP AVERAGE ADD SUBTRACT SUBTRACTED
    M P R I MAGNITUDE PHASE REAL IMAGINARY MIXED M_FFE M_SE M_IR PHASE_MAP VELOCITY PROJECTION_IMAGE
    W F IP OP WATER FAT IN_PHASE OUT_PHASE OPP_PHASE FAT_FRACTION T1 T2 T2_STAR R2 R2_STAR FIELD_MAP
    DIFFUSION ADC EADC FA TRACEW TRACE ISOTROPIC B0 ND NORM DIS2D DIS3D MFSPLIT MOSAIC PERFUSION
    VOLUME STATIC DYNAMIC GATED TOMO WHOLE_BODY ATTENUATION ENERGY_PROP_WT VIRTUAL_MONOENERGETIC
    """.split()
)


class Plane(NamedTuple):
    """Where a frame lies (PS3.3 C.7.6.2.1.1).

    Attributes:
        position: Image Position (Patient), the centre of the first pixel: x, y, z in millimetres.
        orientation: Image Orientation (Patient), the direction cosines of the rows (x, y, z), then of the columns.
        stack: what lets several images lie in one place: temporal position, echo, b-value and the like; "" for none.
            Numbers and terms of closed vocabularies, no free text.
    """

    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    stack: str


@dataclass(frozen=True)
class Slice:
    """A frame of a series; spacings in millimetres between centres of pixels, None where they are not known."""

    image_id: str
    plane: Plane
    rows: int
    columns: int
    row_spacing_mm: float | None
    column_spacing_mm: float | None


@dataclass(frozen=True)
class SeriesGeometry:
    """What a series' slices make together.

    Attributes:
        order: image ids along +normal; within one place by stack, then by image id.
        positions_mm: distance of each from the first along +normal.
        spacing_mm: the median step between neighbouring places; None for one place, or where no one normal is
            common to all slices.
        flaws: of ``FLAWS``, those that are there.
    """

    order: tuple[str, ...]
    positions_mm: tuple[float, ...]
    spacing_mm: float | None
    flaws: tuple[str, ...]


_LETTERS = ("LR", "PA", "HF")  # towards growing and falling x, y and z of the patient's system, PS3.3 C.7.6.2.1.1


def letters_of(orientation: Sequence[float]) -> str | None:
    """The directions in which columns and rows increase, as two of LRPAHF: of an oblique plane the nearest.

    Args:
        orientation: direction cosines of the rows, then of the columns, see ``Plane``.

    Returns:
        "LP" for the usual axial image; None where both lie nearest to one axis.
    """
    letters = ""
    for vector in (orientation[:3], orientation[3:]):
        axis = max(range(3), key=lambda index: abs(vector[index]))
        letters += _LETTERS[axis][vector[axis] < 0]
    return letters if _is_plane(letters) else None


def patient_orientation(part: Part) -> str | None:
    """The same from Patient Orientation (PS3.3 C.7.6.1.1.1), of each direction the letter that leads."""
    try:
        values = texts(part, "PatientOrientation")
    except MalformedError:
        return None
    letters = "".join(value[:1] for value in values)
    return letters if len(values) == 2 and len(letters) == 2 and _is_plane(letters) else None


def _is_plane(letters: str) -> bool:
    axes = [axis for letter in letters for axis, pair in enumerate(_LETTERS) if letter in pair]
    return len(axes) == 2 and axes[0] != axes[1]


def plane_of(part: Part, frame: int) -> Plane | None:
    """Where a frame lies, from its functional groups (PS3.3 C.7.6.16.2.3, C.7.6.16.2.4) or else the top level.

    Args:
        part: the file's data set.
        frame: from 0. At the top level one position is of one frame: of several frames without functional groups
            none has a plane.

    Returns:
        None where the file gives no position or no orientation.

    Raises:
        Quarantine: inconsistent_geometry: a position or orientation is there, but is not as many finite numbers as
            it should be, a coordinate is beyond a kilometre, or the direction cosines are not orthonormal to within
            ``ANGLE_TOLERANCE``.
    """
    groups = _functional_groups(part, frame)
    position = _vector(part, groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _vector(part, groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None
    if max(map(abs, position)) > _MAX_MM:
        raise _malformed("ImagePositionPatient")
    if not _is_orthonormal(orientation):
        raise _malformed("ImageOrientationPatient")
    x, y, z = position
    return Plane((x, y, z), orientation, _stack_of(part, groups))


def series_geometry(slices: Sequence[Slice]) -> SeriesGeometry:
    """Order a series along its normal and say what keeps it from being one regular volume.

    The result hangs neither on the order of ``slices`` nor on where the patient lay. Flaws:

    - mixed_orientation: row or column cosines differ by more than ``ANGLE_TOLERANCE``, anti-parallel ones too. Then
      there is no common normal (that of the smallest image id orders them), and no gap, tilt or duplicate is looked
      for.
    - mixed_shape: rows or columns differ.
    - mixed_spacing: pixel spacings differ by more than ``SPACING_TOLERANCE_RELATIVE``, or only some are known.
    - duplicate_position: two slices of one stack within ``PLACE_TOLERANCE_MM`` along the normal.
    - gap: of three or more places a step differs from the median by more than ``STEP_TOLERANCE_RELATIVE`` and
      ``STEP_TOLERANCE_MM``; or stacks that share places do not all have each.
    - tilt: slices are displaced across the normal (gantry tilt, or a shifted slice), against their neighbour or the
      first slice by more than ``STEP_TOLERANCE_MM`` and ``ANGLE_TOLERANCE`` times the distance.

    Args:
        slices: with planes as ``plane_of`` gives them, and different image ids.
    """
    if not slices:
        return SeriesGeometry((), (), None, ())
    slices = sorted(slices, key=lambda one: one.image_id)
    positions = np.array([one.plane.position for one in slices], np.float64)
    orientations = np.array([one.plane.orientation for one in slices], np.float64)
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    normal /= np.linalg.norm(normal)
    along = _along(positions, normal)
    places, starts = _places(along)
    stacks = [one.plane.stack for one in slices]
    order = sorted(range(len(slices)), key=lambda index: (places[index], stacks[index], along[index]))
    steps = np.diff(starts)

    found = set()
    if _is_mixed_orientation(orientations):
        found.add("mixed_orientation")
    else:
        pairs = set(zip(places, stacks, strict=True))
        if len(pairs) < len(slices):
            found.add("duplicate_position")
        if _is_gapped(steps) or _is_incomplete(pairs):
            found.add("gap")
        if _is_tilted(positions[order], normal):
            found.add("tilt")
    if len({(one.rows, one.columns) for one in slices}) > 1:
        found.add("mixed_shape")
    if any(_is_mixed([spacing[axis] for spacing in map(_spacings, slices)]) for axis in (0, 1)):
        found.add("mixed_spacing")
    regular = len(steps) > 0 and "mixed_orientation" not in found
    return SeriesGeometry(
        order=tuple(slices[index].image_id for index in order),
        positions_mm=tuple((along[order] - along[order[0]]).tolist()),
        spacing_mm=float(np.median(steps)) if regular else None,
        flaws=tuple(flaw for flaw in FLAWS if flaw in found),
    )


def _functional_groups(part: Part, frame: int) -> list[Part]:
    """The items that hold a frame's functional groups, its own before those that all frames share."""
    own = items(part, "PerFrameFunctionalGroupsSequence")
    return [*own[frame : frame + 1], *items(part, "SharedFunctionalGroupsSequence")[:1]]


def _macro(groups: list[Part], sequence: str) -> Part | None:
    for group in groups:
        found = items(group, sequence)
        if found:
            return found[0]
    return None


def _vector(part: Part, groups: list[Part], sequence: str, keyword: str, size: int) -> tuple[float, ...] | None:
    macro = _macro(groups, sequence)
    if macro is None:
        if not _is_single_frame(part):
            return None
        macro = part
    try:
        values = numbers(macro, keyword)
    except MalformedError:
        raise _malformed(keyword) from None
    if not values:
        return None
    if len(values) != size or not all(map(math.isfinite, values)):
        raise _malformed(keyword)
    return tuple(values)


def _is_single_frame(part: Part) -> bool:
    try:
        return integer(part, "NumberOfFrames") in (None, 1)
    except MalformedError:
        raise _malformed("NumberOfFrames") from None


def _malformed(keyword: str) -> Quarantine:
    return Quarantine("inconsistent_geometry", f"{keyword} is malformed")


def _is_orthonormal(orientation: Sequence[float]) -> bool:
    a, b, c, d, e, f = orientation
    if max(map(abs, orientation)) > 2.0:  # their squares could overflow
        return False
    errors = ((a * a + b * b + c * c) ** 0.5 - 1.0, (d * d + e * e + f * f) ** 0.5 - 1.0, a * d + b * e + c * f)
    return max(map(abs, errors)) <= ANGLE_TOLERANCE


def _stack_of(part: Part, groups: list[Part]) -> str:
    """What says that an image may lie where another one does; what is malformed says nothing."""
    said = []
    for macro, keywords in _STACK_NUMBERS.items():
        holder = _macro(groups, macro) if macro else part
        if holder is not None:
            said += [(name, _numbers_text(holder, name)) for name in keywords if has(holder, name)]
    diffusion = _macro(groups, "MRDiffusionSequence")
    for direction in items(diffusion, "DiffusionGradientDirectionSequence")[:1] if diffusion is not None else ():
        said.append(("DiffusionGradientOrientation", _numbers_text(direction, "DiffusionGradientOrientation")))
    for macro, keywords in _STACK_TERMS.items():
        holder = _macro(groups, macro) if macro else part
        if holder is not None:
            said += [(name, _terms_text(holder, name)) for name in keywords if has(holder, name)]
    return " ".join(f"{keyword}={value}" for keyword, value in said if value)


def _numbers_text(part: Part, keyword: str) -> str:
    try:
        values = numbers(part, keyword)
    except MalformedError:
        return ""
    # Of fixed width, so that text sorts as the numbers do; + 0.0 turns -0.0 into 0.0.
    return ",".join(f"{value + 0.0:015.4f}" for value in values)


def _terms_text(part: Part, keyword: str) -> str:
    try:
        values = texts(part, keyword)
    except MalformedError:
        return ""
    return ",".join(value if value in _TERMS or (value.isdecimal() and len(value) <= 4) else "?" for value in values)


def _along(positions: Floats, normal: Floats) -> Floats:
    """(n, 3) positions projected on the normal, (n,), in millimetres.

    Spelt out: a matrix product may round equal rows differently, depending on where they stand.
    """
    x, y, z = positions.T
    projected: Floats = x * normal[0] + y * normal[1] + z * normal[2]
    return projected


def _places(along: Floats) -> tuple[list[int], list[float]]:
    """Which place each slice lies in, counted along the normal, and where each place starts, in millimetres."""
    places = [0] * len(along)
    starts: list[float] = []
    for index in np.argsort(along, kind="stable").tolist():
        if not starts or along[index] - starts[-1] >= PLACE_TOLERANCE_MM:
            starts.append(float(along[index]))
        places[index] = len(starts) - 1
    return places, starts


def _is_mixed_orientation(orientations: Floats) -> bool:
    vectors = orientations.reshape(-1, 2, 3)
    return bool((np.linalg.norm(vectors - vectors[0], axis=2) > ANGLE_TOLERANCE).any())


def _is_gapped(steps: Floats) -> bool:
    if len(steps) < 2:
        return False
    median = np.median(steps)
    tolerance = max(STEP_TOLERANCE_RELATIVE * float(median), STEP_TOLERANCE_MM)
    return bool((np.abs(steps - median) > tolerance).any())


def _is_incomplete(pairs: set[tuple[int, str]]) -> bool:
    """Whether places differ in how many stacks have a slice there, given (place, stack)."""
    counts = np.bincount([place for place, _ in pairs])
    return bool((counts != counts[0]).any())


def _is_tilted(positions: Floats, normal: Floats) -> bool:
    for steps in (np.diff(positions, axis=0), positions - positions[0]):
        distance = _along(steps, normal)
        across = np.linalg.norm(steps - distance[:, None] * normal, axis=1)
        if (across > np.maximum(STEP_TOLERANCE_MM, ANGLE_TOLERANCE * np.abs(distance))).any():
            return True
    return False


def _spacings(one: Slice) -> tuple[float | None, float | None]:
    return one.row_spacing_mm, one.column_spacing_mm


def _is_mixed(spacings: Sequence[float | None]) -> bool:
    known = [spacing for spacing in spacings if spacing is not None]
    if len(known) < len(spacings):
        return bool(known)
    return max(known) > min(known) * (1.0 + SPACING_TOLERANCE_RELATIVE)
