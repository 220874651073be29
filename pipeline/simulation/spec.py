"""What a simulated hospital is made of: patients, disease, detector, encoding and mishaps."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params import Fraction, Seed, StrictParams

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Tag = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]{1,11}$")]

# An adult chest film is about 350 x 430 mm; outside this range there is nothing to read or mostly air.
FIELD_MM = (300.0, 520.0)


class Simulate(StrictParams):
    """The section ``simulate``: what all simulated hospitals share."""

    seed: Seed


class SimulatedSite(StrictParams):
    """The section ``sites.NAME.simulate``.

    Disease. ``prevalence`` is per patient. ``d_prime`` separates the latent severity z of sick and healthy
    (z given the label y is normal with mean d_prime * y and variance 1). ``contrast`` is the attenuation that
    the densest opacity adds (the mediastinum has about 1), ``radius_mm`` an opacity's size (the standard
    deviation of its profile).

    Detector. ``vendor`` and ``model`` are tags, written as "SIMULATED ALPHA" and "ALPHA-DR1" so that nothing
    passes for a real device. ``noise`` is the standard deviation in units of full scale, ``blur_mm`` that of
    the point spread, ``gamma`` the exponent of the detector curve which no lookup table undoes.

    Encoding. ``modality`` other than none makes CR objects, as the DX IOD fixes rescaling to the identity
    (PS3.3 C.8.11.3).

    Shortcut. A bright mark is burnt into a corner with probability ``marker_positive`` where the label is 1
    and ``marker_negative`` where it is 0.

    Mishaps. ``bad_share`` bad files per good image, at least one of each kind; 0 for none.
    """

    patients: Annotated[int, Field(ge=4, le=100_000)] = 120
    prevalence: Fraction
    d_prime: Annotated[float, Field(gt=0.0, le=6.0)] = 2.4
    contrast: Annotated[float, Field(gt=0.0, le=2.0)] = 0.5
    radius_mm: Annotated[float, Field(ge=8.0, le=50.0)] = 22.0
    vendor: Tag = "ALPHA"
    model: Tag = "DR1"
    rows: Annotated[int, Field(ge=128, le=1024)] = 192
    columns: Annotated[int, Field(ge=128, le=1024)] = 176
    pixel_spacing_mm: Annotated[float, Field(ge=0.2, le=4.0)] = 2.2
    bits_stored: Annotated[int, Field(ge=10, le=16)] = 12
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2"
    modality: Literal["none", "rescale", "lut"] = "none"
    voi: Literal["linear", "sigmoid", "lut"] = "linear"
    transfer_syntax: Literal["explicit_little", "implicit_little", "rle", "jpeg_lossless", "jpeg2000"] = (
        "explicit_little"
    )
    noise: Annotated[float, Field(ge=0.0, le=0.3)] = 0.01
    blur_mm: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    gamma: Annotated[float, Field(ge=0.3, le=3.0)] = 1.0
    marker_positive: Probability = 0.0
    marker_negative: Probability = 0.0
    bad_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05

    @model_validator(mode="after")
    def _shows_a_chest(self) -> Self:
        for side in ("rows", "columns"):
            field_mm = getattr(self, side) * self.pixel_spacing_mm
            if not FIELD_MM[0] <= field_mm <= FIELD_MM[1]:
                raise ValueError(
                    f"{side} x pixel_spacing_mm must be {FIELD_MM[0]:.0f} to {FIELD_MM[1]:.0f} mm to show a chest, "
                    f"not {field_mm:.0f} mm"
                )
        return self

    @model_validator(mode="after")
    def _lut_input_is_whole(self) -> Self:
        if self.modality == "rescale" and self.voi == "lut":
            # Rescaled values start below 0 here, and the sign of a LUT's first mapped value (US or SS) cannot
            # be told in the implicit transfer syntax, PS3.5 A.1.
            raise ValueError("voi: lut goes with modality: none or lut, not with rescale")
        return self
