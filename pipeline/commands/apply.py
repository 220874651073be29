"""Apply a handed-over model (`data/bundle/NAME`, or a copy of it elsewhere) to a folder of new files.

The files go through the very reading and preprocessing of the study. Two tables come out: --out, one row an image and
finding (probability, call at the fixed threshold, abstention, how far the image lies from the training images), and
beside it NAME.refused.csv, one row for each file without one, with its reason. Together they hold every file found.

No identifier stands in either: files, images, patients and studies have pseudonyms under the key in PIPELINE_KEY or
.pipeline-key of this folder (made on first use). --lookup writes, for you alone, which file has which pseudonym.

DICOM for a model that was trained on DICOM; PNG and JPEG for one that was trained on these, whose patients only
--patient can tell apart. Files of another modality, view, body part or window than the model was trained on are
refused. Research use only: no decision about a patient may rest on it.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.handover.reading import (
    ADAPTERS,
    Funnel,
    check_headers,
    find_files,
    make_arrays,
    read,
    write_lookup,
)
from pipeline.imaging.store import Store
from pipeline.key import KEY_FILE, PUBLIC_KEY, ensure_private_key, fingerprint, private_key
from pipeline.params import NAME_PATTERN
from pipeline.stages.ingest import Reader
from pipeline.tables.contract import make_table
from pipeline.tables.handover import Refused
from pipeline.withdrawn import read_withdrawn

if TYPE_CHECKING:
    from pipeline.handover.applier import Applier


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, required=True, metavar="DIR", help="the bundle")
    made.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="new files; nothing is written there")
    made.add_argument("--out", type=Path, required=True, metavar="CSV", help="the predictions")
    made.add_argument(
        "--unlike",
        choices=["refuse", "tell"],
        default="refuse",
        help="files unlike the training images: left out, or predicted and told in the column unlike",
    )
    made.add_argument("--key", choices=["private", "public"], default="private", help="public: for public data alone")
    made.add_argument(
        "--site", default="applied", metavar="NAME", help="of the hospital; enters the pseudonyms of files"
    )
    made.add_argument("--issuer", metavar="NAME", help="who gave out the patient numbers; default: the site")
    made.add_argument(
        "--patient",
        metavar="PATTERN",
        help="of PNG and JPEG files: a regular expression for the path with a group (?P<patient>...)",
    )
    made.add_argument(
        "--lookup", type=Path, metavar="FILE", help="write pseudonym and path of each file, readable by you"
    )
    made.add_argument("--arrays", type=Path, metavar="FOLDER", help="write the preprocessed images, for monai.bundle")
    made.add_argument("--workers", type=int, help="processes; changes no result")
    return made  # fmt: skip


def check_places(args: argparse.Namespace) -> None:
    """Outputs outside of input and bundle, and the lookup apart from the outputs.

    Raises:
        PipelineError: one is not; quotes no path.
    """
    if not args.input.is_dir():
        raise PipelineError("--input: no such folder")
    if not args.model.is_dir():
        raise PipelineError("--model: no such folder")
    for name in ("out", "lookup", "arrays"):
        path = getattr(args, name)
        for kept in ("input", "model"):
            if path is not None and path.resolve().is_relative_to(getattr(args, kept).resolve()):
                raise PipelineError(f"--{name} may not lie inside --{kept}")
    outputs = [args.out.resolve().parent, *([args.arrays.resolve()] if args.arrays else [])]
    if args.lookup is not None and any(args.lookup.resolve().is_relative_to(folder) for folder in outputs):
        raise PipelineError(
            "--lookup may not lie beside the outputs: it names patients' files, and would be passed on with them"
        )
    for name in ("site", "issuer"):
        value = getattr(args, name)
        if value is not None and not re.match(NAME_PATTERN, value):
            raise PipelineError(f"--{name} must match {NAME_PATTERN}")


def load_model(folder: Path) -> "Applier":
    """The bundle's model; tells of other versions."""
    from pipeline.handover.applier import differing, load_applier  # torch, which worker processes need not load

    applier = load_applier(folder)
    off = applier.check(folder)
    installed = {name: version(name).split("+")[0] for name in applier.application.versions}
    if others := differing(applier.application, installed):
        print(
            f"note: {'; '.join(others)}. On the bundle's test pictures probabilities differ by {off:.1g} at most",
            file=sys.stderr,
        )
    return applier


def load_key(choice: str) -> bytes:
    """The key of the pseudonyms, made on first use."""
    if choice == "public":
        return PUBLIC_KEY
    if ensure_private_key(Path()):
        print(f"made a new key in {KEY_FILE}: keep it safe and private; without it no pseudonym can be joined again")
    return private_key(Path())


def refused_path(out: Path) -> Path:
    """Beside the predictions."""
    return out.with_name(f"{out.stem}.refused{out.suffix or '.csv'}")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    frame.to_csv(partial, index=False)
    partial.replace(path)


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    check_places(args)
    from pipeline.handover.applier import apply_model, write_arrays

    applier = load_model(args.model)
    application = applier.application
    kind = application.seen.kind
    if args.patient is not None and kind != "raster":
        raise PipelineError(
            "--patient is for PNG and JPEG files; this model takes DICOM, whose headers name the patient"
        )
    key = load_key(args.key)
    funnel = Funnel(find_files(args.input, kind, key, args.site, args.patient))
    if args.lookup is not None:
        write_lookup(args.lookup, funnel.sources)
    reader = Reader(ADAPTERS[kind], args.site, args.issuer or args.site, key, application.ingest)
    with tempfile.TemporaryDirectory(prefix="apply-") as name:  # for its owner alone
        folder = Path(name)
        instances = read(funnel, reader, read_withdrawn(Path()).patients, folder, args.workers)
        instances = check_headers(funnel, instances, application.seen, args.unlike)
        found = make_arrays(
            funnel, instances, reader, application.preprocess, application.seen, args.unlike, folder, args.workers
        )
        store = Store(folder)
        applied = apply_model(applier, found, store, funnel.unlike)
        if args.arrays is not None:
            write_arrays(store, found, args.arrays)
    refused = make_table(Refused, funnel.rows())
    used = applied["source_id"].nunique()
    if used + len(refused) != len(funnel.sources):
        raise RuntimeError(f"{len(funnel.sources)} files found, but {used} with rows and {len(refused)} refused")
    write_csv(applied, args.out)
    write_csv(refused, refused_path(args.out))
    reasons = Counter(f"{stage} {reason}" for stage, _, reason, _ in funnel.refused.values())
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    print(f"{len(funnel.sources)} files: {used} with predictions, {len(refused)} refused{f' ({told})' if told else ''}")
    images = applied.drop_duplicates("image_id")
    if len(images):
        print(
            f"{len(images)} images: {int(images['out_of_distribution'].sum())} out of distribution; "
            f"{int(applied['abstained'].sum())} of {len(applied)} calls abstained"
        )
    print(f"key {fingerprint(key)}")
    if not used:
        raise PipelineError("none of the files can be used; the second table says why of each")


if __name__ == "__main__":
    cli.run(main)
