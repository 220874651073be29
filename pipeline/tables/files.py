"""Files and what became of them in ``ingest``: the manifest, the images, the exclusions and their reasons."""

from typing import ClassVar

import pyarrow as pa

from pipeline.tables.contract import Table

# Why a file or an image is not used. The first block is ingest's and preprocess's closed list; the second
# belongs to the joint stages, which see labels and other sites.
FILE_REASONS = frozenset(
    """
    bad_character_set burned_in_annotation corrupt_structure decode_error decompression_bomb
    duplicate_sop_uid empty_file inconsistent_geometry invalid_dimensions invalid_rescale invalid_spacing
    localizer missing_file_meta missing_preamble missing_required_tag no_pixel_data non_image_object
    not_dicom pixel_header_mismatch pixel_length_mismatch truncated unreadable unsafe_identifier unsafe_uid
    unsupported_photometric unsupported_pixel_layout unsupported_transfer_syntax
    """.split()
)
# What was repaired, without guessing, in a file that is used; see pipeline/dicom/structure.py and pixels.py.
NOTES = frozenset(
    """
    bad_character_set broken_sequence implicit_file_meta missing_file_meta missing_preamble trailing_padding
    unordered_elements wrong_vr_encoding
    """.split()
)
OUTCOMES = frozenset({"rejected", "quarantined", "unused", "defect"})
# The actions of PS3.15 Table E.1-1, and where an element stands that is not in it.
ACTIONS = frozenset("D Z X K C U Z/D X/Z X/D X/Z/D X/Z/U* not_listed private".split())
IMAGE_REASONS = frozenset(
    {
        "missing_label",
        "conflicting_label",
        "uncertain_label",
        "patient_in_source",
        "patient_withdrawn",
        "near_duplicate",
    }
)
REASONS = FILE_REASONS | IMAGE_REASONS | {"defect"}  # an error of ours, never the file's; to be reported


class Manifest(Table):
    """The files of one site as ``inventory`` found them; the archive itself is no dependency of DVC.

    ``source_id`` is the keyed pseudonym of the path below the site's root. ``modified_ns`` (nanoseconds since
    1970) is null where content is hashed instead; ``source_hmac`` is the keyed hash of the bytes, null where
    it was not asked for. ``size_bytes`` is -1 for what is no readable regular file.
    """

    columns: ClassVar = {
        "source_id": pa.string(),
        "size_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "source_hmac": pa.string(),
    }
    key: ClassVar = ("source_id",)
    required: ClassVar = ("size_bytes",)


class Instances(Table):
    """One row an image (a frame of a SOP instance, or a PNG or JPEG): all that is known of it downstream of ingest.

    ``rows`` and ``columns`` in pixels, spacings in millimetres between centres (Pixel Spacing in the patient,
    Imager Pixel Spacing at the detector: two quantities), ``age_years`` with 90 for all ages above 89, ``day`` in
    days shifted by a keyed offset per patient. ``slice_index`` is the order in the series along the normal,
    ``slice_position_mm`` the distance from its first slice, ``slice_spacing_mm`` the series' median step; null
    where the file gives no position. ``lossy``: the pixels were compressed with loss at some time. ``orientation``: the
    directions in the patient (two of LRPAHF) in which columns and rows increase; null where the file does not say.
    """

    columns: ClassVar = {
        "image_id": pa.string(),
        "source_id": pa.string(),
        "frame": pa.int32(),
        "patient_id": pa.string(),
        "study_id": pa.string(),
        "series_id": pa.string(),
        "site": pa.string(),
        "modality": pa.string(),
        "manufacturer": pa.string(),
        "model": pa.string(),
        "view_position": pa.string(),
        "body_part": pa.string(),
        "sex": pa.string(),
        "age_years": pa.int16(),
        "kvp": pa.float32(),
        "rows": pa.int32(),
        "columns": pa.int32(),
        "bits_stored": pa.int16(),
        "samples_per_pixel": pa.int16(),
        "photometric_interpretation": pa.string(),
        "transfer_syntax": pa.string(),
        "sop_class_uid": pa.string(),
        "laterality": pa.string(),
        "lossy": pa.bool_(),
        "orientation": pa.string(),
        "row_spacing_mm": pa.float32(),
        "column_spacing_mm": pa.float32(),
        "imager_row_spacing_mm": pa.float32(),
        "imager_column_spacing_mm": pa.float32(),
        "slice_thickness_mm": pa.float32(),
        "slice_index": pa.int32(),
        "slice_position_mm": pa.float32(),
        "slice_spacing_mm": pa.float32(),
        "day": pa.int32(),
        "source_hmac": pa.string(),
    }
    key: ClassVar = ("image_id",)
    required: ClassVar = (
        "source_id",
        "frame",
        "patient_id",
        "study_id",
        "site",
        "rows",
        "columns",
        "source_hmac",
    )
    vocabulary: ClassVar = {"sex": frozenset({"F", "M", "O"}), "laterality": frozenset({"L", "R", "B", "U"})}


class Exclusions(Table):
    """Files that go no further: at which stage and why; ``detail`` quotes no header value.

    ``outcome``: rejected (cannot be used as it is), quarantined (readable, but a person or a policy must decide),
    unused (a good file without a use in this study), defect (an error of ours over it). ``duplicate_of`` is the
    source that was kept in the place of a byte-identical copy.
    """

    columns: ClassVar = {
        "source_id": pa.string(),
        "stage": pa.string(),
        "site": pa.string(),
        "outcome": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "duplicate_of": pa.string(),
    }
    key: ClassVar = ("source_id", "stage", "site")
    required: ClassVar = ("outcome", "reason")
    vocabulary: ClassVar = {"outcome": OUTCOMES, "reason": REASONS}


class Notes(Table):
    """What was repaired in files that are used, counted in files; ``commands.inspect`` tells it of one."""

    columns: ClassVar = {"site": pa.string(), "note": pa.string(), "num_files": pa.int64()}
    key: ClassVar = ("site", "note")
    required: ClassVar = ("num_files",)
    vocabulary: ClassVar = {"note": NOTES}


class Deidentification(Table):
    """What of the accepted files' headers went on, counted by the action that PS3.15 Table E.1-1 asks for.

    ``treatment``: removed (does not exist downstream), replaced (a pseudonym, a shifted day, a capped age, a term
    of a vocabulary), kept (a number or a code of the standard).
    """

    columns: ClassVar = {
        "site": pa.string(),
        "action": pa.string(),
        "treatment": pa.string(),
        "num_elements": pa.int64(),
        "num_files": pa.int64(),
    }
    key: ClassVar = ("site", "action", "treatment")
    required: ClassVar = ("num_elements", "num_files")
    vocabulary: ClassVar = {"action": ACTIONS, "treatment": frozenset({"removed", "replaced", "kept"})}
