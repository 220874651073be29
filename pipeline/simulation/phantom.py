"""A schematic chest: attenuation summed along the beam, in patient coordinates.

Coordinates are millimetres from the middle of the field, x to the viewer's right (the patient's left), y
downwards. Attenuation has arbitrary units in which the mediastinum has about 1. Everything is float64: sums
in another order or on another processor then differ too little to change a stored value, and the demo's
hashes are the same on all machines.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]

NUM_WAVES = 24  # of the lung texture


@dataclass(frozen=True)
class Anatomy:
    """What a patient keeps over all studies; lengths in mm."""

    chest: float  # half-width of the trunk
    lung_height: float  # half of it
    heart: float  # half-width
    heart_tilt: float  # radians
    mediastinum: float  # half-width
    dome: float  # height of the diaphragm's dome
    rib_spacing: float
    rib_phase: float
    rib_strength: float
    clavicle_tilt: float
    fat: float  # attenuation beyond an average trunk's
    waves: Plane  # (NUM_WAVES, 4): wave numbers along x and y (1/mm), phase, amplitude


@dataclass(frozen=True)
class Pose:
    """What changes from exposure to exposure; lengths in mm."""

    shift_x: float
    shift_y: float
    lean: float  # sideways per mm downwards: a shear, so that all that depends on y alone stays cheap
    breath: float  # diaphragm below (+) or above its usual place
    heart_scale: float  # the heart is nearer to the tube in AP, hence larger


@dataclass(frozen=True)
class Opacity:
    """The finding: a soft round density of ``radius_mm`` (standard deviation) in one lung.

    ``across`` (-1 medial to 1 lateral) and ``along`` (-1 apex to 1 base) are relative to that lung's axes.
    """

    side: int  # -1 viewer's left, 1 viewer's right
    across: float
    along: float
    radius_mm: float
    attenuation: float


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient's chest."""
    wave_number = 2 * math.pi / np.exp(rng.uniform(math.log(7.0), math.log(60.0), NUM_WAVES))
    angle = rng.uniform(0, math.pi, NUM_WAVES)
    waves = np.stack(
        [
            wave_number * np.cos(angle),
            wave_number * np.sin(angle),
            rng.uniform(0, 2 * math.pi, NUM_WAVES),
            # Finer structure is fainter, as of vessels that branch.
            np.sqrt(0.0004 / wave_number / NUM_WAVES),
        ],
        axis=1,
    )
    return Anatomy(
        chest=rng.normal(158, 9),
        lung_height=rng.normal(132, 8),
        heart=rng.normal(58, 6),
        heart_tilt=rng.normal(0.6, 0.1),
        mediastinum=rng.normal(25, 2.5),
        dome=rng.normal(30, 5),
        rib_spacing=rng.normal(25, 1.5),
        rib_phase=rng.uniform(0, 1),
        rib_strength=rng.normal(0.085, 0.012),
        clavicle_tilt=rng.normal(0.14, 0.05),
        fat=rng.normal(0, 0.06),
        waves=waves,
    )


def draw_pose(rng: np.random.Generator, *, frontal_beam: bool) -> Pose:
    """Positioning and breath of one exposure; ``frontal_beam`` for AP."""
    return Pose(
        shift_x=rng.normal(0, 5),
        shift_y=rng.normal(0, 5),
        lean=rng.normal(0, 0.025),
        breath=rng.normal(-8 if frontal_beam else 0, 5),
        heart_scale=1.1 if frontal_beam else 1.0,
    )


def draw_opacity(rng: np.random.Generator, radius_mm: float, attenuation: float) -> Opacity:
    """Where a study's opacity is: anywhere in either lung but its edges; the size varies by about 15 %."""
    return Opacity(
        side=1 if rng.random() < 0.5 else -1,
        across=rng.uniform(-0.25, 0.55),
        along=rng.uniform(-0.55, 0.35),
        radius_mm=radius_mm * math.exp(rng.normal(0, 0.15)),
        attenuation=attenuation,
    )


