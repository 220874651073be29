"""Report on what there is: the page of a study some of whose stages failed, or have not run yet.

`dvc repro` stops before the report where a stage fails. This command asks DVC which of the stages that the report
rests on have a result of their present inputs, and shows those alone; the page begins with the others, and why. It is
no stage, and writes to a folder of its own (reports/partial), so that nobody takes it for the report.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.stages import report

_REPORT = "pipeline.stages.report"


class PartialReportError(PipelineError):
    """There is no stage that makes the report, or nothing is missing."""


def find_gaps(repo: Repo, last: Any) -> list[report.Gap]:
    """The stages before ``last`` without a result of their present inputs, in the order of the graph's files.

    A stage that is as it was, but comes after one that is not, has an old result, too.
    """
    graph, changed = repo.index.graph, repo.status()  # an edge leads from a stage to one that it depends on
    needed = _reach([last], graph.successors) - {last}
    first = {stage for stage in needed if stage.addressing in changed or not all(out.exists for out in stage.outs)}
    after = _reach(first, graph.predecessors) & needed
    gaps = []
    for stage in sorted(after, key=lambda stage: (str(stage.path_in_repo), stage.addressing)):
        before = sorted(s.addressing for s in _reach([stage], graph.successors) & first - {stage})
        if not all(out.exists for out in stage.outs):
            why = "no result"
        elif stage in first:
            why = "its result is older than what it is made from"
        else:
            why = "its result is older than what comes before it"
        if before:
            why += f" (waits for {', '.join(before)})"
        gaps.append(report.Gap(stage.addressing, tuple(Path(out.fs_path) for out in stage.outs), why))
    return gaps


def _reach(start: Iterable[Any], neighbours: Any) -> set[Any]:
    """All that can be reached, the start included."""
    found, waiting = set(), list(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += neighbours(node)
    return found


def main() -> None:
    """Run the command."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--out", type=Path, default=Path("reports/partial"), metavar="PATH", help="default: reports/partial"
    )
    args = arguments.parse_args()
    repo = Repo(".")
    last = next((stage for stage in repo.index.stages if stage.cmd and _REPORT in stage.cmd), None)
    if last is None:
        raise PartialReportError("this study's dvc.yaml has no stage that makes the report")
    gaps = find_gaps(repo, last)
    if not gaps:
        raise PartialReportError("all that the report rests on is there and up to date: run `dvc repro report`")
    for gap in gaps:
        print(f"{gap.stage}: {gap.why}")
    options = shlex.split(last.cmd.partition(_REPORT)[2])
    given = report.parser().parse_args([*options, "--params", str(args.params), "--out", str(args.out)])
    report.render(given, gaps)


if __name__ == "__main__":
    cli.run(main)
