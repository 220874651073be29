"""Typed reading of attributes, strict and quiet: a value is what its VR allows, missing, or malformed.

pydicom's conversion is not used here: it warns with the value in the text, and converting all elements of a header
costs as much as parsing it.
"""

import struct
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pydicom import charset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from pipeline.dicom.structure import Element, Part

_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q", "AT": "L"}
_ONE = {(vr, little): struct.Struct("><"[little] + code) for vr, code in _BINARY.items() for little in (False, True)}
_TEXT = frozenset("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
_CHARACTER_SET = "SpecificCharacterSet"


class MalformedError(ValueError):
    """A value is there but not what its VR or its place allows; the text names the keyword alone."""


@lru_cache(maxsize=1024)
def tag_of(keyword: str) -> int:
    """The tag of a keyword of the standard."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag


def has(part: Part, keyword: str) -> bool:
    """Whether the element is there, with a value or without."""
    return tag_of(keyword) in part.elements


def is_empty(part: Part, keyword: str) -> bool:
    """Whether the element is missing, or its value of no length or, as text, blank."""
    element = part.elements.get(tag_of(keyword))
    if element is None or element.length == 0:
        return True
    raw = part.data[element.start : element.start + element.length]
    return _vr(element, keyword) in _TEXT and not raw.strip(b"\0 ")


def texts(part: Part, keyword: str) -> list[str]:
    """The values of a text element, padding removed; [] where there is none.

    Bytes above 127 become U+FFFD: what is read so is compared with vocabularies of ASCII.

    Raises:
        MalformedError: the file gives it a VR that is no text.
    """
    element = part.elements.get(tag_of(keyword))
    if element is None or element.length == 0:
        return []
    if _vr(element, keyword) not in _TEXT:
        raise MalformedError(keyword)
    text = part.data[element.start : element.start + element.length].decode("ascii", "replace")
    return [value.strip("\0 ") for value in text.split("\\")]


def text(part: Part, keyword: str) -> str:
    """The first value of a text element; "" where there is none.

    Raises:
        MalformedError: see ``texts``.
    """
    values = texts(part, keyword)
    return values[0] if values else ""


def numbers(part: Part, keyword: str, *, signed: bool | None = None) -> list[float]:
    """The values of a numeric element, whole ones exact; [] where there is none.

    Args:
        part: the data set.
        keyword: of the element.
        signed: decides where the standard leaves "US or SS" to the Pixel Representation; None: as the file says.

    Raises:
        MalformedError: no number, or of a VR that holds none.
    """
    element = part.elements.get(tag_of(keyword))
    if element is None or element.length == 0:
        return []
    raw = part.data[element.start : element.start + element.length]
    vr = _vr(element, keyword)
    if " or " in vr or (signed is not None and vr in ("US", "SS")):
        vr = "SS" if signed else "US"
    if vr in ("DS", "IS"):
        cells = raw.decode("ascii", "replace").strip("\0 ").split("\\")
        if cells == [""]:
            return []
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            raise MalformedError(keyword) from None
        if any("_" in cell for cell in cells):  # Python's, not PS3.5's
            raise MalformedError(keyword)
        return values
    one = _ONE.get((vr, part.little))
    if one is None or len(raw) % one.size:
        raise MalformedError(keyword)
    return [value for (value,) in one.iter_unpack(raw)]


def number(part: Part, keyword: str) -> float | None:
    """The first value of a numeric element; None where there is none, or no finite one.

    Raises:
        MalformedError: see ``numbers``.
    """
    values = numbers(part, keyword)
    return values[0] if values and np.isfinite(values[0]) else None


def integer(part: Part, keyword: str) -> int | None:
    """The one whole number that an element holds; None where there is none.

    Raises:
        MalformedError: several values, or no whole number.
    """
    values = numbers(part, keyword)
    if not values:
        return None
    if len(values) != 1 or not np.isfinite(values[0]) or values[0] != int(values[0]):
        raise MalformedError(keyword)
    return int(values[0])


def items(part: Part, keyword: str) -> Sequence[Part]:
    """The items of a sequence; () where there is none, or where it could not be walked."""
    return part.items.get(tag_of(keyword), ())


def decoded_text(part: Part, keyword: str) -> tuple[str, bool]:
    """Text in the file's own character set (PS3.5 6.1), and whether that set had to be passed over.

    Plain ASCII means the same in every character set of DICOM, so there a set that is unknown or malformed does no
    harm; anything else without its set could only be guessed.

    Raises:
        MalformedError: not ASCII, and not decodable by the stated sets.
    """
    raw = (part.raw(tag_of(keyword)) or b"").strip(b"\0 ")
    plain = raw.isascii() and b"\x1b" not in raw
    try:
        names = texts(part, _CHARACTER_SET) or [""]
        codecs = [charset.python_encoding[name] for name in names]
    except (MalformedError, KeyError):
        codecs = []
    if plain:
        return raw.decode("ascii"), not codecs
    if not codecs or (names == [""] or names == ["ISO_IR 6"]):  # the default repertoire is ASCII
        raise MalformedError(keyword)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom replaces what it cannot decode, and says so
            return charset.decode_bytes(raw, codecs, set()), False
    except (UserWarning, UnicodeError, LookupError):
        raise MalformedError(keyword) from None


def _vr(element: Element, keyword: str) -> str:
    """The VR that the file states, where it states a usable one; else the dictionary's."""
    return element.vr if element.vr not in (None, "UN") else str(dictionary_VR(tag_of(keyword)))
