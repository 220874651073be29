"""What becomes of one image on its way to the store: the params, and the steps in their fixed order."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.dicom.pixels import describe_voi
from pipeline.dicom.refusal import Quarantine
from pipeline.imaging.geometry import Sampling, place, resample, turn_to_standard
from pipeline.imaging.intensity import (
    NAMED_WINDOWS,
    Grey,
    ModalityImage,
    Percentiles,
    Range,
    VoiRule,
    Window,
    ZScore,
    display_grey,
)
from pipeline.params import StrictParams


class WindowParams(StrictParams):
    """A window in modality units (Hounsfield units for CT), PS3.3 C.11.2.1.2."""

    center: float
    width: float = Field(ge=1.0)


class PercentileParams(StrictParams):
    """From one percentile of each image's values to another."""

    percentiles: list[float] = Field(min_length=2, max_length=2)

    @model_validator(mode="after")
    def _ordered(self) -> "PercentileParams":
        low, high = self.percentiles
        if not 0.0 <= low < high <= 100.0:
            raise ValueError(f"percentiles must be two of 0 to 100, the lower first; got {self.percentiles}")
        return self


class ZScoreParams(StrictParams):
    """Each image's mean plus and minus so many of its standard deviations."""

    z_score: float = Field(gt=0.0, le=100.0)


VoiName = Literal["header", "soft_tissue", "lung", "bone", "brain", "mediastinum"]
VoiParams = VoiName | WindowParams | PercentileParams | ZScoreParams


class PreprocessParams(StrictParams):
    """Section ``preprocess``.

    ``voi``: "header" takes each file's own VOI LUT or window (the range of its values where it has none), a name or
    a centre and width the same for all; ``percentiles`` and ``z_score`` are for modalities without absolute units (MR).
    Three of them become the three channels. ``spacing_mm`` makes pixels of that size, cut or padded to the square; else
    ``fit`` shows the whole image ("pad") or fills the square ("crop"). ``detector_spacing`` lets Imager Pixel Spacing
    stand in where there is no Pixel Spacing (it is up to a third too large: no correction for magnification).
    ``orientation``: "standard" turns images whose header says how they lie to the usual display. ``neighbours``: so
    many slices, by position, are an image's channels (2.5D). ``bits``: of a pixel.
    """

    size_px: int = Field(ge=16, le=2048)
    voi: VoiParams | list[VoiParams]
    spacing_mm: float | None = Field(default=None, gt=0.0, le=100.0)
    detector_spacing: bool = False
    fit: Literal["pad", "crop"] = "pad"
    orientation: Literal["standard", "as_stored"] = "standard"
    neighbours: int = Field(default=1, ge=1, le=15)
    bits: Literal[8, 16] = 8

    @model_validator(mode="after")
    def _channels(self) -> "PreprocessParams":
        if isinstance(self.voi, list) and len(self.voi) != 3:
            raise ValueError(f"voi: one, or three for the three channels; got {len(self.voi)}")
        if self.neighbours % 2 == 0:
            raise ValueError(f"neighbours must be odd, the slice itself in the middle; got {self.neighbours}")
        if isinstance(self.voi, list) and self.neighbours > 1:
            raise ValueError("channels are three windows or neighbouring slices, not both")
        return self

    @property
    def rules(self) -> tuple[VoiRule | None, ...]:
        """What makes each plane of an image; None for the header's VOI."""
        return tuple(_rule(one) for one in (self.voi if isinstance(self.voi, list) else [self.voi]))


def _rule(params: VoiParams) -> VoiRule | None:
    if isinstance(params, WindowParams):
        return Window(params.center, params.width)
    if isinstance(params, PercentileParams):
        return Percentiles(*params.percentiles)
    if isinstance(params, ZScoreParams):
        return ZScore(params.z_score)
    return None if params == "header" else NAMED_WINDOWS[params]


@dataclass(frozen=True)
class Frame:
    """An image to make: its frame in the file, and how its pixels lie.

    ``row_spacing`` and ``column_spacing`` are in millimetres where ``known_mm``, else only their ratio counts.
    """

    image_id: str
    frame: int
    row_spacing: float
    column_spacing: float
    known_mm: bool
    orientation: str | None


def make_image(
    image: ModalityImage, frame: Frame, params: PreprocessParams, max_pixels: int
) -> tuple[dict[str, Any], list[Grey]]:
    """One image's row and planes (size_px, size_px): VOI, polarity, padding, whole numbers, orientation, size.

    Raises:
        Quarantine: invalid_spacing: resampled it would have more than ``max_pixels``.
    """
    turn = turn_to_standard(frame.orientation)
    rows, columns = (image.values if image.index is None else image.index).shape
    row_spacing, column_spacing = frame.row_spacing, frame.column_spacing
    if turn.transposed:
        rows, columns, row_spacing, column_spacing = columns, rows, column_spacing, row_spacing
    sampling = Sampling(params.size_px, params.spacing_mm, params.fit)
    placement = place(rows, columns, sampling, row_spacing, column_spacing)
    if placement.resized_rows * placement.resized_columns > max_pixels:
        raise Quarantine("invalid_spacing", "resampled to preprocess.spacing_mm it would be too large")
    planes, told = [], []
    # Windows are of modality units: colours and files that were windowed already keep their whole range.
    displayed = isinstance(image.voi, Range)
    for rule in params.rules:
        grey, voi = display_grey(image, None if displayed and isinstance(rule, Window) else rule, params.bits)
        planes.append(resample(turn(grey), params.size_px, placement))
        told.append(describe_voi(voi))
    row = {
        "image_id": frame.image_id,
        "voi": "+".join(name for name, _, _ in told),
        "window_center": told[0][1] if len(told) == 1 else None,
        "window_width": told[0][2] if len(told) == 1 else None,
        "inverted": image.inverted,
        **vars(turn),
        **vars(placement),
        "spacing_mm": columns * column_spacing / placement.resized_columns if frame.known_mm else None,
        "pixels_sha256": hashlib.sha256(b"".join(plane.tobytes() for plane in planes)).hexdigest(),
    }
    return row, planes
