"""Who has withdrawn consent, by pseudonym: the list that a study commits and every later reading of files obeys."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError

WITHDRAWN_FILE = "withdrawn.txt"
_HEADER = """\
# Patients who withdrew consent, and their files, by the pseudonyms of this study's key; no identifier stands here.
# Written by `python -m pipeline.commands.withdraw`. Commit it: what it lists is left out of manifests and ingest.
"""
_LINE = re.compile(r"(patient|source) ([0-9a-f]{32})")


@dataclass(frozen=True)
class Withdrawn:
    """Pseudonyms (``Instances.patient_id``, ``Manifest.source_id``) of what is to be left out."""

    patients: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()


def read_withdrawn(folder: Path) -> Withdrawn:
    """The list of the study in ``folder``; empty where it has none.

    Raises:
        PipelineError: a line is neither a comment nor ``patient`` or ``source`` and a pseudonym. The text does not
            quote it: somebody may have written a patient's number there.
    """
    try:
        lines = (folder / WITHDRAWN_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return Withdrawn()
    except UnicodeDecodeError:
        raise PipelineError(f"{WITHDRAWN_FILE}: not a text in UTF-8") from None
    named: dict[str, set[str]] = {"patient": set(), "source": set()}
    for position, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            named[match[1]].add(match[2])
        elif line.strip() and not line.startswith("#"):
            raise PipelineError(
                f"{WITHDRAWN_FILE}, line {position}: expected 'patient' or 'source' and a pseudonym of 32 hexadecimal "
                "digits; let `python -m pipeline.commands.withdraw` write it"
            )
    return Withdrawn(frozenset(named["patient"]), frozenset(named["source"]))


def write_withdrawn(folder: Path, withdrawn: Withdrawn) -> None:
    """Replace the list, sorted; whole or not at all."""
    lines = [f"patient {name}" for name in sorted(withdrawn.patients)]
    lines += [f"source {name}" for name in sorted(withdrawn.sources)]
    partial = folder / (WITHDRAWN_FILE + ".part")
    partial.write_text(_HEADER + "".join(line + "\n" for line in lines), encoding="utf-8")
    partial.replace(folder / WITHDRAWN_FILE)
