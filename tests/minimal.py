"""The smallest valid DICOM images, made by hand (not by the simulation), to change in one place a test."""

import io
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from pipeline.imaging.intensity import ModalityImage

PATIENT = "ZEBRAFELD^QUINTESSA"
NUMBER = "ID-7391846-X"


def dataset(stored: np.ndarray | None = None, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """``stored`` (rows, columns) integers as they are to stand in the file; ``elements`` None are left out."""
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300 if stored is None else stored
    bits = stored.dtype.itemsize * 8
    made = Dataset()
    values = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "2.25.1234567891",
        "StudyInstanceUID": "2.25.22334455667",
        "SeriesInstanceUID": "2.25.33445566778",
        "StudyDate": "20190517",
        "PatientName": PATIENT,
        "PatientID": NUMBER,
        "PatientBirthDate": "19401103",
        "Modality": "DX",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": bits,
        "BitsStored": min(bits, 12),
        "HighBit": min(bits, 12) - 1,
        "PixelRepresentation": int(np.issubdtype(stored.dtype, np.signedinteger)),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": stored.tobytes() + b"\0" * (stored.nbytes % 2),
        **elements,
    }
    if "BitsStored" in elements and "HighBit" not in elements and elements["BitsStored"] is not None:
        values["HighBit"] = elements["BitsStored"] - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests want values that the standard forbids
        for keyword, value in values.items():
            if value is not None:
                setattr(made, keyword, value)
    if "PixelData" in made:
        made["PixelData"].VR = "OW" if bits > 8 else "OB"
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.get("SOPClassUID", DigitalXRayImageStorageForPresentation)
    made.file_meta.MediaStorageSOPInstanceUID = "2.25.1234567891"
    made.file_meta.TransferSyntaxUID = UID(syntax)
    return made


def content(made: Dataset) -> bytes:
    """As a Part 10 file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def table(entries: np.ndarray, first: int, bits: int, signed: bool = False) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, dtype="<u2").tobytes())
    item.ModalityLUTType = "US"
    return item


def spread(found: ModalityImage) -> ModalityImage:
    """An image pixel by pixel, its padding None where no pixel is."""
    if found.index is None:
        return found
    padding = None if found.padding is None else found.padding[found.index]
    padding = padding if padding is not None and padding.any() else None
    return replace(found, values=found.values[found.index], padding=padding, index=None)
