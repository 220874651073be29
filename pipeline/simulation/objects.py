"""DX and CR objects (PS3.3 A.26, A.2), a Basic Text SR, and their transfer syntaxes.

Every usual place for an identifier is filled, nested and private ones too, so that a pseudonymisation that
forgets one is caught. No element holds the clock: dates come from the study.
"""

import io
import tempfile
import uuid
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from pipeline.simulation.acquisition import Encoding
from pipeline.simulation.cohort import Hospital, Image, Patient, Study
from pipeline.simulation.spec import SimulatedSite

TRANSFER_SYNTAXES: dict[str, UID] = {
    "explicit_little": ExplicitVRLittleEndian,
    "implicit_little": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg_lossless": JPEGLosslessSV1,
    "jpeg2000": JPEG2000Lossless,
}
REFERRER = "FAKEREFERRER^REFERRA"
RADIOLOGIST = "FAKEREADER^RADIOLA"
OPERATOR = "FAKEOPERATOR^TECHNA"
# SNOMED CT, PS3.16 CID 4010 and 4031.
VIEWS = {"AP": ("399348003", "antero-posterior"), "PA": ("272479007", "postero-anterior")}
CHEST = ("51185008", "Chest")
KVP = {"PA": "120", "AP": "85"}
IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, 'simulation').int}"


def image_object(hospital: Hospital, patient: Patient, study: Study, image: Image, encoding: Encoding) -> Dataset:
    """One exposure as an uncompressed object with file meta; ``compress`` brings it into its transfer syntax."""
    spec = hospital.spec
    is_dx = spec.modality == "none"
    ds = _common(hospital, patient, study)
    _add(
        ds,
        SOPClassUID=DigitalXRayImageStorageForPresentation if is_dx else ComputedRadiographyImageStorage,
        SOPInstanceUID=image.sop_instance_uid,
        Modality="DX" if is_dx else "CR",
        SeriesInstanceUID=hospital.uid(study.key, "series1"),
        SeriesNumber=1,
        InstanceNumber=image.number,
        ImageType=["ORIGINAL", "PRIMARY"],
        BodyPartExamined="CHEST",
        ViewPosition=study.view_position,
        KVP=KVP[study.view_position],
        ImagerPixelSpacing=[f"{spec.pixel_spacing_mm:g}"] * 2,
        PatientOrientation=["L", "F"],
        # The mark identifies neither patient nor date, and only that counts: PS3.3 C.7.6.1.
        BurnedInAnnotation="NO",
        LossyImageCompression="00",
        ImageComments=f"Exposure of {patient.family} by {OPERATOR.split('^')[0]}",
    )
    if is_dx:
        _add_dx_modules(ds, spec, study)
    _add_pixels(ds, spec, encoding)
    ds.file_meta = _file_meta(ds, ExplicitVRLittleEndian)
    return ds


def report_object(hospital: Hospital, patient: Patient, study: Study, image: Image) -> Dataset:
    """A Basic Text SR (PS3.3 A.35.1) in an image's place: no pixels, but full of identifiers."""
    ds = _common(hospital, patient, study)
    finding = _coded("121071", "DCM", "Finding")
    _add(
        ds,
        SOPClassUID=BasicTextSRStorage,
        SOPInstanceUID=image.sop_instance_uid,
        Modality="SR",
        SeriesInstanceUID=hospital.uid(study.key, "series2"),
        SeriesNumber=2,
        InstanceNumber=1,
        ReferencedPerformedProcedureStepSequence=[],
        PerformedProcedureCodeSequence=[],
        CompletionFlag="COMPLETE",
        VerificationFlag="UNVERIFIED",
        ValueType="CONTAINER",
        ConceptNameCodeSequence=[_coded("18748-4", "LN", "Diagnostic imaging study")],
        ContinuityOfContent="SEPARATE",
        ContentSequence=[
            _make(
                RelationshipType="CONTAINS",
                ValueType="TEXT",
                ConceptNameCodeSequence=[finding],
                TextValue=f"Simulated report on {patient.given} {patient.family}: nothing here is real.",
            )
        ],
    )
    ds.file_meta = _file_meta(ds, ExplicitVRLittleEndian)
    return ds


