"""Sealed test labels: what a study declares before it opens ood_test labels, and the log of each opening.

``protocol.yaml`` in the study's folder names the primary outcome, the primary comparison and the margin;
``openings.csv`` beside it is only ever added to. Both are committed. A *seal* (opening 0) is written by `python -m
pipeline.commands.protocol seal`, an *opening* by whoever is about to read ood_test labels, which refuses a protocol
that is not sealed as it stands. An opening is told by three hashes: of the protocol, of the params that results hang on
(``SECTIONS``) and of the names of the ood_test images. The same three again are the same opening, so that a rerun adds
nothing; code is not among them. The order of lines is the order of events: there is no clock.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, field_validator

from pipeline.analysis.evaluation import BASELINES, COMPARED_METRIC
from pipeline.analysis.verdict import VerdictParams
from pipeline.errors import PipelineError
from pipeline.params import Name, ParamsError, StrictParams, nearest, parse, read_params_file, section_of
from pipeline.splits import SplitParams
from pipeline.tables.contract import make_table
from pipeline.tables.protocol import Openings, Protocols

PROTOCOL_FILE, LOG_FILE = "protocol.yaml", "openings.csv"
SECTIONS = (
    "sites", "ingest", "labels", "preprocess", "split", "backbones", "finetune", "methods", "evaluate", "verdict",
)  # fmt: skip
UNDECLARED = "no protocol was declared: exploratory"

_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}")
_HASH = r"[0-9a-f]{64}"
_ROW = re.compile(rf"(\d{{1,6}}),({_HASH}|),({_HASH}),({_HASH}|),([^\",\r\n]{{1,200}})")


class PrimaryOutcome(StrictParams):
    """The one number that the study is about: a metric of one finding at one place, as in ``tables.evaluation``."""

    metric: str
    finding: Name
    split: Literal["id_test", "ood_test"]
    group: str


class PrimaryComparison(StrictParams):
    """A backbone trained by a method, with all labels, less the same backbone by ``against``."""

    backbone: Name
    method: Name
    against: Name


class Declaration(StrictParams):
    """``protocol.yaml``. ``margin`` is that of ``verdict``; ``sample_size``: the patients planned to be tested."""

    hypothesis: Annotated[str, Field(min_length=1)]
    primary_outcome: PrimaryOutcome
    primary_comparison: PrimaryComparison
    margin: Annotated[float, Field(gt=0.0, lt=0.5)]
    sample_size: Annotated[int, Field(ge=2)] | None = None

    @field_validator("hypothesis")
    @classmethod
    def _no_date(cls, text: str) -> str:
        if _DATE.search(text):
            raise ValueError("no dates: the history of the file in git has them, and a date can be a patient's")
        return " ".join(text.split())


@dataclass(frozen=True)
class Entry:
    """A line of the log: opening 0 is a seal; hashes "" where there was no protocol, or no split yet."""

    opening: int
    protocol_sha256: str
    params_sha256: str
    splits_sha256: str
    reason: str


_HEADER = ",".join(field.name for field in fields(Entry))


def read_sections(path: Path) -> dict[str, Any]:
    """Those of ``SECTIONS`` that stand in params.yaml."""
    tree = read_params_file(path)
    return {name: tree[name] for name in SECTIONS if name in tree}


def load_protocol(path: Path, sections: Mapping[str, Any]) -> Declaration | None:
    """The study's protocol, checked against params (``read_sections``); None where the file is empty or not there.

    Raises:
        ParamsError: it does not fit its model, or names what params do not have; says the nearest that they have.
    """
    if not path.is_file() or not _content(path):
        return None
    declared = parse(Declaration, read_params_file(path), "protocol")
    check(declared, sections)
    return declared


def check(declared: Declaration, sections: Mapping[str, Any]) -> None:
    """Every name of the protocol is one that params give a result for, and its margin is theirs.

    Raises:
        ParamsError: which is not, and what there is.
    """

    def known(where: str, name: str, names: Sequence[str]) -> None:
        if name not in names:
            raise ParamsError(f"protocol.{where}: '{name}' has no result in this study{nearest(name, list(names))}")

    def section(name: str) -> Any:
        return section_of(sections, name, Path("params.yaml"))

    outcome, comparison = declared.primary_outcome, declared.primary_comparison
    methods = list(section("methods"))
    split = parse(SplitParams, section("split"), "split")
    home = outcome.split == "id_test"
    sites = split.source if home else split.target
    # A side's only hospital is the side: one comparison, under one name.
    places = ["source" if home else "target", *(f"site={site}" for site in sites if len(sites) > 1)]
    known("primary_outcome.metric", outcome.metric, [COMPARED_METRIC])
    known("primary_outcome.finding", outcome.finding, section("labels.findings"))
    known("primary_outcome.group", outcome.group, places)
    known("primary_comparison.backbone", comparison.backbone, list(section("backbones")))
    known("primary_comparison.method", comparison.method, [name for name in methods if name not in BASELINES])
    known("primary_comparison.against", comparison.against, [name for name in methods if name in BASELINES])
    margin = parse(VerdictParams, section("verdict"), "verdict").margin
    if declared.margin != margin:
        raise ParamsError(f"protocol.margin: must be verdict.margin, which is {margin}; got {declared.margin}")


def protocol_digest(declared: Declaration | None) -> str:
    """SHA-256 of what the protocol says, not of how it is laid out; "" without one."""
    return "" if declared is None else _digest(declared.model_dump())


def params_digest(sections: Mapping[str, Any]) -> str:
    """SHA-256 of ``SECTIONS``, whatever their order and comments."""
    return _digest({name: sections[name] for name in SECTIONS if name in sections})


def splits_digest(image_ids: Iterable[str]) -> str:
    """SHA-256 of the names of the ood_test images, in whatever order and however often each comes."""
    return hashlib.sha256("\n".join(sorted(set(image_ids))).encode()).hexdigest()


def seal(log: Sequence[Entry], protocol: str, params: str, splits: str, reason: str | None) -> list[Entry]:
    """The log with the protocol sealed; the same log where it is, with these params.

    Args:
        log: entries so far.
        protocol: hash.
        params: hash.
        splits: hash, "" where the split is not made yet.
        reason: why it changed, needed once the labels were opened.

    Raises:
        PipelineError: the labels were opened before and no reason is given, or it cannot stand in the log.
    """
    if any((entry.opening, entry.protocol_sha256, entry.params_sha256) == (0, protocol, params) for entry in log):
        return list(log)
    opened = _openings(log)
    if opened and not reason:
        raise PipelineError(
            f"the test labels were opened before ({_times(len(opened))}): say with --reason why the protocol or the "
            "params changed; it stands in the log and in the report"
        )
    entry = Entry(0, protocol, params, splits, reason or "sealed")
    if not _ROW.fullmatch(_line(entry)):
        raise PipelineError("--reason: up to 200 characters on one line, without comma and quotation mark")
    return [*log, entry]


def opened(log: Sequence[Entry], protocol: str, params: str, splits: str) -> list[Entry]:
    """The log with this opening; the same log where it was recorded before.

    Raises:
        PipelineError: there is a protocol and it was never sealed as it stands.
    """
    if protocol and not any(entry.opening == 0 and entry.protocol_sha256 == protocol for entry in log):
        raise PipelineError(
            f"{PROTOCOL_FILE} is not sealed as it stands: run `python -m pipeline.commands.protocol seal`, commit "
            f"{PROTOCOL_FILE} and {LOG_FILE}, and run again; no test label was opened"
        )
    past = _openings(log)
    if any((e.protocol_sha256, e.params_sha256, e.splits_sha256) == (protocol, params, splits) for e in past):
        return list(log)
    reason = _changes(past[-1], protocol, params, splits) if past else "first opening"
    return [*log, Entry(len(past) + 1, protocol, params, splits, reason)]


def record_opening(
    path: Path, declared: Declaration | None, sections: Mapping[str, Any], image_ids: Iterable[str]
) -> list[Entry]:
    """Write into the log that ood_test labels are about to be opened; the whole log.

    Args:
        path: of the log; made where it is not there, left as it is where the opening is in it.
        declared: ``load_protocol``.
        sections: ``read_sections``.
        image_ids: the ood_test images.

    Raises:
        PipelineError: the protocol is not sealed, or the log is not whole.
    """
    log = read_log(path)
    longer = opened(log, protocol_digest(declared), params_digest(sections), splits_digest(image_ids))
    if len(longer) > len(log):
        write_log(path, longer)
    return longer


def statement(log: Sequence[Entry], protocol: str, params: str) -> str:
    """What the report says of the protocol with these hashes: when it was sealed, and each opening's reason."""
    openings = _openings(log)
    parts = [_sealed(log, protocol, params) if protocol else UNDECLARED]
    parts.append(f"test labels opened {_times(len(openings))}" if openings else "test labels not opened yet")
    parts += [f"{entry.reason} after opening {entry.opening - 1}" for entry in openings if entry.opening > 1]
    return "; ".join(parts)


