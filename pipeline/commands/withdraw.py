"""Remove a patient who withdraws consent: from manifests, tables, arrays and DVC's cache; list the models.

The PatientID is asked for, and never stands in the shell's history or in an output; --site or --issuer says who
gave it out. Or give the pseudonym. The patient's pseudonym and those of the files go to withdrawn.txt, which you
commit: from then on inventory and ingest leave them out. Then every output that holds rows or pixels of the patient
is deleted, in the workspace and, in any version, in the cache; `make repro` makes them again without. A manifest
loses its rows alone, and so does the ledger of sides (splits.csv).

Models are listed, not deleted, unless --delete-models. --dry-run shows all this and changes nothing.
"""

import getpass
import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dvc.exceptions import NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock
from dvc.utils.serialize import load_yaml
from tqdm import tqdm

from pipeline import cli
from pipeline.datasets.registry import load_site
from pipeline.dicom.deidentify import pseudonym
from pipeline.errors import PipelineError
from pipeline.key import load_key
from pipeline.ledger import forget, holds_patient
from pipeline.params import load_names
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.files import Manifest
from pipeline.training.budget import annotated_patients
from pipeline.withdrawn import WITHDRAWN_FILE, Withdrawn, read_withdrawn, write_withdrawn

SCRATCH = tuple(Path(".checkpoints") / stage for stage in ("ingest", "preprocess", "finetune", "continual", "matrix"))
_PARQUET = b"PAR1"
_ROW_IDS = ("patient_id", "image_id", "source_id", "duplicate_of")  # columns that say whose a row is
_MODEL_CARD = "model.json"
_GATHER = "gather"  # the folder that finetune trains from


# --- whose a row is ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """All pseudonyms of one patient: their own, and those of their images and files."""

    patient: str
    images: frozenset[str]
    sources: frozenset[str]

    @property
    def all(self) -> pa.Array:
        """For comparing with cells."""
        return pa.array(sorted({self.patient} | self.images | self.sources), pa.string())


def columns_of(table: Path) -> list[str]:
    """The names of a Parquet file's columns; an old version may have others than ``pipeline.tables`` says.

    Raises:
        pa.ArrowInvalid: it cannot be read.
    """
    return list(pq.read_schema(table).names)


def read_columns(table: Path, names: Iterable[str]) -> pd.DataFrame:
    """Those of the columns that the file has, as text."""
    present = [name for name in names if name in columns_of(table)]
    data = pq.read_table(table, columns=present, partitioning=None)
    return pd.DataFrame({name: data.column(name).cast(pa.string()).to_pandas() for name in present})


def identify_patient(patient: str, tables: Iterable[Path], current: Collection[Path]) -> Identity:
    """The patient's images and files, from every table that there is, present or past.

    Copies count: a file of the same keyed hash, and one that was set aside as a duplicate. A file that the tables of
    today give to another patient does not: its path was used again.

    Args:
        patient: pseudonym.
        tables: Parquet files.
        current: of these, the ones of the workspace.
    """
    images: set[str] = set()
    sources: set[str] = set()
    hashes: set[str] = set()
    others: set[str] = set()
    links: list[pd.DataFrame] = []
    for table in tables:
        names = columns_of(table)
        if "patient_id" in names:
            rows = read_columns(table, ["patient_id", "image_id", "source_id", "source_hmac"])
            own = rows["patient_id"] == patient
            for column, found in (("image_id", images), ("source_id", sources), ("source_hmac", hashes)):
                if column in rows:
                    found.update(rows.loc[own, column].dropna())
            if table in current and "source_id" in rows:
                others.update(rows.loc[~own, "source_id"])
        elif "source_id" in names and ("source_hmac" in names or "duplicate_of" in names):
            rows = read_columns(table, ["source_id", "source_hmac", "duplicate_of"])
            links.append(rows.dropna(thresh=2))
    for rows in links:
        for column, found in (("source_hmac", hashes), ("duplicate_of", set(sources))):
            if column in rows:
                sources.update(rows.loc[rows[column].isin(found), "source_id"])
    return Identity(patient, frozenset(images), frozenset(sources - others))


