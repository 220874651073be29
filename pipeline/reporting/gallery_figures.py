"""The failure gallery's figures: of each image the picture as stored, and beside it the picture under its map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.reporting import cells
from pipeline.reporting.figures import MUTED, Sheet
from pipeline.reporting.study import Row, Study, label
from pipeline.tables.gallery import MISTAKES

DPI = 120  # pictures are what makes a page large: at the other figures' 160 it would pass 10 MB with four hospitals
_WIDTH, _NAMES, _LARGEST = 10.4, 1.25, 1.1  # inches: the sheet, the words at its left, a picture
_LINE, _GAP = 0.2, 0.12  # above each row of pictures, and between pairs
_OPAQUE = 0.6  # of the map where it is largest
_COLOURS = "inferno"
_GROUP_INK = {True: "#a63c00", False: "#00664b"}


@dataclass(frozen=True)
class Exhibit:
    """An image (H, W) uint8 with its row of ``tables.gallery.Gallery``, and its map (H, W) uint8, if it has one."""

    row: Row
    image: NDArray[np.uint8]
    map: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Wall:
    """What one gallery shows of one finding and hospital: by kind of call, the most confident first."""

    gallery: str
    finding: str
    site: str
    exhibits: Mapping[str, Sequence[Exhibit]]


def gallery(study: Study, wall: Wall) -> Figure:
    """A row a kind of call; of each image the picture, and the picture under its map."""
    most = max(len(shown) for shown in wall.exhibits.values())
    side = min(_LARGEST, (_WIDTH - _NAMES - 0.1 - most * _GAP) / (2 * most))
    pitch = side + _LINE + 0.1
    where = "Home" if wall.site in study.sources else "Elsewhere"
    sheet = Sheet(
        _WIDTH,
        len(wall.exhibits) * pitch + 0.25,
        f"{where}: {label(wall.site)}. The most confident calls: {label(wall.finding)}",
        "Left: as the network sees it. Right: what spoke for the call (Grad-CAM), bright where most. p: probability.",
        study.not_imagenet,
    )
    for line, (kind, shown) in enumerate(wall.exhibits.items()):
        top = line * pitch
        middle = sheet.head + top + _LINE + side / 2
        ink = _GROUP_INK[kind in MISTAKES]
        for lift, words in zip((-0.09, 0.09), label(kind).capitalize().split(" ", 1), strict=True):
            sheet.text(_NAMES - 0.12, middle + lift, words, ha="right", va="center", weight="bold", color=ink)
        for column, exhibit in enumerate(shown):
            left = _NAMES + column * (2 * side + _GAP)
            number, chance = (cells.shown(exhibit.row, name, study.min_cell) for name in ("rank", "probability"))
            sheet.text(left, sheet.head + top + _LINE - 0.03, f"{number}   p {chance}", size=8, va="bottom")
            for place, picture in enumerate((exhibit.image, overlay(exhibit.image, exhibit.map))):
                axes = sheet.axes(left + place * side, top + _LINE, side - 0.03, side - 0.03)
                axes.axis("off")
                if picture is None:
                    axes.text(0.5, 0.5, "no map", ha="center", va="center", color=MUTED, transform=axes.transAxes)
                else:
                    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    return sheet.figure


def overlay(image: NDArray[np.uint8], shown: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8: the map's colour over the grey image, the more opaque the larger the map; None without a map."""
    if shown is None or not shown.any():
        return None
    share = shown[..., None].astype(np.float64) / 255.0
    colours = colormaps[_COLOURS](shown)[..., :3] * 255.0
    return np.rint(image[..., None] * (1.0 - _OPAQUE * share) + colours * _OPAQUE * share).astype(np.uint8)
