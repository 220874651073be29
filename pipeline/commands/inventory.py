"""Write the manifests of the study's raw archives, which `dvc repro` depends on instead of the archives.

A manifest holds a keyed pseudonym of each path with its size and time of change (or, with `inventory.hash`, a
keyed hash of its content, equal on every machine); no name. Run it when files were added, changed or removed;
`make repro` does. `--find` names the file behind a pseudonym, for the person at the keyboard.
"""

import os
import sys
from pathlib import Path

from pipeline import cli
from pipeline.datasets.inventory import identify, take_inventory
from pipeline.datasets.registry import check_remote, load_site
from pipeline.errors import PipelineError
from pipeline.key import KEY_FILE, PrivacyParams, ensure_private_key, load_key
from pipeline.params import StrictParams, load_names, load_params
from pipeline.tables.contract import write_table
from pipeline.tables.files import Manifest


class InventoryParams(StrictParams):
    """Section ``inventory``. ``hash``: read every file for its keyed hash instead of trusting size and time."""

    hash: bool = False


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--out", type=Path, default=Path("data/manifests"), help="default: data/manifests")
    arguments.add_argument("--find", metavar="SOURCE_ID", help="print the path behind a pseudonym, and stop")
    args = arguments.parse_args()
    if load_params(PrivacyParams, "privacy", args.params).key == "private" and ensure_private_key(args.params.parent):
        print(f"made a new key in {KEY_FILE}: keep it safe and private; without it no pseudonym can be joined again")
    key = load_key(args.params)
    params = load_params(InventoryParams, "inventory", args.params)
    for name in load_names("sites", args.params):
        adapter, site = load_site(name, args.params)
        if args.find is None:
            check_remote(name, adapter.terms(site), args.params)
        if site.simulate is not None:
            if args.find is None:
                continue  # its manifest is made with it, by the graph
            if not (args.params.parent / site.root).is_dir():
                continue
        sources = identify(adapter, site, name, args.params.parent, key, with_withdrawn=args.find is not None)
        if args.find is not None:
            if args.find in sources:
                # Bytes: a name that is not UTF-8 cannot be printed.
                sys.stdout.buffer.write(os.fsencode(sources[args.find].listed_path) + b"\n")
                return
            continue
        manifest = take_inventory(sources, key, hash_content=params.hash)
        write_table(Manifest, manifest, args.out / f"{name}.parquet")
        unreadable = int((manifest["size_bytes"] < 0).sum())
        print(f"{name}: {len(manifest)} files" + (f", {unreadable} of them cannot be read" if unreadable else ""))
    if args.find is not None:
        raise PipelineError(f"no file of this study has the pseudonym {args.find} under its key")


if __name__ == "__main__":
    cli.run(main)
