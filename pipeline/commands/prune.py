"""Remove what sites, backbones and methods that params no longer name have left: outputs, and entries of dvc.lock.

DVC keeps both. `make repro` calls this first; what is deleted comes back from the cache when the name does.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.utils.serialize import modify_yaml

from pipeline import cli

# Where params name nothing of the kind no stage makes these, and DVC wants what a stage depends on to be there.
OPTIONAL = ("data/adapt", "data/continual", "data/forgetting", "data/gallery", "data/matrix_scores")


def stale_entries(lock: dict[str, Any], known: Iterable[str]) -> dict[str, list[str]]:
    """Stages of a lock file that the graph no longer has, with their outputs' paths."""
    names = set(known)
    return {
        name: [out["path"] for out in stage.get("outs", [])]
        for name, stage in lock.get("stages", {}).items()
        if name not in names
    }


def prune_lock(path: Path, known: Iterable[str], base: Path) -> list[str]:
    """Delete stale stages' outputs below ``base`` and their entries; returns their names."""
    if not path.is_file():
        return []
    with modify_yaml(str(path)) as lock:  # DVC's own, so that the rest keeps its bytes
        stale = stale_entries(lock, known)
        for name, outs in stale.items():
            for out in (base / relative for relative in outs):
                if out.is_dir():
                    shutil.rmtree(out)
                else:
                    out.unlink(missing_ok=True)
            del lock["stages"][name]
    return sorted(stale)


def main() -> None:
    """Run the command."""
    cli.parser(__doc__).parse_args()
    by_file: dict[Path, set[str]] = {Path("dvc.yaml").resolve(): set()}
    for stage in Repo(".").index.stages:
        by_file.setdefault(Path(stage.path_in_repo).resolve(), set()).add(stage.name)
    for file, names in by_file.items():
        for name in prune_lock(file.with_name("dvc.lock"), names, Path.cwd()):
            print(f"removed {name}")
    for folder in OPTIONAL:
        Path(folder).mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    cli.run(main)
