"""From attenuation to stored values: the detector, a mark burnt in, polarity, and the tables to undo it all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.simulation.phantom import Plane
from pipeline.simulation.spec import SimulatedSite

# The signal's darkest and brightest place within the range of values behind the modality LUT.
DARKEST, BRIGHTEST = 0.03, 0.9
RESCALE_SLOPE, RESCALE_INTERCEPT = 2.0, -256.0  # negative values behind it, as real archives have
MODALITY_LUT_BEND = 4.0  # of a logarithmic curve
# Attenuation to signal: an opacity on top of the heart still shows, thinner.
SATURATION, FULL_SCALE = 1.3, 0.9
MARKER_MARGIN_MM, MARKER_HEIGHT_MM, MARKER_WIDTH_MM, MARKER_STROKE_MM = 14.0, 30.0, 20.0, 6.0


@dataclass(frozen=True)
class Encoding:
    """What goes into the pixel elements of one object, PS3.3 C.11.1 and C.11.2.

    ``stored`` is (rows, columns) uint16. ``modality_table`` maps 0, 1, ... to 16 bits; None where slope and
    intercept do. Exactly one of window (centre, width) and ``voi_table`` is there; the
    latter maps modality values 0, 1, ... to 16 bits.
    """

    stored: NDArray[np.uint16]
    modality_table: NDArray[np.uint16] | None
    slope: float
    intercept: float
    window: tuple[float, float] | None
    voi_table: NDArray[np.uint16] | None


def opacity_attenuation(severity: float, spec: SimulatedSite) -> float:
    """How dense an opacity with latent z is: a strictly increasing function of z, from 0 to ``contrast``.

    Its steepest part lies half-way between the classes, so that most healthy images show next to nothing.
    """
    return spec.contrast / (1.0 + float(np.exp(-2.0 * (severity - spec.d_prime / 2))))


def expose(attenuation: Plane, spec: SimulatedSite, rng: np.random.Generator) -> Plane:
    """The detector's signal, (rows, columns) float64 in 0..1, bright where the body is dense."""
    signal = (1 - np.exp(-SATURATION * attenuation)) / FULL_SCALE
    if spec.blur_mm > 0:
        signal = gaussian_filter(signal, spec.blur_mm / spec.pixel_spacing_mm, truncate=3.0)
    if spec.noise > 0:
        signal = signal + rng.normal(0.0, spec.noise, signal.shape)
    signal = np.clip(signal, 0.0, 1.0)
    return signal if spec.gamma == 1.0 else signal**spec.gamma


def burn_marker(signal: Plane, spacing_mm: float) -> Plane:
    """A copy with an L and a bar under it in the top right corner, at full brightness.

    Drawn behind the detector, so that neither blur nor noise touches it.
    """
    margin, height, width, stroke = (
        max(round(length / spacing_mm), 1)
        for length in (MARKER_MARGIN_MM, MARKER_HEIGHT_MM, MARKER_WIDTH_MM, MARKER_STROKE_MM)
    )
    marked = signal.copy()
    right, bottom = signal.shape[1] - margin, margin + height
    left = right - width
    marked[margin:bottom, left : left + stroke] = 1.0
    marked[bottom - stroke : bottom, left:right] = 1.0
    marked[bottom + stroke : bottom + 2 * stroke, left:right] = 1.0
    return marked


def encode(signal: Plane, spec: SimulatedSite) -> Encoding:
    """Stored values and tables such that modality LUT, VOI LUT and polarity bring ``signal`` back to the screen.

    Args:
        signal: (rows, columns) float64 in 0..1, 1 is white.
        spec: how this site stores it.
    """
    top = 2**spec.bits_stored - 1
    slope, intercept = (RESCALE_SLOPE, RESCALE_INTERCEPT) if spec.modality == "rescale" else (1.0, 0.0)
    # MONOCHROME1: the lowest value is white, after the VOI LUT; PS3.3 C.7.6.3.1.2.
    bright_is_high = signal if spec.photometric == "MONOCHROME2" else 1.0 - signal
    # As a share of the range of values behind the modality LUT.
    place = DARKEST + (BRIGHTEST - DARKEST) * bright_is_high
    modality_table, modality_top = None, top
    if spec.modality == "lut":
        modality_top = 65535
        steps = np.linspace(0.0, 1.0, top + 1)
        modality_table = np.rint(modality_top * np.log1p(MODALITY_LUT_BEND * steps) / np.log1p(MODALITY_LUT_BEND))
        place = np.expm1(place * np.log1p(MODALITY_LUT_BEND)) / MODALITY_LUT_BEND
    darkest, brightest = (slope * modality_top * end + intercept for end in (DARKEST, BRIGHTEST))
    return Encoding(
        stored=np.rint(top * place).astype(np.uint16),
        modality_table=None if modality_table is None else modality_table.astype(np.uint16),
        slope=slope,
        intercept=intercept,
        window=None if spec.voi == "lut" else (round((darkest + brightest) / 2, 1), round(brightest - darkest, 1)),
        voi_table=_s_curve(darkest, brightest, modality_top) if spec.voi == "lut" else None,
    )


def _s_curve(darkest: float, brightest: float, top: int) -> NDArray[np.uint16]:
    """A VOI LUT over 0..top, steepest in the middle; point-symmetric, hence the same for both polarities."""
    place = np.clip((np.arange(top + 1) - darkest) / (brightest - darkest), 0.0, 1.0)
    return np.rint(65535 * (0.4 * place + 0.6 * place**2 * (3 - 2 * place))).astype(np.uint16)
