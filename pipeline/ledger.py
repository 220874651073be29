"""The ledger of a study: which side each patient was given at first sight, committed and only ever added to.

Without it a patient's side would hang on who else was there; with it an old test patient never becomes a training
patient. It holds pseudonyms, names of sites and findings, and sides.
"""

import re
from pathlib import Path

import pandas as pd

from pipeline.errors import PipelineError
from pipeline.params import NAME_PATTERN
from pipeline.splits import SIDES
from pipeline.tables.contract import make_table
from pipeline.tables.images import Ledger

_KEY = re.compile(r"# key ([0-9a-f]{16})")
_COLUMNS = ",".join(Ledger.columns)
_NAME = NAME_PATTERN.strip("^$")
_ROW = re.compile(rf"([0-9a-f]{{32}}),({_NAME}),({_NAME}|\([a-z]+\)),({'|'.join(SIDES)})")


def read_ledger(path: Path, fingerprint: str) -> pd.DataFrame:
    """The rows of ``tables.images.Ledger``; none where there is no file yet.

    Args:
        path: the file.
        fingerprint: of the study's key.

    Raises:
        PipelineError: another key's ledger, a line that is no row, a patient twice; the text names the line and
            quotes nothing of it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return make_table(Ledger, [])
    except UnicodeDecodeError:
        raise PipelineError(f"{path.name}: not a text in UTF-8; take it from git again") from None
    key = _KEY.fullmatch(lines[0]) if lines else None
    if key is None or lines[1:2] != [_COLUMNS]:
        raise PipelineError(
            f"{path.name}, line {1 if key is None else 2}: expected '# key' with the key's fingerprint, then "
            f"'{_COLUMNS}'; take the file from git again"
        )
    if key[1] != fingerprint:
        raise PipelineError(
            f"{path.name}, line 1: written under the key {key[1]}, but privacy.key_fingerprint is {fingerprint}. "
            "Under another key nobody in it is known again, and who tested once could be trained on. Bring back the "
            f"study's key; or, to start anew with other tests, delete {path.name}"
        )
    first: dict[str, int] = {}
    rows = []
    for position, line in enumerate(lines[2:], start=3):
        match = _ROW.fullmatch(line)
        if match is None:
            raise PipelineError(
                f"{path.name}, line {position}: expected {_COLUMNS}: a pseudonym of 32 hexadecimal digits, a site, a "
                f"stratum and one of {', '.join(SIDES)}. After a merge keep the lines of both; else take it from git"
            )
        earlier = first.setdefault(match[1], position)
        if earlier != position:
            raise PipelineError(
                f"{path.name}, line {position}: the patient of line {earlier} again. Keep one of the two: the side of "
                "which results were published, else test before val before train"
            )
        rows.append(match.groups())
    return make_table(Ledger, pd.DataFrame(rows, columns=list(Ledger.columns)))


def write_ledger(path: Path, fingerprint: str, ledger: pd.DataFrame) -> None:
    """Replace the file, sorted by patient; whole or not at all."""
    rows = make_table(Ledger, ledger)
    text = rows.to_csv(index=False, lineterminator="\n")
    _replace(path, f"# key {fingerprint}\n{text}")


def holds_patient(path: Path, patient: str) -> bool:
    """Whether a line of the file, if it is there, begins with the patient's pseudonym."""
    return path.is_file() and f"\n{patient}," in path.read_text(encoding="utf-8")


def forget(path: Path, patient: str) -> None:
    """Take a patient's row out; every other line keeps its bytes."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    _replace(path, "".join(line for line in lines if not line.startswith(f"{patient},")))


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