def holds(table: Path, identity: Identity) -> bool:
    """Whether a Parquet file has a row of the patient."""
    names = [name for name in _ROW_IDS if name in columns_of(table)]
    if not names:
        return False
    wanted = identity.all
    data = pq.read_table(table, columns=names, partitioning=None)
    return any(pc.any(pc.is_in(data.column(name).cast(pa.string()), value_set=wanted)).as_py() for name in names)


# --- what there is ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Production:
    """One run of a stage: what it made of what, paths (as the stage has them) with hashes."""

    deps: Mapping[str, str]
    outs: Mapping[str, str]
    record: Path | None  # in the run cache; None for dvc.lock's


@dataclass
class Cache:
    """DVC's cache, walked once.

    Attributes:
        objects: path by hash; a folder's ends in ".dir".
        trees: of a folder's hash, the hash by relative path.
        tables: hashes of Parquet files.
        unreadable: hashes of what begins as Parquet or ends in ".dir" and is neither.
    """

    objects: dict[str, Path] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)

    def is_model(self, oid: str) -> bool:
        """Whether a folder is finetune's."""
        return any(Path(name).name == _MODEL_CARD for name in self.trees.get(oid, ()))


def walk_cache(folder: Path) -> Cache:
    """All objects below ``.../files/md5``, each opened once."""
    cache = Cache()
    paths = sorted(path for path in folder.glob("??/*") if path.is_file())
    for path in tqdm(paths, desc="cache", unit="object", mininterval=0.5):
        oid = path.parent.name + path.name
        cache.objects[oid] = path
        try:
            if oid.endswith(".dir"):
                listed = json.loads(path.read_text(encoding="utf-8"))
                cache.trees[oid] = {entry["relpath"]: entry["md5"] for entry in listed}
            elif _begins_as_parquet(path):
                columns_of(path)
                cache.tables.add(oid)
        except (ValueError, KeyError, TypeError):  # pa.ArrowInvalid and JSON's are ValueErrors
            cache.unreadable.add(oid)
    return cache


def _begins_as_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _PARQUET


def read_productions(repo: Any) -> list[Production]:
    """What the run cache and this study's dvc.lock remember of runs."""
    found = [
        Production(
            {dep.def_path: dep.hash_info.value for dep in stage.deps if dep.hash_info.name == "md5"},
            {out.def_path: out.hash_info.value for out in stage.outs if out.hash_info.name == "md5"},
            None,
        )
        for stage in repo.index.stages
    ]
    for path in sorted(Path(repo.stage_cache.cache_dir).glob("??/*/*")):
        entry = load_yaml(str(path))
        deps, outs = (
            {item["path"]: item["md5"] for item in entry.get(side, []) if "md5" in item} for side in ("deps", "outs")
        )
        found.append(Production(deps, outs, path))
    return found


