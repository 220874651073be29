"""Make a study: a folder with its own params.yaml, graph, lock file and results, beside the demo.

The graph is the root's, but for its first line, which says where the code is; the cache is shared with the root.
Run it in the root of the checkout. What is there already stays. With --from it looks at raw folders, a sample of their
files and the CSV files beside them, and writes a params.yaml with a site for each; what it could not find out says
FILL_IN there. It prints counts alone.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from textwrap import indent
from typing import Any

from ruamel.yaml import YAML

from pipeline import cli
from pipeline.datasets.registry import load_adapter
from pipeline.datasets.survey import FILL_IN, Survey, survey
from pipeline.errors import PipelineError
from pipeline.key import KEY_FILE, NEVER, ensure_private_key, fingerprint, private_key
from pipeline.params import NAME_PATTERN, ParamsError, parse
from pipeline.protocol import PROTOCOL_FILE
from pipeline.withdrawn import WITHDRAWN_FILE, Withdrawn, write_withdrawn

_POLICIES = ("uncertain", "missing", "conflict")
_UNDECLARED = """\
# Nothing is declared: what this study says is exploratory, and its report says so. To declare what is tested before
# test labels are opened: `python -m pipeline.commands.protocol --help`, docs/howto/shift.md.
"""
_FILL_IN_NAME = FILL_IN.lower()  # where params take a name alone
ROOT_LINE, STUDY_LINE = 'vars: [{code: ""}]', "vars: [{code: ../../}]"


def study_graph(root_graph: str) -> str:
    """The root's dvc.yaml with the one line changed."""
    if root_graph.count(ROOT_LINE) != 1:
        raise PipelineError(f"dvc.yaml: expected the line {ROOT_LINE} once")
    return root_graph.replace(ROOT_LINE, STUDY_LINE)


def site_names(given: list[str]) -> dict[str, Path]:
    """Names of sites for ``[NAME=]FOLDER``: the folder's own where it is a name, else site_1 and so on.

    Raises:
        ParamsError: a name is none, or stands there twice.
    """
    named: dict[str, Path] = {}
    for number, text in enumerate(given, start=1):
        name, mark, path = text.partition("=")
        folder = Path(path if mark else text)
        if not mark:
            name = folder.name if re.match(NAME_PATTERN, folder.name) else f"site_{number}"
        if not re.match(NAME_PATTERN, name) or name in named:
            raise ParamsError(f"--from: a site's name must match {NAME_PATTERN} and be its own; give NAME=FOLDER")
        named[name] = folder
    return named


def below_study(entry: Mapping[str, Any], folder: Path, study: Path) -> dict[str, Any]:
    """A proposal whose paths start at the study's folder instead of ``folder``; absolute where that was given so."""

    def moved(path: str) -> str:
        placed = os.path.normpath(folder / path)
        return placed if folder.is_absolute() else os.path.relpath(placed, study)

    changed = {
        name: moved(value) if name != "adapter" and isinstance(value, str) and (folder / value).exists() else value
        for name, value in entry.items()
    }
    if "labels" in entry:
        changed["labels"] = {**entry["labels"], "file": moved(entry["labels"]["file"])}
    return changed


def study_params(title: str, surveys: Mapping[str, Survey], key_fingerprint: str, demo: Mapping[str, Any]) -> str:
    """A commented params.yaml.

    Args:
        title: of the report.
        surveys: by site, paths as they are to stand there.
        key_fingerprint: of the study's key.
        demo: the root's params; what does not hang on the data is copied from there.
    """
    names = list(surveys)
    entries = {name: one.entry for name, one in surveys.items()}
    findings = set.intersection(*(set(entry.get("labels", {}).get("columns", {})) for entry in entries.values()))
    modalities = {modality for one in surveys.values() for modality in one.modalities}
    voi = "soft_tissue" if modalities == {"ct"} else "header"
    own = {
        "inventory": ({"hash": False}, "hash: true reads every file; false trusts its size and time of change"),
        "privacy": (
            {"key": "private", "key_fingerprint": key_fingerprint, "remote": NEVER},
            "The key itself is in .pipeline-key or PIPELINE_KEY: keep it, and never commit it. remote: where DVC may\n"
            "push what holds rows or pixels; null for its default remote, if the sites' terms allow redistribution",
        ),
        "ingest": (demo["ingest"], "What is held back for a person to decide; see docs/howto/ingest.md"),
        "labels": (
            {"findings": sorted(findings - {"finding"}) or [_FILL_IN_NAME]} | dict.fromkeys(_POLICIES, "missing"),
            "Columns that every site has. uncertain: missing, present or absent; missing: missing, or absent where a\n"
            "blank cell means that; conflict: missing, present, absent or majority",
        ),
        "preprocess": (
            {**demo["preprocess"], "size_px": 224, "voi": voi},
            f"Modalities seen: {', '.join(sorted(modalities)) or 'none'}. voi: header (each file's own window), or\n"
            "soft_tissue, lung, bone, brain, mediastinum",
        ),
        "split": (
            {**demo["split"], "source": names[:1], "target": names[1:] or [_FILL_IN_NAME]},
            "source: the sites that train; target: those that only test",
        ),
        "report": (
            {"title": title, "images": False},
            "images: true shows images of patients; counts below min_cell (11) are not told",
        ),
        "verdict": (
            demo["verdict"],
            "margin: the difference in AUROC that does not matter for what this is for; decide before results are seen",
        ),
        "continual": (
            {"backbones": []},
            "One hospital after another joins the study; docs/howto/continual.md. Spends the labels of target_adapt",
        ),
        "handover": ({}, "The model that leaves, once you have chosen one: docs/howto/handover.md"),
        "weights": ({"allow_random": False}, "From here on as in the demo; longer training will pay"),
    }  # fmt: skip
    sites = "".join(_site_text(name, surveys[name]) for name in names)
    sections = "".join(f"\n{_comment(comment)}{_yaml({name: value})}" for name, (value, comment) in own.items())
    rest = {name: value for name, value in demo.items() if name not in {*own, "sites", "simulate"}}
    return (
        f"# Written by `init` from a sample of the files; check it all. {FILL_IN} marks what it cannot know.\n"
        "\n# Of each site also, where it is so: issuer (sites that share one share patient numbers), and the terms of\n"
        "# a folder's data: origin, licence, redistribution, citation (docs/howto/labels.md).\n"
        f"sites:\n{sites}{sections}{_yaml(rest)}"
    )