def openings_table(log: Sequence[Entry]) -> pd.DataFrame:
    """The log as ``tables.protocol.Openings``."""
    return make_table(Openings, [{"entry": number, **vars(entry)} for number, entry in enumerate(log, start=1)])


def protocol_table(declared: Declaration | None, text: str) -> pd.DataFrame:
    """One row of ``tables.protocol.Protocols``, ``text`` the statement; what was not declared is null."""
    row: dict[str, Any] = {"statement": text}
    if declared is not None:
        comparison = declared.primary_comparison
        row |= {
            "hypothesis": declared.hypothesis,
            **declared.primary_outcome.model_dump(),
            "run": f"{comparison.backbone}-{comparison.method}",
            "against": comparison.against,
            "margin": declared.margin,
            "sample_size": declared.sample_size,
        }
    return make_table(Protocols, [row])


def read_log(path: Path) -> list[Entry]:
    """The entries; none where there is no file yet.

    Raises:
        PipelineError: a line is no entry, or openings are not counted from 1; the text names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise PipelineError(f"{path.name}: not a text in UTF-8; take it from git again") from None
    if lines[:1] != [_HEADER]:
        raise PipelineError(f"{path.name}, line 1: expected '{_HEADER}'; take the file from git again")
    log: list[Entry] = []
    for position, line in enumerate(lines[1:], start=2):
        match = _ROW.fullmatch(line)
        if match is None:
            raise PipelineError(f"{path.name}, line {position}: expected {_HEADER}; take the file from git again")
        entry = Entry(int(match[1]), *match.groups()[1:])
        if entry.opening not in (0, following := len(_openings(log)) + 1):
            raise PipelineError(
                f"{path.name}, line {position}: expected opening {following} (or 0, a seal), got {entry.opening}. No "
                "line is ever taken out; after a merge keep the lines of both and count the openings on"
            )
        log.append(entry)
    return log


def write_log(path: Path, log: Sequence[Entry]) -> None:
    """Replace the file; whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_text("\n".join([_HEADER, *map(_line, log), ""]), encoding="utf-8", newline="\n")
    partial.replace(path)