# --- what is to go ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What of the cache holds the patient.

    Attributes:
        tainted: hashes of outputs (folders, single files and tables) that hold rows or pixels of the patient.
        unknown: hashes of folders without rows of which nothing says what they were made from.
    """

    tainted: frozenset[str]
    unknown: frozenset[str]


def judge(cache: Cache, productions: Iterable[Production], identity: Identity) -> Verdict:
    """Rows decide where an output has rows; otherwise what it was made from does (features, figures, metrics).

    A model is neither: it was made from the patient, and is listed.
    """
    tables = {
        oid
        for oid in tqdm(sorted(cache.tables), desc="tables", unit="table", mininterval=0.5)
        if holds(cache.objects[oid], identity)
    }
    telling = {oid for oid in cache.tables if set(_ROW_IDS) & set(columns_of(cache.objects[oid]))}
    telling |= {oid for oid, tree in cache.trees.items() if telling & set(tree.values())}
    tainted = tables | {oid for oid, tree in cache.trees.items() if tables & set(tree.values())}
    known = list(productions)
    grown = True
    while grown:
        grown = False
        for production in known:
            # What is no longer in the cache cannot be asked for its rows: it counts as holding the patient, and so
            # does what was made from it.
            made = {oid for oid in production.outs.values() if oid not in telling and not cache.is_model(oid)} - tainted
            if made and not tainted.isdisjoint(production.deps.values()):
                tainted |= made
                grown = True
    recorded = {oid for production in known for oid in production.outs.values()}
    return Verdict(frozenset(tainted), frozenset(cache.trees.keys() - telling - recorded))


def doomed_objects(cache: Cache, gone: Collection[str], productions: Iterable[Production]) -> list[str]:
    """The objects to delete for some outputs, in the order that leaves a second call able to finish a broken one.

    An object that an output which stays shares is left. Arrays go first, then tables, those that name the patient
    last: they are what finds the rest.
    """
    stay = {oid for tree, names in cache.trees.items() if tree not in gone for oid in names.values()}
    stay |= {oid for production in productions for oid in production.outs.values()} - set(gone)
    objects = {oid for oid in gone if oid in cache.objects}
    objects |= {oid for tree in gone for oid in cache.trees.get(tree, {}).values()} - stay
    return sorted((objects & cache.objects.keys()) | cache.unreadable, key=lambda oid: (_rank(cache, oid), oid))


def _rank(cache: Cache, oid: str) -> int:
    if oid in cache.trees:
        return 3
    if oid not in cache.tables:
        return 0
    return 2 if "patient_id" in columns_of(cache.objects[oid]) else 1


@dataclass(frozen=True)
class Workspace:
    """What of the study's folder is to go: outputs, in the order of deletion; manifests and ledgers that lose rows."""

    outputs: tuple[Path, ...]
    manifests: tuple[Path, ...]
    ledgers: tuple[Path, ...]


def judge_workspace(repo: Any, study: Path, tables: Iterable[Path], identity: Identity) -> Workspace:
    """As ``judge``, by paths: the outputs of the graph, and tables that lie beside them."""
    names = {table: columns_of(table) for table in tables}
    hit = {table for table in names if holds(table, identity)}
    manifests = sorted(table for table in hit if {"source_id", "size_bytes"} <= set(names[table]))
    for table in manifests:
        read_table(Manifest, table)  # what could not be written again is told before anything is deleted
    hit.difference_update(manifests)
    # What persists is no run's product: the ledger, in which the others' sides stand.
    outs = {Path(out.fs_path): stage for stage in repo.index.stages for out in stage.outs if not out.persist}
    kept = [Path(out.fs_path) for stage in repo.index.stages for out in stage.outs if out.persist]

    def within(folder: Path, found: Iterable[Path]) -> bool:
        return any(path == folder or folder in path.parents for path in found)

    telling = {out for out in outs if within(out, (table for table in names if set(_ROW_IDS) & set(names[table])))}
    tainted = {out for out in outs if within(out, hit)} - set(manifests)
    grown = True
    while grown:
        grown = False
        for out, stage in outs.items():
            if out in tainted or out in telling or not out.exists() or any(out.glob(f"*/{_MODEL_CARD}")):
                continue
            inputs = [Path(dep.fs_path) for dep in stage.deps]
            if any(within(path, tainted) or within(bad, [path]) for path in inputs for bad in tainted):
                tainted.add(out)
                grown = True
    # What a removed site left, which no stage has for its output any more.
    tainted |= {
        table.parent if table.parent.parent != study else table
        for table in hit
        if not any(within(out, [table]) for out in outs)
    }

    def rank(out: Path) -> tuple[int, Path]:
        inside = [table for table in names if within(out, [table])]
        return (2 if any("patient_id" in names[table] for table in inside) else int(bool(inside))), out

    ledgers = tuple(path for path in kept if holds_patient(path, identity.patient))
    return Workspace(tuple(sorted(tainted, key=rank)), tuple(manifests), ledgers)


# --- models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelRun:
    """One trained model and what it had to do with the patient."""

    run: str
    path: str
    oid: str
    use: str


USES = {
    "train": "trained on this patient",
    "id_val": "selected on this patient (id_val)",
    "fraction": "not trained on this patient: outside its label budget",
    "unknown": "cannot be known: what it was trained on is no longer in the cache",
}


