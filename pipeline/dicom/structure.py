"""The structure of a DICOM file, walked once, without recursion, within budgets: where each element lies.

No value is converted here and nothing is trusted: every length is compared with the bytes that are there, nesting and
the number of elements are bounded, and a deflated file is inflated no further than allowed. Encoding: PS3.5 section 7
(elements, items, sequences), A.4 (encapsulated pixel data), 6.2.2 (UN); PS3.10 section 7 (file meta).
"""

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from pipeline.dicom.refusal import Refusal

MAX_DEPTH = 64
MAX_ELEMENTS = 1_000_000  # about two seconds of walking

UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX = 0x00020010
_SOP_CLASS = 0x00080016
PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # Float, Double Float, PixelData

_LONG = {vr.encode(): vr for vr in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")}
_SHORT = {
    vr.encode(): vr
    for vr in (
        "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
    )
}  # fmt: skip

_TAG_LENGTH = {True: struct.Struct("<HHL").unpack_from, False: struct.Struct(">HHL").unpack_from}
_EXPLICIT = {True: struct.Struct("<HH2sH").unpack_from, False: struct.Struct(">HH2sH").unpack_from}
_ULONG = {True: struct.Struct("<L").unpack_from, False: struct.Struct(">L").unpack_from}


class Element(NamedTuple):
    """Where an element's value lies in its part's bytes; ``vr`` is None where neither file nor dictionary says."""

    vr: str | None
    start: int
    length: int  # bytes of the value, without delimiters


@dataclass(frozen=True)
class Part:
    """The elements of one data set: the file's own, or a sequence item's; values are slices of ``data``.

    Attributes:
        data: what the positions refer to.
        elements: by tag.
        little: little endian.
        items: by tag of a sequence, its items.
    """

    data: bytes
    elements: dict[int, Element]
    little: bool
    items: dict[int, list["Part"]] = field(default_factory=dict)

    def raw(self, tag: int) -> bytes | None:
        """The bytes of a value; None where the element is not there."""
        element = self.elements.get(tag)
        return None if element is None else self.data[element.start : element.start + element.length]


@dataclass(frozen=True)
class Parsed:
    """A file's structure.

    Attributes:
        meta: group 0002; without elements where the file has none.
        main: the data set.
        transfer_syntax: as the file meta says, or as the bytes show where it says nothing.
        fragments: (start, length) of the items of encapsulated pixel data, the offset table first; None where
            the pixel data is native or there is none.
        tags: every element met, nested ones too, in the order of the file.
        notes: what was repaired (``tables.files.NOTES``).
    """

    meta: Part
    main: Part
    transfer_syntax: UID
    fragments: list[tuple[int, int]] | None
    tags: list[int]
    notes: frozenset[str]


def parse_structure(content: bytes, max_bytes: int) -> Parsed:
    """Walk a whole file.

    Args:
        content: the file.
        max_bytes: what a deflated file may inflate to.

    Raises:
        Refusal: empty_file, not_dicom, truncated, corrupt_structure, decompression_bomb, missing_file_meta.
    """
    if not content:
        raise Refusal("empty_file")
    if content[128:132] == b"DICM":
        try:
            return _parse_part10(content, 132, set(), max_bytes)
        except _NoDataSetError:
            raise Refusal("corrupt_structure", "no data set after the file meta") from None
    # Without a preamble nothing but the data itself says that this is DICOM: the claim is taken back unless a
    # SOP class is found.
    notes = {"missing_preamble"}
    try:
        parsed = _parse_part10(content, 4 if content[:4] == b"DICM" else 0, notes, max_bytes)
    except _NoDataSetError:
        raise Refusal("not_dicom", "neither a DICM prefix nor a data set at the start") from None
    except Refusal:
        if not _starts_like_dicom(content):
            raise Refusal("not_dicom", "neither a DICM prefix nor a data set at the start") from None
        raise
    if _SOP_CLASS not in parsed.main.elements:
        raise Refusal("not_dicom", "no DICM prefix and no SOP class")
    return parsed


class _NoDataSetError(Exception):
    """The bytes do not begin as a data set does."""


class _BudgetRefusal(Refusal):
    """Too much to walk, wherever in the file."""


def _starts_like_dicom(content: bytes) -> bool:
    """A DICM prefix, or a first element of group 0002 or 0008 with a value representation as PS3.5 has them."""
    return content[:4] == b"DICM" or (
        content[:2] in (b"\x02\0", b"\x08\0") and content[4:6] in (_SHORT.keys() | _LONG.keys())
    )


def _parse_part10(content: bytes, start: int, notes: set[str], max_bytes: int) -> Parsed:
    tags: list[int] = []
    meta, position = _walk_meta(content, start, tags, notes)
    stated = meta.raw(_TRANSFER_SYNTAX)
    name = (stated or b"").split(b"\0")[0].strip().decode("ascii", "replace")
    data, syntax = content, UID(name, validation_mode=IGNORE)
    if not name:
        notes.add("missing_file_meta")
    if syntax == DeflatedExplicitVRLittleEndian:
        data, position = _inflate(content[position:], max_bytes, notes), 0
    implicit, little = _encoding(data, position, syntax if name else None, notes)
    if not name:
        syntax = UID(ImplicitVRLittleEndian if implicit else "1.2.840.10008.1.2.1" if little else ExplicitVRBigEndian)
    walk = _Walk(data, little, tags, notes)
    main = walk.data_set(position, implicit)
    if not name and walk.fragments is not None:
        raise Refusal("missing_file_meta", "encapsulated pixel data, and no transfer syntax says by which codec")
    return Parsed(meta, main, syntax, walk.fragments, tags, frozenset(notes))


def _walk_meta(content: bytes, start: int, tags: list[int], notes: set[str]) -> tuple[Part, int]:
    """Group 0002, explicit little endian whatever follows (PS3.10 7.1), and where it ends.

    Its group length is often wrong and never needed.
    """
    elements: dict[int, Element] = {}
    position = start
    while content[position : position + 2] == b"\x02\0":
        if len(content) - position < 8:
            raise Refusal("truncated", "the file ends inside the file meta")
        _, number, code, length = _EXPLICIT[True](content, position)
        value = position + 8
        if code in _LONG:
            if len(content) - position < 12:
                raise Refusal("truncated", "the file ends inside the file meta")
            length, value = _ULONG[True](content, position + 8)[0], position + 12
        elif code not in _SHORT:
            # Some writers encode the file meta as the data set; the lengths then stand in the place of the VR.
            length = _ULONG[True](content, position + 4)[0]
            notes.add("implicit_file_meta")
        if value + length > len(content):
            raise Refusal("truncated", "the file ends inside the file meta")
        tag = 0x00020000 | number
        elements[tag] = Element(_SHORT.get(code) or _LONG.get(code), value, length)
        tags.append(tag)
        position = value + length
    return Part(content, elements, True), position


def _inflate(deflated: bytes, max_bytes: int, notes: set[str]) -> bytes:
    """A deflated data set (PS3.5 A.5), no further than ``max_bytes``."""
    # Twice: first to see how much it is, in pieces that are dropped, since a bomb's first gigabyte is one already.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size, remaining = 0, deflated
    try:
        while not inflater.eof:
            piece = inflater.decompress(remaining, 2**20)
            size, remaining = size + len(piece), inflater.unconsumed_tail
            if size > max_bytes:
                raise Refusal("decompression_bomb", f"inflates to more than {max_bytes} bytes")
            if not piece and not remaining and not inflater.eof:
                raise Refusal("truncated", "the deflated data set breaks off")
        data = zlib.decompress(deflated[: len(deflated) - len(inflater.unused_data)], -zlib.MAX_WBITS, max(size, 1))
    except zlib.error:
        raise Refusal("corrupt_structure", "the deflated data set is broken") from None
    # Some writers end the stream as gzip does, RFC 1952: CRC-32 and size.
    trailer = struct.pack("<LL", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    if inflater.unused_data.strip(b"\0") and not inflater.unused_data.startswith(trailer):
        raise Refusal("corrupt_structure", "bytes after the deflated data set")
    if len(inflater.unused_data) > 1:  # one pads to an even length
        notes.add("trailing_padding")
    return data


def _encoding(data: bytes, position: int, stated: UID | None, notes: set[str]) -> tuple[bool, bool]:
    """(implicit, little endian): as stated, but the bytes of the first element have the last word.

    A VR is two capital letters; as a length they would mean a first value of over 16 kB, which none has.
    """
    if len(data) - position < 8:
        if stated is None:
            raise _NoDataSetError
        if position == len(data):
            raise Refusal("truncated", "the file ends after the file meta")
        raise Refusal("truncated", "the file ends inside an element")
    found_implicit = data[position + 4 : position + 6] not in _SHORT and data[position + 4 : position + 6] not in _LONG
    if stated is not None:
        implicit, little = stated == ImplicitVRLittleEndian, stated != ExplicitVRBigEndian
        if found_implicit != implicit and _plausible(data, position, found_implicit, little):
            notes.add("wrong_vr_encoding")
            implicit = found_implicit
        return implicit, little
    for little in (True, False):
        if _plausible(data, position, found_implicit, little) and (little or not found_implicit):
            return found_implicit, little
    raise _NoDataSetError


def _plausible(data: bytes, position: int, implicit: bool, little: bool) -> bool:
    """Whether a data set may begin here: group 0008 (0004: a DICOMDIR), and a value that ends inside the data."""
    group, _, length = _TAG_LENGTH[little](data, position)
    if group not in (4, 8):
        return False
    return not implicit or length <= len(data) - position - 8


class _Walk:
    """One pass over a data set; nothing recurses, whatever the file nests."""

    def __init__(self, data: bytes, little: bool, tags: list[int], notes: set[str]) -> None:
        self.data, self.little, self.tags, self.notes = data, little, tags, notes
        self.fragments: list[tuple[int, int]] | None = None
        self._explicit, self._plain, self._ulong = _EXPLICIT[little], _TAG_LENGTH[little], _ULONG[little]

    def data_set(self, position: int, implicit: bool) -> Part:
        """The file's own data set, from ``position`` to the end of the data."""
        data, size, explicit, tags = self.data, len(self.data), self._explicit, self.tags
        part = Part(data, {}, self.little)
        elements = part.elements
        last = -1
        while size - position >= 8:
            if not implicit:  # nearly all elements of nearly all files: explicit, short, in order, hence no repetition
                group, number, code, length = explicit(data, position)
                tag = group << 16 | number
                if tag > last and code in _SHORT and position + 8 + length <= size and len(tags) < MAX_ELEMENTS:
                    elements[tag] = Element(_SHORT[code], position + 8, length)
                    tags.append(tag)
                    last = tag
                    position += 8 + length
                    continue
            if data.startswith(b"\0\0\0\0", position) and not data[position:].strip(b"\0"):
                break
            tag, vr, length, value, in_implicit = self._header(position, implicit, size)
            if tag < last:
                self.notes.add("unordered_elements")
            last = tag
            if length == UNDEFINED:
                if tag in PIXEL_DATA:
                    self.fragments, position = self._walk_fragments(value, size)
                    self._add(part, tag, Element(vr, value, position - value))
                else:
                    self._add(part, tag, Element("SQ", value, UNDEFINED))
                    position = self._sequence(part, tag, value, size, True, in_implicit or vr == "UN")
                continue
            position = value + length
            if position > size:
                raise Refusal("truncated", "an element is longer than the rest of the file")
            self._add(part, tag, Element(vr, value, length))
            if vr == "SQ" and length:
                self._bounded_sequence(part, tag, value, position, in_implicit)
        if data[position:].strip(b"\0"):
            raise Refusal("truncated", "the file ends inside an element")
        if position < size:
            self.notes.add("trailing_padding")
        return part

    def _header(self, position: int, implicit: bool, end: int) -> tuple[int, str | None, int, int, bool]:
        """An element's tag, VR (None: unknown), length, where its value starts, and whether it is implicit."""
        group, number, length = self._plain(self.data, position)
        tag = group << 16 | number
        if group == 0xFFFE:
            return tag, None, length, position + 8, implicit
        if implicit:
            return tag, _dictionary_vr(tag), length, position + 8, True
        _, _, code, length = self._explicit(self.data, position)
        vr = _SHORT.get(code)
        if vr is not None:
            return tag, vr, length, position + 8, False
        vr = _LONG.get(code)
        if vr is not None:
            if end - position < 12:
                raise Refusal("truncated", "the file or item ends inside an element")
            if vr == "UN" and _dictionary_vr(tag) == "SQ":  # PS3.5 6.2.2: then its items are implicit
                return tag, "SQ", self._ulong(self.data, position + 8)[0], position + 12, True
            return tag, vr, self._ulong(self.data, position + 8)[0], position + 12, False
        if code.isalpha() and code.isupper():  # unknown: as most, with two bytes of length
            return tag, None, length, position + 8, False
        # Implicit amid explicit ones, as some writers leave them.
        self.notes.add("wrong_vr_encoding")
        return tag, _dictionary_vr(tag), self._ulong(self.data, position + 4)[0], position + 8, True

    def _add(self, part: Part, tag: int, element: Element) -> None:
        if tag in part.elements:
            raise Refusal("corrupt_structure", "an element occurs twice in one data set")
        part.elements[tag] = element
        self.tags.append(tag)
        if len(self.tags) > MAX_ELEMENTS:
            raise _BudgetRefusal("corrupt_structure", f"more than {MAX_ELEMENTS} elements")

    def _bounded_sequence(self, part: Part, tag: int, start: int, end: int, implicit: bool) -> None:
        """A sequence of stated length: if it is broken, the file around it is not."""
        try:
            self._sequence(part, tag, start, end, False, implicit)
        except _BudgetRefusal:
            raise
        except Refusal:
            del part.items[tag]
            self.notes.add("broken_sequence")

    def _sequence(self, part: Part, tag: int, position: int, end: int, unbounded: bool, implicit: bool) -> int:
        """Walk a sequence and all that it nests, and return where it ends.

        At each level ``end`` bounds what lies in it; an unbounded level ends at its delimiter before that. Levels
        alternate: a sequence holds items, an item holds elements. ``stack`` holds the levels around the present one.
        """
        data, little, plain = self.data, self.little, self._plain
        items: list[Part] = []
        part.items[tag] = items
        between_items = True
        stack: list[tuple[Part, list[Part], int, bool, bool, bool]] = []
        while True:
            closed = position == end and not unbounded
            if not closed:
                if end - position < 8:
                    raise Refusal("truncated", "a sequence breaks off")
                if between_items:
                    group, number, length = plain(data, position)
                    tag = group << 16 | number
                    position += 8
                    if tag == _ITEM:
                        stack.append((part, items, end, unbounded, implicit, True))
                        if len(stack) > 2 * MAX_DEPTH:  # a sequence and its item are two
                            raise _BudgetRefusal("corrupt_structure", f"sequences nested deeper than {MAX_DEPTH}")
                        part = Part(data, {}, little)
                        items.append(part)
                        unbounded = length == UNDEFINED
                        if not unbounded:
                            if position + length > end:
                                raise Refusal("truncated", "an item is longer than its sequence")
                            end = position + length
                        implicit = implicit or self._is_implicit_item(position, end)
                        between_items = False
                        continue
                    if tag != _SEQUENCE_END or not unbounded:
                        raise Refusal("corrupt_structure", "something else than an item in a sequence")
                    closed = True
                else:
                    tag, vr, length, value, in_implicit = self._header(position, implicit, end)
                    if tag == _ITEM_END and unbounded:
                        position, closed = value, True
                    elif tag >> 16 == 0xFFFE:
                        raise Refusal("corrupt_structure", "a delimiter out of its place")
                    elif length == UNDEFINED and (tag in PIXEL_DATA or vr in ("OB", "OW")):
                        _, position = self._walk_fragments(value, end)
                        self._add(part, tag, Element(vr, value, position - value))
                    else:
                        if length != UNDEFINED and value + length > end:
                            raise Refusal("truncated", "an element is longer than its item")
                        self._add(part, tag, Element("SQ" if length == UNDEFINED else vr, value, length))
                        if length == UNDEFINED or (vr == "SQ" and length):
                            stack.append((part, items, end, unbounded, implicit, False))
                            items = []
                            part.items[tag] = items
                            unbounded = length == UNDEFINED
                            end = end if unbounded else value + length
                            implicit = in_implicit or vr == "UN"
                            between_items, position = True, value
                        else:
                            position = value + length
            if closed:
                if not stack:
                    return position
                part, items, end, unbounded, implicit, between_items = stack.pop()

    def _is_implicit_item(self, position: int, end: int) -> bool:
        """Whether an explicit data set's item is in implicit encoding, as some writers leave it."""
        if end - position < 8:
            return False
        code = self.data[position + 4 : position + 6]
        if code in _SHORT or code in _LONG or (code.isalpha() and code.isupper()):
            return False
        return self._plain(self.data, position)[0] != 0xFFFE

    def _walk_fragments(self, position: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """The items of encapsulated data as (start, length), and where the element ends."""
        fragments: list[tuple[int, int]] = []
        while True:
            if end - position < 8:
                raise Refusal("truncated", "encapsulated pixel data breaks off")
            group, number, length = self._plain(self.data, position)
            tag = group << 16 | number
            position += 8
            if tag == _SEQUENCE_END:
                return fragments, position
            if tag != _ITEM or length == UNDEFINED:
                raise Refusal("corrupt_structure", "something else than a fragment in encapsulated pixel data")
            if position + length > end:
                raise Refusal("truncated", "encapsulated pixel data breaks off")
            fragments.append((position, length))
            if len(fragments) > MAX_ELEMENTS:
                raise _BudgetRefusal("corrupt_structure", f"more than {MAX_ELEMENTS} fragments")
            position += length


@lru_cache(maxsize=8192)
def _dictionary_vr(tag: int) -> str | None:
    """The VR of the standard's dictionary; None for a private or unknown element."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None