def _content(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _digest(content: Any) -> str:
    # YAML has dates and keys of any type, JSON has not.
    text = json.dumps(_named(content), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _named(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _named(value) for key, value in content.items()}
    return [_named(value) for value in content] if isinstance(content, list) else content


def _line(entry: Entry) -> str:
    return ",".join(map(str, astuple(entry)))


def _openings(log: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in log if entry.opening]


def _changes(last: Entry, protocol: str, params: str, splits: str) -> str:
    changed = [
        ("protocol", last.protocol_sha256, protocol),
        ("params", last.params_sha256, params),
        ("test images", last.splits_sha256, splits),
    ]
    words = {(False, True): "declared", (True, False): "withdrawn"}
    return " and ".join(
        f"{what} {words.get((bool(old), bool(new)), 'changed')}" for what, old, new in changed if old != new
    )


def _sealed(log: Sequence[Entry], protocol: str, params: str) -> str:
    seals = [index for index, entry in enumerate(log) if entry.opening == 0 and entry.protocol_sha256 == protocol]
    if not seals:
        return "the protocol is not sealed"
    before = len(_openings(log[: seals[0]]))
    when = f"after opening {before} of the test labels" if before else "before the test labels were opened"
    same = any(log[index].params_sha256 == params for index in seals)
    return f"protocol sealed {when}" + ("" if same else ", params changed since")


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