def render(anatomy: Anatomy, pose: Pose, opacity: Opacity, shape: tuple[int, int], spacing_mm: float) -> Plane:
    """The attenuation of one exposure.

    Args:
        anatomy: the patient's.
        pose: the exposure's.
        opacity: the study's; always there, of an attenuation that may be next to 0.
        shape: rows and columns.
        spacing_mm: between pixel centres, the same along both axes.

    Returns:
        (rows, columns), at least 0, about 1 in the mediastinum.
    """
    x, y = _patient_coordinates(pose, shape, spacing_mm)
    away = np.abs(x)

    shoulders = _step((y + 150) / 9)
    half_width = 52 + (anatomy.chest + 12 - 52) * shoulders - 0.04 * (y + 60)
    thickness = np.sqrt(np.clip(1 - (x / half_width) ** 2, 0, None))
    trunk = (0.62 + anatomy.fat) * thickness * (0.8 + 0.2 * shoulders)

    across, along, centre, half_lung = _lung_axes(anatomy, away, y)
    lung_edge = (1 - np.sqrt(across**2 + along**2)) * half_lung
    # The right half of the diaphragm (viewer's left) stands higher, above the liver.
    floor = 82 + pose.breath - 7 * (x < 0) - anatomy.dome * (1 - ((away - centre) / (half_lung * 1.15)) ** 2)
    above_diaphragm = _step((floor + anatomy.dome - y) / 2.0)
    heart = _heart(anatomy, pose, x, y)
    knob = np.exp(-(((x - anatomy.mediastinum) / 13) ** 2)) * np.exp(-(((y + 62) / 16) ** 2))
    middle = _step((anatomy.mediastinum + 6 * np.tanh((y - 20) / 60) - away) / 4)
    air = _step(lung_edge / 3.5) * above_diaphragm * (1 - heart) * (1 - middle) * (1 - 0.8 * knob)
    hilum = np.exp(-(((away - 42) / 20) ** 2)) * np.exp(-(((y + 12) / 34) ** 2))
    markings = _texture(anatomy, pose, shape, spacing_mm) * (0.5 + 1.3 * hilum) + 0.13 * hilum

    chest_wall = _step((lung_edge + 7) / 3.5) * _step((y + 0.62 * anatomy.lung_height + 62) / 8)
    bones = _ribs(anatomy, away, y) * chest_wall * (0.35 + 0.65 * above_diaphragm)
    bones += _clavicle(anatomy, away, y) + _spine(away, y) * (thickness > 0)
    trachea = 0.2 * _step((8 - np.abs(x + 2)) / 1.5) * _step((-48 - y) / 6)

    size = (1 - 0.68 * air) * trunk + 0.2 * middle * shoulders + 0.16 * heart * (0.4 + 0.6 * above_diaphragm)
    size += 0.1 * (1 - above_diaphragm) * (thickness > 0) * (1 - middle)
    total = size + (bones - trachea) * thickness + air * markings
    total += opacity.attenuation * _blob(anatomy, opacity, x, y)
    return np.clip(total, 0, None)


def opacity_centre_mm(anatomy: Anatomy, opacity: Opacity) -> tuple[float, float]:
    """(x, y) of an opacity in patient coordinates."""
    along = opacity.along * anatomy.lung_height - 18
    _, _, centre, half_lung = _lung_axes(anatomy, np.zeros(1), np.array([along]))
    return opacity.side * float(centre[0] + opacity.across * half_lung[0]), along


def opacity_centre_px(
    anatomy: Anatomy, pose: Pose, opacity: Opacity, shape: tuple[int, int], spacing_mm: float
) -> tuple[float, float]:
    """(row, column) of an opacity's centre in the image: the inverse of ``render``'s coordinates."""
    x, y = opacity_centre_mm(anatomy, opacity)
    column = (x - pose.lean * y + pose.shift_x) / spacing_mm + (shape[1] - 1) / 2
    row = (y + pose.shift_y) / spacing_mm + (shape[0] - 1) / 2
    return row, column


def _patient_coordinates(pose: Pose, shape: tuple[int, int], spacing_mm: float) -> tuple[Plane, Plane]:
    """x, (rows, columns), and y, (rows, 1), of all pixels in mm."""
    down = (_centred(shape[0], spacing_mm) - pose.shift_y)[:, None]
    right = (_centred(shape[1], spacing_mm) - pose.shift_x)[None, :]
    return right + pose.lean * down, down