def _site_text(name: str, found: Survey) -> str:
    notes = [found.told]
    if found.other_columns:
        notes.append("columns with few values, findings perhaps: " + ", ".join(found.other_columns))
    try:
        parse(load_adapter(found.entry["adapter"]).Params, found.entry, f"sites.{name}")
    except ParamsError as error:
        notes += [f"{FILL_IN}: {line}" for line in str(error).splitlines()]
    return indent(_comment("\n".join(notes)) + _yaml({name: found.entry}), "  ")


def _comment(text: str) -> str:
    return indent(text, "# ") + "\n"


def _yaml(value: Any) -> str:
    """In the style of the other params: a line an entry."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 4096
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("name", help=f"of the study; matches {NAME_PATTERN}")
    arguments.add_argument(
        "--from", dest="folders", action="append", default=[], metavar="[NAME=]FOLDER", help="a site's raw folder"
    )
    args = arguments.parse_args()
    if not re.match(NAME_PATTERN, args.name):
        raise ParamsError(f"the study's name must match {NAME_PATTERN}; got {args.name!r}")
    if not Path("dvc.yaml").is_file() or not Path("pipeline").is_dir():
        raise PipelineError("run this in the root of the checkout")
    folder = Path("studies") / args.name
    params = folder / "params.yaml"
    if args.folders and params.exists():
        raise PipelineError(f"{params} is there already and stays as it is; leave out --from, or take another name")
    surveys = {}
    for site, raw in site_names(args.folders).items():
        found = survey(raw)
        surveys[site] = replace(found, entry=below_study(found.entry, raw, folder))
        print(f"{site}: {found.told}")
    make_folder(folder)
    if surveys:
        if ensure_private_key(folder):
            print(f"made a new key in {folder / KEY_FILE}: keep it safe and private")
        text = study_params(args.name, surveys, fingerprint(private_key(folder)), YAML().load(Path("params.yaml")))
        params.write_text(text, encoding="utf-8")
        print(f"{params}: {text.upper().count(FILL_IN) - 1} places to fill in; check the others")
    told = "" if params.is_file() else f"; now write {params}"
    print(f"{folder} is ready{told}. Then: make study STUDY={args.name}")


def make_folder(folder: Path) -> None:
    """The study's folder with its DVC, or what is new of it; ``folder`` is relative to the root."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".dvc").is_dir():
        dvc = [sys.executable, "-m", "dvc"]
        subprocess.run([*dvc, "init", "--quiet", "--subdir"], cwd=folder, check=True)
        for setting in (
            ["cache.dir", "../../.dvc/cache"],
            ["core.analytics", "false"],
            ["core.autostage", "false"],
            [f"remote.{NEVER}.url", "/dev/null/privacy.remote-in-params.yaml-is-never"],
        ):
            subprocess.run([*dvc, "config", *setting], cwd=folder, check=True)
        (folder / ".dvcignore").write_text(Path(".dvcignore").read_text(encoding="utf-8"), encoding="utf-8")
    if not (folder / WITHDRAWN_FILE).exists():
        write_withdrawn(folder, Withdrawn())
    if not (folder / PROTOCOL_FILE).exists():
        (folder / PROTOCOL_FILE).write_text(_UNDECLARED, encoding="utf-8")
    (folder / "dvc.yaml").write_text(study_graph(Path("dvc.yaml").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