def use_of(gathered: pd.DataFrame, patient: str, card: Mapping[str, Any]) -> str | None:
    """What a run made of a patient (a key of ``USES``); None where its data do not hold the patient.

    Args:
        gathered: patient_id, split and a column of labels for each finding.
        patient: pseudonym.
        card: the model's.
    """
    own = gathered[gathered["patient_id"] == patient]
    if not len(own):
        return None
    if "id_val" in set(own["split"]):
        return "id_val"
    train = gathered[gathered["split"] == "train"]
    labels = train.drop(columns=["patient_id", "split"]).to_numpy(np.float32, na_value=np.nan)
    patients = train["patient_id"].to_numpy(str)
    chosen = annotated_patients(labels, patients, card["label_fraction"], card["draw"], card["shots"])
    return "train" if patient in chosen else "fraction"


def list_models(cache: Cache, productions: Iterable[Production], identity: Identity, study: Path) -> list[ModelRun]:
    """Every run, in the workspace or the cache, that had the patient, or of which it cannot be known."""
    found: dict[tuple[str, str], ModelRun] = {}
    seen: set[str] = set()
    for production in productions:
        gathered = [oid for path, oid in production.deps.items() if Path(path).name == _GATHER]
        for path, oid in production.outs.items():
            cards = dict(_cards(cache, oid, study / path if production.record is None else None))
            if not cards or not gathered:
                continue
            seen.add(oid)
            samples = _samples(cache, gathered[0])
            if samples is None and production.record is None:
                samples = _workspace_samples(study, production)
            for run, card in cards.items():
                use = "unknown" if samples is None else use_of(samples, identity.patient, card)
                if use is not None:
                    found[oid, run] = ModelRun(run, path, oid, use)
    for oid in cache.trees:
        if cache.is_model(oid) and oid not in seen:
            for run, _ in _cards(cache, oid, None):
                found[oid, run] = ModelRun(run, "(cache)", oid, "unknown")
    return sorted(found.values(), key=lambda model: (model.path, model.oid, model.run))