def compress(ds: Dataset, transfer_syntax: str) -> Dataset:
    """Bring an uncompressed object into one of ``TRANSFER_SYNTAXES`` without loss; changes and returns ``ds``."""
    uid = TRANSFER_SYNTAXES[transfer_syntax]
    if uid == JPEGLosslessSV1:
        ds.PixelData = _jpeg_lossless(ds)
        ds["PixelData"].is_undefined_length = True
    elif uid.is_compressed:
        ds.compress(uid, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = uid
    return ds


def to_bytes(ds: Dataset) -> bytes:
    """A Part 10 file (PS3.10 7.1): the same bytes for the same data set."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _common(hospital: Hospital, patient: Patient, study: Study) -> Dataset:
    """Patient, study, series and equipment, and private elements."""
    spec, place = hospital.spec, hospital.site.upper()[:12]
    name = f"{patient.family}^{patient.given}"
    date, time = f"{study.moment:%Y%m%d}", f"{study.moment:%H%M%S}"
    institution = f"SIMULATED HOSPITAL {place}"
    day = study.moment.date()
    had_birthday = (day.month, day.day) >= (patient.birth_date.month, patient.birth_date.day)
    ds = _make(
        SpecificCharacterSet="ISO_IR 100",
        InstanceCreationDate=date,
        InstanceCreationTime=time,
        **{f"{part}Date": date for part in ("Study", "Series", "Acquisition", "Content")},
        **{f"{part}Time": time for part in ("Study", "Series", "Acquisition", "Content")},
        StudyInstanceUID=study.study_instance_uid,
        StudyID=study.accession_number[-6:],
        AccessionNumber=study.accession_number,
        PatientName=name,
        PatientID=patient.patient_id,
        IssuerOfPatientID=institution,
        OtherPatientIDs=f"OLD-{patient.patient_id}",  # retired, but archives are old
        OtherPatientIDsSequence=[_make(PatientID=f"OLD-{patient.patient_id}", TypeOfPatientID="TEXT")],
        OtherPatientNames=f"{patient.family}-BORNFAKE^{patient.given}",
        PatientBirthDate=f"{patient.birth_date:%Y%m%d}",
        PatientSex=patient.sex,
        PatientAge=f"{day.year - patient.birth_date.year - (not had_birthday):03d}Y",
        PatientAddress=f"1 NOWHERE STREET, {place}",
        PatientTelephoneNumbers=f"+00 555 {patient.patient_id[-6:]}",
        PatientComments=f"{patient.given} {patient.family} is a simulation",
        InstitutionName=institution,
        InstitutionAddress=f"2 NOWHERE STREET, {place}",
        InstitutionalDepartmentName="DEPARTMENT OF PHANTOMS",
        StationName=f"{place}_XR1",
        Manufacturer=f"SIMULATED {spec.vendor}",
        ManufacturerModelName=f"{spec.vendor}-{spec.model}",
        DeviceSerialNumber=f"SN-{spec.vendor}-{place}",
        SoftwareVersions="SIM 1.0",
        ReferringPhysicianName=REFERRER,
        ReferringPhysicianIdentificationSequence=[
            _make(
                PersonIdentificationCodeSequence=[_coded("STAFF-0001", "99SIMULATED", REFERRER)],
                PersonAddress=f"3 NOWHERE STREET, {place}",
                InstitutionName=institution,
            )
        ],
        PhysiciansOfRecord=RADIOLOGIST,
        PerformingPhysicianName=RADIOLOGIST,
        OperatorsName=OPERATOR,
        StudyDescription=f"CHEST {study.view_position} {patient.family}",
        SeriesDescription=f"THORAX {patient.family} {date}",
        ProtocolName="CHEST",
        RequestAttributesSequence=[
            _make(
                RequestedProcedureID=f"RP-{study.accession_number}",
                RequestedProcedureDescription=f"CHEST FOR {patient.family}",
                ScheduledProcedureStepID=f"SPS-{study.accession_number[-8:]}",
                ScheduledProcedureStepDescription=f"{patient.given} {patient.family} STANDING",
            )
        ],
    )
    # PS3.5 7.8.1: the creator reserves the block.
    block = ds.private_block(0x0009, f"SIMULATED {spec.vendor} HEADER", create=True)
    block.add_new(0x01, "LO", f"{patient.family} {patient.given}")
    block.add_new(0x02, "SH", patient.patient_id[-16:])
    block.add_new(0x03, "SQ", [_make(PatientName=name, PatientID=patient.patient_id)])
    block.add_new(0x04, "OB", name.encode("latin-1").ljust(64))
    block.add_new(0x05, "UI", hospital.uid(study.key, "private"))
    return ds


def _add_dx_modules(ds: Dataset, spec: SimulatedSite, study: Study) -> None:
    """What DX asks for beyond CR: PS3.3 C.8.11.1 to C.8.11.5 and C.7.6.14."""
    value, meaning = VIEWS[study.view_position]
    dark_is_low = spec.photometric == "MONOCHROME2"
    _add(
        ds,
        PresentationIntentType="FOR PRESENTATION",
        ImageType=["ORIGINAL", "PRIMARY", ""],
        ImageLaterality="U",
        AnatomicRegionSequence=[_coded(CHEST[0], "SCT", CHEST[1])],
        ViewCodeSequence=[_coded(value, "SCT", meaning)],
        PositionerType="",
        DetectorType="DIRECT",
        DetectorID=f"PANEL-{spec.vendor[:8]}-7",
        PixelIntensityRelationship="LOG",
        # -1: a higher value means less radiation, hence denser tissue.
        PixelIntensityRelationshipSign=-1 if dark_is_low else 1,
        RescaleIntercept="0",
        RescaleSlope="1",
        RescaleType="US",
        PresentationLUTShape="IDENTITY" if dark_is_low else "INVERSE",
        AcquisitionContextSequence=[],
    )


def _add_pixels(ds: Dataset, spec: SimulatedSite, encoding: Encoding) -> None:
    rows, columns = encoding.stored.shape
    _add(
        ds,
        SamplesPerPixel=1,
        PhotometricInterpretation=spec.photometric,
        Rows=rows,
        Columns=columns,
        BitsAllocated=16,
        BitsStored=spec.bits_stored,
        HighBit=spec.bits_stored - 1,
        PixelRepresentation=0,
    )
    if spec.modality == "rescale":
        _add(
            ds,
            RescaleIntercept=f"{encoding.intercept:g}",
            RescaleSlope=f"{encoding.slope:g}",
            RescaleType="US",
        )
    if encoding.modality_table is not None:
        ds.ModalityLUTSequence = [_lut(encoding.modality_table, ModalityLUTType="US")]
    if encoding.voi_table is not None:
        ds.VOILUTSequence = [_lut(encoding.voi_table, LUTExplanation="S CURVE")]
    if encoding.window is not None:
        centre, width = encoding.window
        _add(ds, WindowCenter=f"{centre:.1f}", WindowWidth=f"{width:.1f}")
        # The default is linear, PS3.3 C.11.2.1.3; most archives leave it out.
        if spec.voi == "sigmoid":
            ds.VOILUTFunction = "SIGMOID"
    ds.add_new("PixelData", "OW", encoding.stored.astype("<u2").tobytes())


def _lut(table: NDArray[np.uint16], **elements: Any) -> Dataset:
    """An item of a Modality or VOI LUT Sequence: entries, first value mapped, bits per entry; PS3.3 C.11.1.1.1."""
    item = _make(**elements)
    # 65536 entries are written as 0.
    item.add_new("LUTDescriptor", "US", [len(table) % 65536, 0, 16])
    # OW, not US: an explicit US element's length has 16 bits (PS3.5 7.1.2), too few for 16 bits stored.
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return item


def _jpeg_lossless(ds: Dataset) -> bytes:
    """Pixel Data of an uncompressed object, encapsulated as JPEG lossless, process 14, selection value 1.

    GDCM rewrites file meta and header as well, so only the pixels are taken from it. Through files, as the
    Python wrapper of its in-memory images aborts the process when they are freed (python-gdcm 3.2.6).
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, coded = Path(folder, "plain.dcm"), Path(folder, "coded.dcm")
        plain.write_bytes(to_bytes(ds))
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(plain))
        done = reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        done = done and change.Change()
        writer.SetFileName(str(coded))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not (done and writer.Write()):
            raise RuntimeError("GDCM could not encode an image as JPEG lossless")
        return bytes(dcmread(coded, specific_tags=["PixelData"]).PixelData)


def _file_meta(ds: Dataset, transfer_syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = "SIMULATED_1"
    return meta


def _coded(value: str, scheme: str, meaning: str) -> Dataset:
    return _make(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _make(**elements: Any) -> Dataset:
    return _add(Dataset(), **elements)


def _add(ds: Dataset, **elements: Any) -> Dataset:
    """Set elements by keyword, as PS3.6 writes them."""
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds
