"""Every test file of pydicom, and of pydicom-data, against decoders that share no code path with ours.

Oracles: SimpleITK (reads the whole file by itself), imagecodecs (the bare codestream), and twins of the same pixels in
other transfer syntaxes. Lossy codestreams too are compared exactly: their decoding is deterministic arithmetic, and
all decoders agree on these files.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

import data_store
import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from minimal import content, dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.dicom import layout, pixels
from pipeline.dicom.attributes import has
from pipeline.dicom.refusal import Refusal
from pipeline.dicom.structure import parse_structure

FOLDERS = (Path(pydicom.__file__).parent / "data/test_files", Path(data_store.__file__).parent / "data")
KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# What has pixel data and is not taken, with the reason.
REFUSED = {
    "GDCMJ2K_TextGBR.dcm": "corrupt_structure",  # a JP2 file around the codestream, with its own order of channels
    "JPEG2000-embedded-sequence-delimiter.dcm": "pixel_header_mismatch",  # no decoder reads it either
    "badVR.dcm": "corrupt_structure",  # NumberOfFrames 1A
    "liver.dcm": "unsupported_pixel_layout",  # one bit a pixel
    "liver_1frame.dcm": "unsupported_pixel_layout",
    "liver_expb.dcm": "unsupported_pixel_layout",
    "liver_expb_1frame.dcm": "unsupported_pixel_layout",
    "nested_priv_SQ.dcm": "corrupt_structure",  # pixel data without the attributes of an image
}
# Where SimpleITK 2.5.7 is at fault; each has a twin, or another oracle, below.
NOT_BY_SIMPLEITK = {
    "mlut_18.dcm": "ignores the Modality LUT Sequence",
    "rtdose_1frame.dcm": "cannot read it",
    "rtdose_expb_1frame.dcm": "cannot read it",
    "rtdose_rle_1frame.dcm": "cannot read it",
    "rtdose_expb.dcm": "reads 32 bits of big endian as pairs of 16",
    "SC_rgb_rle_16bit.dcm": "mixes the segments of colour of more than 8 bits",
    "SC_rgb_rle_16bit_2frame.dcm": "mixes the segments of colour of more than 8 bits",
    "SC_rgb_rle_32bit.dcm": "mixes the segments of colour of more than 8 bits",
    "SC_rgb_rle_32bit_2frame.dcm": "mixes the segments of colour of more than 8 bits",
}
# imagecodecs takes three components without a marker as YCbCr; the header says RGB, and the decoded twin too;
# and it knows no palette.
NOT_BY_IMAGECODECS = {
    "SC_rgb_jpeg.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "OBXXXX1A_rle.dcm",  # a palette
    "OBXXXX1A_rle_2frame.dcm",
}
TWINS = [
    "MR_small MR_small_RLE MR_small_bigendian MR_small_expb MR_small_implicit MR_small_jp2klossless "
    "MR_small_jpeg_ls_lossless MR_small_padded",
    "SC_rgb SC_rgb_rle SC_rgb_expb SC_rgb_jpeg_gdcm SC_rgb_gdcm_KY SC_rgb_gdcm2k_uncompressed",
    "SC_rgb_16bit SC_rgb_rle_16bit SC_rgb_expb_16bit",
    "SC_rgb_32bit SC_rgb_rle_32bit SC_rgb_expb_32bit",
    "SC_rgb_2frame SC_rgb_rle_2frame SC_rgb_expb_2frame",
    "SC_rgb_16bit_2frame SC_rgb_rle_16bit_2frame SC_rgb_expb_16bit_2frame",
    "SC_rgb_32bit_2frame SC_rgb_rle_32bit_2frame SC_rgb_expb_32bit_2frame",
    "SC_rgb_dcmtk_+eb+cr SC_rgb_dcmtk_ebcr_dcmd",
    "SC_rgb_dcmtk_+eb+cy+n1 SC_rgb_dcmtk_+eb+cy+np SC_rgb_dcmtk_ebcyn1_dcmd SC_rgb_dcmtk_ebcynp_dcmd",
    "SC_rgb_dcmtk_+eb+cy+n2 SC_rgb_dcmtk_+eb+cy+s2 SC_rgb_dcmtk_ebcyn2_dcmd SC_rgb_dcmtk_ebcys2_dcmd "
    "SC_rgb_dcmtk_+eb+cy+s4 SC_rgb_dcmtk_ebcys4_dcmd SC_rgb_jpeg_dcmtk SC_ybr_full_uncompressed "
    "SC_ybr_full_422_uncompressed",
    "SC_rgb_jpeg SC_rgb_jpeg_dcmd SC_jpeg_no_color_transform",
    "SC_rgb_jpeg_app14_dcmd SC_jpeg_no_color_transform_2",
    "SC_rgb_jls_lossy_line SC_rgb_jls_lossy_sample",
    "SC_rgb_small_odd SC_rgb_small_odd_big_endian",
    "JPGExtended JPEG-lossy",
    "JPEG2000 JPEG2000_UNC",
    "693_J2KI 693_UNCI",
    "693_J2KR 693_UNCR",
    "MR2_J2KI MR2_UNCI",
    "MR2_J2KR MR2_UNCR",
    "RG1_J2KI RG1_UNCI",
    "RG1_J2KR RG1_UNCR",
    "RG3_J2KI RG3_UNCI",
    "RG3_J2KR RG3_UNCR",
    "US1_J2KI US1_UNCI",
    "US1_J2KR US1_UNCR examples_jpeg2k",
    "OBXXXX1A OBXXXX1A_expb OBXXXX1A_rle",
    "OBXXXX1A_2frame OBXXXX1A_expb_2frame OBXXXX1A_rle_2frame",
    "rtdose rtdose_expb rtdose_rle",
    "rtdose_1frame rtdose_expb_1frame rtdose_rle_1frame",
    "emri_small emri_small_RLE emri_small_big_endian emri_small_jpeg_2k_lossless emri_small_jpeg_ls_lossless",
    "color-pl color-px",
    "gdcm-US-ALOKA-16 gdcm-US-ALOKA-16_big",
]


def _paths():
    """All files that can be walked and have pixel data, by their path below their folder."""
    found = {}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and _has_pixels(path):
                found[str(path.relative_to(folder))] = path
    return found


def _has_pixels(path):
    try:
        parsed = parse_structure(path.read_bytes(), 2**30)
    except Refusal:
        return False
    return any(has(parsed.main, keyword) for keyword in KEYWORDS)


PATHS = _paths()
ACCEPTED = sorted(set(PATHS) - set(REFUSED))


def read(data):
    parsed = parse_structure(data, 2**30)
    (keyword,) = (keyword for keyword in KEYWORDS if has(parsed.main, keyword))
    return parsed, layout.read_layout(parsed, keyword, max_pixels=2**28)


@lru_cache
def digest(name):
    parsed, fmt = read(PATHS[name + ".dcm"].read_bytes())
    return hashlib.sha256(pixels.modality_array(parsed, fmt).tobytes()).hexdigest()


def test_there_are_files():
    assert len(ACCEPTED) > 120
    assert set(REFUSED) | set(NOT_BY_SIMPLEITK) | NOT_BY_IMAGECODECS <= set(PATHS)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name):
    with pytest.raises(Refusal) as caught:
        read(PATHS[name].read_bytes())
    assert caught.value.reason == REFUSED[name]


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in NOT_BY_SIMPLEITK])
def test_simpleitk(name):
    """Equal, but for three things that SimpleITK does otherwise and that can be undone."""
    parsed, fmt = read(PATHS[name].read_bytes())
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    oracle = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(PATHS[name])))
    shape = (fmt.frames, fmt.rows, fmt.columns, *((3,) if fmt.is_colour else ()))
    oracle = oracle.reshape(shape)
    for frame in sorted({0, fmt.frames // 2, fmt.frames - 1}):
        values, expected = pixels.modality_values(parsed, fmt, frame), oracle[frame]
        assert values.dtype == np.float32
        if fmt.photometric == "MONOCHROME1":  # inverts the stored values
            stored = (2**fmt.bits_stored - 1) - pixels.stored_values(parsed, fmt, frame).astype(np.int64)
            transform = pixels.modality_transform(parsed, fmt, frame) or pixels.Rescale(1.0, 0.0)
            values = stored * transform.slope + transform.intercept
        if fmt.photometric == "PALETTE COLOR" and oracle.dtype == np.uint8:  # keeps the high byte of 16
            values = values // 256
        # In double precision; ours is float32, whose step below 2**32 is a 2**-23th, half of it when rounding.
        np.testing.assert_allclose(values, expected.astype(np.float64), rtol=2**-24, atol=0)


ENCAPSULATED = [name for name in ACCEPTED if parse_structure(PATHS[name].read_bytes(), 2**30).fragments is not None]


@pytest.mark.parametrize("name", sorted(set(ENCAPSULATED) - NOT_BY_IMAGECODECS))
def test_imagecodecs(name):
    """The first and last codestream; bits above BitsStored cleared by hand."""
    parsed, fmt = read(PATHS[name].read_bytes())
    assert fmt.codestreams
    for frame in {0, fmt.frames - 1}:
        codestream = bytes(layout.frame_codestream(parsed, fmt, frame))
        if fmt.transfer_syntax in layout.JPEG:
            expected = imagecodecs.jpeg_decode(codestream)
        elif fmt.transfer_syntax in layout.JPEG_LS:
            expected = imagecodecs.jpegls_decode(codestream)
        elif fmt.transfer_syntax in layout.JPEG_2000:
            expected = imagecodecs.jpeg2k_decode(codestream)
        else:
            dtype = np.dtype(f"u{fmt.bits_allocated // 8}")
            flat = np.frombuffer(imagecodecs.dicomrle_decode(codestream, dtype=dtype), dtype)
            expected = np.moveaxis(flat.reshape(-1, fmt.rows, fmt.columns), 0, -1)
            expected = expected[..., 0] if fmt.samples == 1 else expected
        expected = expected.astype(np.int64) % 2**fmt.bits_stored
        if fmt.signed:
            expected = np.where(expected >= 2 ** (fmt.bits_stored - 1), expected - 2**fmt.bits_stored, expected)
        np.testing.assert_array_equal(pixels.stored_values(parsed, fmt, frame), expected)


@pytest.mark.parametrize("names", TWINS, ids=lambda names: names.split()[0])
def test_twins_have_equal_hashes(names):
    assert len({digest(name) for name in names.split()}) == 1


def test_modality_table_by_hand():
    """mlut_18: 256 entries of 16 bits, read here straight from the bytes."""
    parsed, fmt = read(PATHS["mlut_18.dcm"].read_bytes())
    header = pydicom.dcmread(PATHS["mlut_18.dcm"])
    item = header.ModalityLUTSequence[0]
    entries = np.asarray(item.LUTData)
    index = np.clip(header.pixel_array.astype(int) - item.LUTDescriptor[1], 0, item.LUTDescriptor[0] - 1)
    np.testing.assert_array_equal(pixels.modality_values(parsed, fmt, 0), entries[index])


def encapsulated(codestreams, like, syntax, bits_stored, **elements):
    made = dataset(like[..., 0] if like.ndim == 3 else like, syntax=syntax, BitsStored=bits_stored, **elements)
    made.PixelData = encapsulate(list(codestreams))
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return content(made)


def rle(stored):
    """By hand, in literal runs (PS3.5 annex G): segments from the highest byte to the lowest, plane by plane."""
    planes = [stored] if stored.ndim == 2 else np.moveaxis(stored, -1, 0)
    segments = []
    for plane in planes:
        by_byte = plane.astype(plane.dtype.newbyteorder(">")).tobytes()
        for index in range(plane.dtype.itemsize):
            raw = by_byte[index :: plane.dtype.itemsize]
            runs = b"".join(bytes([len(raw[at : at + 128]) - 1]) + raw[at : at + 128] for at in range(0, len(raw), 128))
            segments.append(runs + b"\0" * (len(runs) % 2))
    offsets = np.cumsum([64, *map(len, segments)])[:-1]
    header = np.zeros(16, dtype="<u4")
    header[0], header[1 : 1 + len(segments)] = len(segments), offsets
    return header.tobytes() + b"".join(segments)


ENCODERS = {
    "rle": (RLELossless, lambda stored, _: rle(stored)),
    "jpegls": (JPEGLSLossless, lambda stored, _: imagecodecs.jpegls_encode(stored)),
    "jpeg2000": (
        JPEG2000Lossless,
        lambda stored, bits: imagecodecs.jpeg2k_encode(
            stored, level=0, codecformat="j2k", reversible=True, bitspersample=bits
        ),
    ),
    "lossless": (JPEGLosslessSV1, lambda stored, bits: imagecodecs.ljpeg_encode(stored, bitspersample=bits)),
    "predictor6": (
        JPEGLossless,
        lambda stored, bits: imagecodecs.jpeg8_encode(stored, lossless=True, predictor=6, bitspersample=bits),
    ),
    "htj2k": (HTJ2KLossless, lambda stored, _: imagecodecs.htj2k_encode(stored, reversible=True)),
    "htj2k_any": (HTJ2K, lambda stored, _: imagecodecs.htj2k_encode(stored, reversible=True)),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("shape", [(16, 16), (37, 21), (1, 5), (9, 1)], ids=str)
def test_round_trip(encoder, bits, signed, shape):
    """Random values of the whole range through another library's encoder, as two's complement of ``bits``."""
    syntax, encode = ENCODERS[encoder]
    rng = np.random.default_rng(bits + signed)
    low = -(2 ** (bits - 1)) if signed else 0
    values = rng.integers(low, low + 2**bits, shape)
    unsigned = (values % 2**bits).astype(np.uint8 if bits == 8 else np.uint16)
    data = encapsulated([encode(unsigned, bits)], unsigned, syntax, bits, PixelRepresentation=int(signed))
    parsed, fmt = read(data)
    got = pixels.stored_values(parsed, fmt, 0)
    assert got.dtype == np.dtype(f"{'i' if signed else 'u'}{unsigned.dtype.itemsize}")
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("signed", [False, True])
def test_signed_codestream_against_either_header(signed):
    """JPEG 2000 knows a sign of its own; PixelRepresentation decides what the bits mean."""
    values = np.random.default_rng(0).integers(-2048, 2048, (20, 30)).astype(np.int16)
    codestream = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", reversible=True, bitspersample=12)
    data = encapsulated([codestream], values, JPEG2000Lossless, 12, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(pixels.stored_values(*read(data), 0), values if signed else values % 4096)


@pytest.mark.parametrize("encoder", ["jpegls", "jpeg2000", "htj2k", "rle"])
def test_bits_above_bits_stored_leak_from_no_codec(encoder):
    syntax, encode = ENCODERS[encoder]
    values = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
    data = encapsulated([encode(values | 0xA000, 16)], values, syntax, 12)
    np.testing.assert_array_equal(pixels.stored_values(*read(data), 0), values)


@pytest.mark.parametrize("encoder", ["rle", "jpegls", "jpeg2000", "htj2k"])
def test_colour_round_trip(encoder):
    syntax, encode = ENCODERS[encoder]
    values = np.random.default_rng(0).integers(0, 256, (19, 31, 3)).astype(np.uint8)
    photometric = "YBR_RCT" if encoder in ("jpeg2000", "htj2k") else "RGB"
    # A wrong PlanarConfiguration does no harm: a codec has its own order.
    data = encapsulated(
        [encode(values, 8)], values, syntax, 8, SamplesPerPixel=3, PhotometricInterpretation=photometric,
        PlanarConfiguration=1,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels.modality_array(*read(data))[0], values)


@pytest.mark.parametrize("seed", range(20))
def test_jpeg_extended_of_12_bits(seed):
    """gdcm against imagecodecs; pydicom would not let it (see pixels.py)."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 90, 2)
    values = np.add.outer(rng.integers(0, 2048, rows), rng.integers(0, 2048, columns)).astype(np.uint16)
    codestream = imagecodecs.jpeg8_encode(values, level=int(rng.integers(30, 101)), bitspersample=12)
    data = encapsulated([codestream], values, JPEGExtended12Bit, 12)
    np.testing.assert_array_equal(pixels.stored_values(*read(data), 0), imagecodecs.jpeg_decode(codestream))