def _cards(cache: Cache, oid: str, folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run and card of each model of an output: from the cache, or from the workspace's folder."""
    paths = [cache.objects.get(entry) for name, entry in cache.trees.get(oid, {}).items() if name.endswith(_MODEL_CARD)]
    if not paths and folder is not None:
        paths = list(folder.glob(f"*/{_MODEL_CARD}"))
    for path in paths:
        if path is not None:
            card = json.loads(path.read_text(encoding="utf-8"))
            if "label_fraction" in card:
                yield card["run"], card


def _samples(cache: Cache, oid: str) -> pd.DataFrame | None:
    tables = [cache.objects[entry] for entry in cache.trees.get(oid, {}).values() if entry in cache.tables]
    return _joined(tables)


def _workspace_samples(study: Path, production: Production) -> pd.DataFrame | None:
    folder = next(study / path for path in production.deps if Path(path).name == _GATHER)
    return _joined([path for path in (folder / "samples.parquet", folder / "labels.parquet") if path.is_file()])


def _joined(tables: Iterable[Path]) -> pd.DataFrame | None:
    """What was gathered, an image a row: patient_id, split, and a column of labels for each finding."""
    samples, labels = None, None
    for table in tables:
        names = set(columns_of(table))
        if {"patient_id", "split"} <= names:
            samples = read_columns(table, ["image_id", "patient_id", "split"])
        elif {"finding", "label"} <= names:
            labels = read_columns(table, ["image_id", "finding", "label"])
            labels["label"] = pd.to_numeric(labels["label"])
    if samples is None or labels is None:
        return None
    wide = labels.set_index(["image_id", "finding"])["label"].unstack()  # noqa: PD010 - a key is unique; nothing to aggregate
    return samples.merge(wide, left_on="image_id", right_index=True, how="left").drop(columns="image_id")


# --- the command ------------------------------------------------------------------------------------------


def asked_patient(args: Any) -> str:
    """The pseudonym that the person at the keyboard means.

    Raises:
        PipelineError: it is no pseudonym, or it is not clear who gave out the number.
    """
    if args.pseudonym is not None:
        if not re.fullmatch(r"[0-9a-f]{32}", args.pseudonym):
            raise PipelineError(
                "--pseudonym: expected 32 hexadecimal digits; without the option the PatientID is asked"
            )
        return str(args.pseudonym)
    key = load_key(args.params)
    issuers = {name: load_site(name, args.params)[1].issuer or name for name in load_names("sites", args.params)}
    if args.site is not None and args.site not in issuers:
        raise PipelineError(f"--site: no such site; known: {', '.join(sorted(issuers))}")
    named = {args.issuer} if args.issuer else {issuers[args.site]} if args.site else set(issuers.values())
    if len(named) > 1:
        raise PipelineError(
            "say with --site or --issuer who gave out the number: equal numbers of two hospitals are two patients; "
            f"issuers: {', '.join(sorted(named))}"
        )
    if not named <= set(issuers.values()):
        raise PipelineError(f"--issuer: no site has this issuer; known: {', '.join(sorted(set(issuers.values())))}")
    number = getpass.getpass("PatientID (not shown): ").strip(" \0")
    if not number:
        raise PipelineError("no PatientID was given")
    return pseudonym(key, "patient", named.pop(), number)


def delete(path: Path) -> None:
    """A file, a link or a folder; nothing where it is gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cut_manifest(path: Path, sources: Collection[str]) -> int:
    """Take rows out of a manifest; returns how many. The file is new, for the old one may be a link to the cache's."""
    manifest = read_table(Manifest, path)
    own = manifest["source_id"].isin(sources)
    partial = path.with_name(path.name + ".part")
    write_table(Manifest, manifest[~own], partial)
    partial.replace(path)
    return int(own.sum())


def withdraw(repo: Any, study: Path, patient: str, *, delete_models: bool, dry_run: bool, add_anyway: bool) -> None:
    """Find all that holds the patient, say so, and delete it.

    Args:
        repo: the study's ``dvc.repo.Repo``, locked by the caller.
        study: the study's folder.
        patient: pseudonym.
        delete_models: also what was trained or selected on the patient.
        dry_run: only say so.
        add_anyway: list a patient of whom there is nothing, so that files that arrive later are left out.

    Raises:
        PipelineError: there is nothing of the patient.
    """
    listed = read_withdrawn(study)
    cache = walk_cache(Path(repo.cache.local.path))
    here = sorted(path for folder in ("data", "reports") for path in (study / folder).rglob("*.parquet"))
    here_set = set(here)
    everywhere = [*here, *(cache.objects[oid] for oid in sorted(cache.tables))]
    identity = identify_patient(patient, everywhere, here_set)
    workspace = judge_workspace(repo, study, here, identity)
    known = identity.images or workspace.ledgers or patient in listed.patients
    if not known and not add_anyway:
        raise PipelineError(
            f"nothing of patient {patient} is in this study or in its cache. Check the number and who gave it out. "
            "A patient all of whose files were excluded is in no table: --add-anyway lists them for what comes later"
        )
    productions = read_productions(repo)
    verdict = judge(cache, productions, identity)
    models = list_models(cache, productions, identity, study)
    blamed = {model.oid for model in models if model.use in ("train", "id_val")} if delete_models else set()
    gone = verdict.tainted | blamed
    objects = doomed_objects(cache, gone, productions)
    outputs = [*workspace.outputs, *_model_folders(productions, blamed, study)]
    records = [entry.record for entry in productions if entry.record and not gone.isdisjoint(entry.outs.values())]
    silent = [oid for oid in verdict.unknown if not cache.is_model(oid)]

    print(f"patient {patient}: {len(identity.images)} images in {len(identity.sources)} files")
    would = "would be " if dry_run else ""
    for path in outputs:
        print(f"  {would}deleted: {path.relative_to(study)}")
    for path in (*workspace.manifests, *workspace.ledgers):
        print(f"  {would}cut: {path.relative_to(study)}")
    size = sum(cache.objects[oid].stat().st_size for oid in objects)
    print(f"  {would}deleted from the cache: {len(objects)} objects ({size} bytes), {len(records)} entries of runs")
    if cache.unreadable:
        print(f"  among them {len(cache.unreadable)} broken ones, which could not be searched")
    if silent:
        print(
            f"  {len(silent)} cached outputs without rows, of which nothing says what they were made from, stay: "
            "`dvc gc --workspace` deletes them if nothing uses them: " + ", ".join(oid[:8] for oid in sorted(silent))
        )
    for model in models:
        place = "" if model.oid in cache.objects else ", not in the cache"
        print(f"  model {model.run} ({model.path}, {model.oid[:8]}{place}): {USES[model.use]}")
    if not models:
        print("  no model had this patient")
    if dry_run:
        return

    # The list comes first: should anything below fail, nothing of the patient comes back, and a second call goes on.
    write_withdrawn(study, Withdrawn(listed.patients | {patient}, listed.sources | identity.sources))
    for path in tqdm(outputs, desc="workspace", unit="output", disable=len(outputs) < 2):
        delete(path)
    for path in workspace.manifests:
        cut_manifest(path, identity.sources)
    for path in workspace.ledgers:
        forget(path, patient)
    for scratch in SCRATCH:
        delete(study / scratch)  # made again by the next run
    for oid in tqdm(objects, desc="deleting", unit="object", mininterval=0.5):
        delete(cache.objects[oid])
    for record in records:
        delete(record)
    print("\n".join(_next_steps(repo, study, bool(blamed) or not models)))


def _model_folders(productions: Iterable[Production], blamed: Collection[str], study: Path) -> list[Path]:
    """Of the workspace, what dvc.lock says are these models."""
    return [
        study / path
        for production in productions
        if production.record is None
        for path, oid in production.outs.items()
        if oid in blamed
    ]


def _next_steps(repo: Any, study: Path, models_done: bool) -> list[str]:
    steps = [
        "now:",
        f"- commit {WITHDRAWN_FILE} and, if it was cut, splits.csv; they and their history hold pseudonyms only",
        "- remove the patient's raw files and their rows in label files: neither was touched",
        "- run `make repro`: it makes the deleted outputs again and trains without the patient",
        "- run this in the other studies of this cache: it was searched for all, but each has a folder and a list",
    ]
    if not models_done:
        steps.append("- the models above still exist: delete them with --delete-models, and every copy given away")
    remotes = sorted(repo.config.get("remote", {}))
    if remotes:
        steps.append(
            f"- copies on DVC remotes were not touched ({', '.join(remotes)}): after `make repro` and a commit, "
            "`dvc gc --workspace --cloud --remote NAME`, or delete them there"
        )
    if any((study / ".dvc" / "tmp" / "exps").glob("*/*")):
        steps.append("- .dvc/tmp/exps holds folders of experiments: `dvc queue remove --all`, and delete what is left")
    return steps


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--site", help="the hospital whose number is given")
    arguments.add_argument("--issuer", help="who gave out the number, where sites share an issuer")
    arguments.add_argument("--pseudonym", metavar="ID", help="the patient's pseudonym, instead of the number")
    arguments.add_argument("--delete-models", action="store_true", help="also the models trained or selected on them")
    arguments.add_argument("--add-anyway", action="store_true", help="list a patient of whom nothing is found")
    arguments.add_argument("--dry-run", action="store_true", help="say what would be deleted, and stop")
    args = arguments.parse_args()
    study = args.params.parent.resolve()
    patient = asked_patient(args)
    try:
        repo = Repo(str(study))
    except NotDvcRepoError:
        raise PipelineError(f"{study} is no DVC repository; run this in the study's folder") from None
    try:
        with (
            repo.lock,
            rwlock(
                repo.tmp_dir, repo.fs, "withdraw", [], [str(study)], repo.config["core"].get("hardlink_lock", False)
            ),
        ):
            withdraw(
                repo,
                study,
                patient,
                delete_models=args.delete_models,
                dry_run=args.dry_run,
                add_anyway=args.add_anyway,
            )
    except LockError:
        raise PipelineError("DVC is at work in this study; wait until it has ended") from None


if __name__ == "__main__":
    cli.run(main)