def _centred(count: int, spacing_mm: float) -> Plane:
    """Pixel centres along one axis, in mm from the middle."""
    return (np.arange(count, dtype=np.float64) - (count - 1) / 2) * spacing_mm


def _step(scaled_distance: Plane) -> Plane:
    """The logistic function, 0 to 1: a soft edge. By tanh, as SciPy's expit takes three times as long."""
    return 0.5 + 0.5 * np.tanh(0.5 * scaled_distance)


def _lung_axes(anatomy: Anatomy, away: Plane, y: Plane) -> tuple[Plane, Plane, Plane, Plane]:
    """Position relative to the lung's axes (across, along), the lung's middle and half-width at y (mm)."""
    along = (y + 18) / anatomy.lung_height
    half_lung = anatomy.chest * (0.385 + 0.06 * np.tanh(1.5 * along))
    centre = anatomy.chest * (0.47 + 0.045 * np.tanh(1.5 * along))
    return (away - centre) / half_lung, along, centre, half_lung


def _heart(anatomy: Anatomy, pose: Pose, x: Plane, y: Plane) -> Plane:
    long, short = anatomy.heart * pose.heart_scale * 1.15, anatomy.heart * pose.heart_scale * 0.82
    cos, sin = math.cos(anatomy.heart_tilt), math.sin(anatomy.heart_tilt)
    dx, dy = x - 24, y - 42 - 0.5 * pose.breath
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return _step((1 - np.sqrt((along / long) ** 2 + (across / short) ** 2)) * short / 3.5)


def _ribs(anatomy: Anatomy, away: Plane, y: Plane) -> Plane:
    """Posterior ribs that fall sideways and, fainter, anterior ones that fall towards the middle."""
    fall = away / anatomy.chest
    posterior = (
        y + 18 - 81 * (fall - 0.35) ** 2 * (1 - 0.5 * fall) - 20 * fall
    ) / anatomy.rib_spacing + anatomy.rib_phase
    anterior = (y + 62 * fall - 34 * fall**2) / (1.15 * anatomy.rib_spacing) + anatomy.rib_phase
    return anatomy.rib_strength * (_band(posterior, 0.055) + 0.55 * _band(anterior, 0.07))


def _band(phase: Plane, variance: float) -> Plane:
    """A bone's profile, a parabola cut at 0, once for each whole number of ``phase``."""
    distance = phase - np.rint(phase)
    return np.clip(1 - distance**2 / variance, 0, None)


def _clavicle(anatomy: Anatomy, away: Plane, y: Plane) -> Plane:
    line = y + 116 + anatomy.clavicle_tilt * (away - 20) - away * (88 - away) * (176 - away) / 20_000
    return 0.13 * np.clip(1 - (line / 6.5) ** 2, 0, None) * _step((away - 18) / 3) * _step((138 - away) / 6)


def _spine(away: Plane, y: Plane) -> Plane:
    return 0.1 * _step((15 - away) / 2) * (1 + 0.35 * np.cos(2 * math.pi * y / 23))


def _texture(anatomy: Anatomy, pose: Pose, shape: tuple[int, int], spacing_mm: float) -> Plane:
    """Plane waves, as products of one axis each: sin(a + b) = sin a cos b + cos a sin b. They do not lean.

    By einsum, as a matrix product would wake the BLAS threads, which then spin and steal a core.
    """
    across, down, phase, amplitude = anatomy.waves.T
    x, y = _centred(shape[1], spacing_mm) - pose.shift_x, _centred(shape[0], spacing_mm) - pose.shift_y
    a, b = y[:, None] * down + phase, x[:, None] * across
    rows = np.concatenate([amplitude * np.sin(a), amplitude * np.cos(a)], axis=1)
    columns = np.concatenate([np.cos(b), np.sin(b)], axis=1)
    return np.einsum("iw,jw->ij", rows, columns)


def _blob(anatomy: Anatomy, opacity: Opacity, x: Plane, y: Plane) -> Plane:
    centre_x, centre_y = opacity_centre_mm(anatomy, opacity)
    return np.exp(-0.5 * ((x - centre_x) ** 2 + (y - centre_y) ** 2) / opacity.radius_mm**2)
