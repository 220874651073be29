"""Make a study: a folder with its own params.yaml, graph, lock file and results, beside the demo.

The graph is the root's, but for its first line, which says where the code is; the cache is shared with the root.
Run it in the root of the checkout. What is there already stays; a params.yaml is yours to write (start from
studies/ct_contrast/params.yaml).
"""

import re
import subprocess
import sys
from pathlib import Path

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.params import NAME_PATTERN, ParamsError
from pipeline.withdrawn import WITHDRAWN_FILE, Withdrawn, write_withdrawn

ROOT_LINE, STUDY_LINE = 'vars: [{code: ""}]', "vars: [{code: ../../}]"


def study_graph(root_graph: str) -> str:
    """The root's dvc.yaml with the one line changed."""
    if root_graph.count(ROOT_LINE) != 1:
        raise PipelineError(f"dvc.yaml: expected the line {ROOT_LINE} once")
    return root_graph.replace(ROOT_LINE, STUDY_LINE)


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("name", help=f"of the study; matches {NAME_PATTERN}")
    args = arguments.parse_args()
    if not re.match(NAME_PATTERN, args.name):
        raise ParamsError(f"the study's name must match {NAME_PATTERN}; got {args.name!r}")
    if not Path("dvc.yaml").is_file() or not Path("pipeline").is_dir():
        raise PipelineError("run this in the root of the checkout")
    folder = Path("studies") / args.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".dvc").is_dir():
        dvc = [sys.executable, "-m", "dvc"]
        subprocess.run([*dvc, "init", "--quiet", "--subdir"], cwd=folder, check=True)
        for setting in (
            ["cache.dir", "../../.dvc/cache"],
            ["core.analytics", "false"],
            ["core.autostage", "false"],
        ):
            subprocess.run([*dvc, "config", *setting], cwd=folder, check=True)
        (folder / ".dvcignore").write_text(Path(".dvcignore").read_text(encoding="utf-8"), encoding="utf-8")
    if not (folder / WITHDRAWN_FILE).exists():
        write_withdrawn(folder, Withdrawn())
    (folder / "dvc.yaml").write_text(study_graph(Path("dvc.yaml").read_text(encoding="utf-8")), encoding="utf-8")
    told = "" if (folder / "params.yaml").is_file() else f"; now write {folder}/params.yaml"
    print(f"{folder} is ready{told}. Then: make study STUDY={args.name}")


if __name__ == "__main__":
    cli.run(main)
