"""De-identification by allow-list: keyed pseudonyms, shifted days, capped ages, closed vocabularies.

Nothing of a header goes on unless a function here returns it (PS3.15 Annex E names what to remove; an
allow-list needs no such list, so private tags and nested sequences have no way through).
"""

import datetime
import hashlib
import hmac
import re

from pydicom.uid import UID_dictionary

MAX_AGE_YEARS = 89  # above it one class, 90: the HIPAA Safe Harbor rule, 45 CFR 164.514(b)(2)(i)(C)
_SHIFT_DAYS = 3650
_DATE = re.compile(r"\s*(\d{4})\.?(\d{2})\.?(\d{2})\s*")

# Text attributes pass only where the value, normalised, is one of these; anything else becomes "other",
# because free text is where names turn up.
MANUFACTURERS = frozenset(
    """
    agfa agfa_healthcare canon carestream carestream_health del_medical fujifilm fujifilm_corporation
    fuji_photo_film_co_ltd ge_healthcare ge_medical_systems general_electric hitachi hologic
    imaging_dynamics_company_ltd kodak konica_minolta neusoft philips philips_healthcare
    philips_medical_systems samsung samsung_electronics shimadzu siemens siemens_healthineers swissray
    toshiba toshiba_mec united_imaging varian vidar simulated_alpha simulated_beta simulated_gamma
    simulated_delta
    """.split()
)
MODELS = frozenset(["alpha_dr1", "alpha_dr3", "beta_cr2", "delta_cr4"])
BODY_PARTS = frozenset(
    """
    abdomen ankle arm breast brain cervicalspine cspine chest chestabdomen clavicle elbow extremity femur
    foot forearm hand head hip humerus knee leg lspine lung lumbarspine neck pelvis ribs shoulder skull
    spine thorax tspine wholebody wrist
    """.split()
)
VIEW_POSITIONS = frozenset(
    """
    ap pa ll rl lateral lao rao rld lld cc mlo
    """.split()
)
MODALITIES = frozenset(
    """
    cr ct dx mg mr nm ot pt rf us xa io px xc sc
    """.split()
)


def pseudonym(key: bytes, kind: str, *parts: str) -> str:
    """HMAC-SHA-256 of an identifier under the study's key, 128 bits as 32 hexadecimal digits.

    Args:
        key: the study's secret.
        kind: what is named (patient, study, image, source ...), so that equal numbers of two kinds differ.
        parts: the issuer and the identifier; their lengths enter, so that ("a", "bc") and ("ab", "c") differ.
    """
    # surrogateescape: a path that is not UTF-8 has a pseudonym too.
    encoded = [part.encode("utf-8", "surrogateescape") for part in (kind, *parts)]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in encoded)
    return hmac.digest(key, message, "sha256").hex()[:32]


def keyed_hash(key: bytes, content: bytes) -> str:
    """HMAC-SHA-256 of a file's bytes: equal files show, and a public file cannot be recognised by its hash."""
    digest = hmac.new(key, b"content", hashlib.sha256)
    digest.update(content)  # apart, so that the content is not copied
    return digest.hexdigest()[:32]


def shifted_day(key: bytes, patient_id: str, date: str) -> int | None:
    """A date (DICOM DA, ``YYYYMMDD``) as a day number, shifted back by 1 to 3650 days.

    The offset hangs on key and patient alone: intervals within a patient are kept, and adding data changes
    nothing. None where the date is missing or no date.
    """
    parsed = _date(date)
    if parsed is None:
        return None
    digest = hmac.new(key, b"shift" + patient_id.encode(), hashlib.sha256).digest()
    return parsed.toordinal() - 1 - int.from_bytes(digest[:8], "big") % _SHIFT_DAYS


def _date(text: str) -> datetime.date | None:
    """A DA value, ``YYYYMMDD`` or as ACR-NEMA had it ``YYYY.MM.DD``; None where it is no date."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    try:
        return datetime.date(*map(int, match.groups()))
    except ValueError:
        return None


def age_years(age: str, birth_date: str = "", study_date: str = "") -> int | None:
    """Age in whole years from PatientAge (AS, ``045Y``) or else from two dates; 90 for every age above 89."""
    match = re.fullmatch(r"\s*(\d{1,3})([DWMY])\s*", age)
    if match is not None:
        number, unit = int(match.group(1)), match.group(2)
        years = {"D": number // 365, "W": number * 7 // 365, "M": number // 12, "Y": number}[unit]
        return min(years, MAX_AGE_YEARS + 1)
    born, then = _date(birth_date), _date(study_date)
    if born is None or then is None:
        return None
    years = then.year - born.year - ((then.month, then.day) < (born.month, born.day))
    return min(years, MAX_AGE_YEARS + 1) if years >= 0 else None


def sex(value: str) -> str | None:
    """PatientSex as F, M or O; None where it is anything else."""
    cleaned = value.strip().upper()
    return cleaned if cleaned in {"F", "M", "O"} else None


def laterality(value: str) -> str | None:
    """Laterality as R, L, U (unpaired) or B (both), PS3.3 C.8.11.3; None where it is anything else."""
    cleaned = value.strip().upper()
    return cleaned if cleaned in {"R", "L", "U", "B"} else None


def registered_uid(value: str) -> str:
    """A UID that the standard registers (PS3.6 Annex A), as it is; any other is "other": its root names who made it."""
    return value if value in UID_dictionary else "other"


def in_vocabulary(value: str, vocabulary: frozenset[str]) -> str | None:
    """Text, normalised to ``lower_case``, where the vocabulary has it, else "other"; None where it is empty."""
    cleaned = re.sub(r"[^a-z0-9]+", "_", value.strip().lower()).strip("_")
    if not cleaned:
        return None
    return cleaned if cleaned in vocabulary else "other"
