"""What PS3.15 asks of each attribute (Table E.1-1, basic profile), and what became of it: for counting, not for doing.

De-identification itself is by allow-list (``deidentify``) and needs no table. This one says, of the elements that files
had, which action the standard asks for and whether the value went on.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydicom.datadict import tag_for_keyword

from pipeline.tables.files import ACTIONS

_TABLE = Path(__file__).with_suffix(".txt")

# What goes on as a pseudonym, a shifted day, a capped age (the birth date enters it), letters of directions or a term
# of a vocabulary ...
REPLACED = tuple(
    """
    PatientID StudyInstanceUID SeriesInstanceUID SOPInstanceUID StudyDate PatientAge PatientBirthDate PatientSex
    Manufacturer ManufacturerModelName Modality ViewPosition BodyPartExamined Laterality ImageLaterality
    PatientOrientation ImageOrientationPatient
    """.split()
)
# ... and as the number or code that it is, or as what makes the picture.
KEPT = tuple(
    """
    KVP Rows Columns BitsStored BitsAllocated HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation
    PlanarConfiguration NumberOfFrames TransferSyntaxUID SOPClassUID PixelSpacing ImagerPixelSpacing SliceThickness
    LossyImageCompression PixelData FloatPixelData DoubleFloatPixelData RescaleSlope RescaleIntercept
    ModalityLUTSequence VOILUTSequence WindowCenter WindowWidth VOILUTFunction PixelPaddingValue PixelPaddingRangeLimit
    PresentationLUTShape
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData
    """.split()
)


def parse_table(text: str) -> tuple[dict[int, str], list[tuple[int, int, str]]]:
    """The lines ``group action element ...`` of confidentiality.txt.

    Returns:
        action by tag; and (mask, tag, action) of the repeating groups, written with x for any digit (PS3.5 7.6).
    """
    single: dict[int, str] = {}
    masked: list[tuple[int, int, str]] = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        group, action, *elements = line.split()
        if action not in ACTIONS:
            raise ValueError(f"{_TABLE.name}: unknown action in group {group}")
        for element in elements:
            name = group + element
            tag = int(name.replace("x", "0"), 16)
            if "x" in name:
                masked.append((int("".join("0" if digit == "x" else "f" for digit in name), 16), tag, action))
            elif tag in single:
                raise ValueError(f"{_TABLE.name}: {name} stands there twice")
            else:
                single[tag] = action
    return single, masked


_SINGLE, _MASKED = parse_table(_TABLE.read_text(encoding="ascii"))
_GOES_ON = {
    **{tag_for_keyword(keyword): "replaced" for keyword in REPLACED},
    **{tag_for_keyword(keyword): "kept" for keyword in KEPT},
}


def action_of(tag: int) -> str:
    """The basic profile's action (``tables.files.ACTIONS``); "private" for an odd group, "not_listed" for all the rest.

    Source: PS3.15 Table E.1-1.

    Args:
        tag: group and element in one number, 0xggggeeee.
    """
    if tag & 0x10000:  # PS3.5 7.8: private
        return "private"
    action = _SINGLE.get(tag)
    if action is not None:
        return action
    return next((action for mask, pattern, action in _MASKED if tag & mask == pattern), "not_listed")


class _Actions(dict[int, str]):
    """``action_of``, looked up in C once a tag was met; bounded, since a hostile file makes up tags."""

    def __missing__(self, tag: int) -> str:
        action = action_of(tag)
        if len(self) < 8192:  # more than the dictionary of the standard has
            self[tag] = action
        return action


_ACTIONS = _Actions()
_GONE_ON = {tag: f"{action_of(tag)} {treatment}" for tag, treatment in _GOES_ON.items()}


def count_treatments(tags: Iterable[int], read: Iterable[int]) -> Counter[tuple[str, str]]:
    """How many elements of a file there are by (action, treatment); see ``tables.files.Deidentification``.

    An attribute goes on from where it is read alone: the same one nested elsewhere, as in a sequence of other patient
    numbers, exists no more downstream and counts as removed.

    Args:
        tags: every element of the file, at any depth (``Parsed.tags``).
        read: of these, the ones that stand where ``headers`` and ``pixels`` read: the file meta, the data set itself,
            and of functional groups what was read there.

    Raises:
        ValueError: more elements were read than there are.
    """
    counts = {(action, "removed"): number for action, number in Counter(map(_ACTIONS.__getitem__, tags)).items()}
    # Called once a file: both countings run in C over strings that know their hash; a handful of sums is left.
    for name, number in Counter(map(_GONE_ON.get, read)).items():
        if name is not None:
            action, treatment = name.split(" ")
            if counts.get((action, "removed"), 0) < number:
                raise ValueError("more elements were read than the file has")
            counts[action, "removed"] -= number
            counts[action, treatment] = number
    return Counter({pair: number for pair, number in counts.items() if number})