def test_lossy_jpeg_2000_of_many_frames():
    rng = np.random.default_rng(3)
    frames = [np.add.outer(rng.integers(0, 99, 40), rng.integers(0, 99, 50)).astype(np.uint16) for _ in range(5)]
    codestreams = [imagecodecs.jpeg2k_encode(frame, level=40, codecformat="j2k", reversible=False) for frame in frames]
    data = encapsulated(codestreams, frames[0], JPEG2000, 16, NumberOfFrames=5)
    got = pixels.modality_array(*read(data))
    np.testing.assert_array_equal(got, [imagecodecs.jpeg2k_decode(codestream) for codestream in codestreams])


RAMP = np.add.outer(np.arange(61) * 73, np.arange(47) * 21) % 4096
MUTANTS = {
    "baseline": (JPEGBaseline8Bit, 8, lambda: imagecodecs.jpeg8_encode((RAMP // 16).astype(np.uint8))),
    "extended": (JPEGExtended12Bit, 12, lambda: imagecodecs.jpeg8_encode(RAMP.astype(np.uint16), bitspersample=12)),
    "lossless": (JPEGLosslessSV1, 12, lambda: imagecodecs.ljpeg_encode(RAMP.astype(np.uint16), bitspersample=12)),
    "jpegls": (JPEGLSLossless, 16, lambda: imagecodecs.jpegls_encode(RAMP.astype(np.uint16))),
    "jpeg2000": (JPEG2000Lossless, 16, lambda: imagecodecs.jpeg2k_encode(RAMP.astype(np.uint16), codecformat="j2k")),
}


@pytest.mark.parametrize("kind", sorted(MUTANTS))
def test_mutants_end_in_pixels_or_a_reason(kind):
    """Whatever is in a codestream, the process lives on: gdcm's would not, but for the checks before it."""
    syntax, bits, encode = MUTANTS[kind]
    good = encode()
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(150):
        mutant = bytearray(good)
        for _ in range(rng.integers(1, 5)):
            place = rng.integers(0, len(good) if number % 2 else min(len(good), 400))
            mutant[place] = rng.choice([0, 0xFF, 0xD8, 0xC4, 0xDA, 0xEE, rng.integers(0, 256)])
        like = RAMP.astype(np.uint8 if bits == 8 else np.uint16)
        try:
            parsed, fmt = read(encapsulated([bytes(mutant)], like, syntax, bits))
            outcomes.add(pixels.modality_array(parsed, fmt).shape)
        except Refusal as refusal:
            outcomes.add(refusal.reason)
    assert outcomes <= {
        (1, 61, 47), "decode_error", "corrupt_structure", "pixel_header_mismatch", "truncated",
        "unsupported_pixel_layout", "pixel_length_mismatch",
    }  # fmt: skip
    assert "decode_error" in outcomes
