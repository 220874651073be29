"""Run the whole graph on small params, in a temporary folder: whether everything still works, not what comes out.

Simulated hospitals have few and small images, networks train for one epoch. It is a DVC experiment (`dvc exp run
--temp`) that is removed again, so that results, dvc.lock and openings.csv stay as they are; what ran before with the
same code comes out of DVC's run cache. The exit code is DVC's.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import cli
from pipeline.commands.prune import OPTIONAL
from pipeline.errors import PipelineError
from pipeline.params import read_params_file

NAME = "smoke"
# Not outputs of the graph, but read by it; `prune` and `fetch_weights` make them.
OUTSIDE = ("data/weights", *OPTIONAL)
_PATIENTS = {"patients": 40, "rows": 128, "columns": 128, "pixel_spacing_mm": 3.0}
_SIZE_PX = 64
_SMALL: dict[str, dict[str, Any]] = {  # only where the section is there
    "finetune": {"epochs": 1, "label_fractions": [1.0]},
    "search": {"epochs": [1]},
    "stress": {"severities": [5], "resamples": 100},
    "diagnose": {"permutations": 100},
    "membership": {"resamples": 100},
    "evaluate": {"resamples": 100},
}


def reduced(params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values that make a study small; what params do not have is left out.

    Raises:
        PipelineError: a hospital is not simulated: its files cannot be made fewer, nor be found from another folder.
    """
    real = [name for name, site in params["sites"].items() if site.get("simulate") is None]
    if real:
        raise PipelineError(f"smoke is for simulated hospitals; these are none: {', '.join(real)}")
    small: dict[str, Any] = {
        f"sites.{site}.simulate.{name}": value for site in params["sites"] for name, value in _PATIENTS.items()
    }
    small["preprocess.size_px"] = min(params["preprocess"]["size_px"], _SIZE_PX)
    small["finetune.seeds"] = params["finetune"]["seeds"][:2]
    for section, values in _SMALL.items():
        if section in params:
            small |= {f"{section}.{name}": value for name, value in values.items()}
    for method, settings in params["methods"].items():
        given = settings or {}
        if "epochs" in given:
            small[f"methods.{method}.epochs"] = 1
        if "shots" in given:
            small |= {f"methods.{method}.shots": given["shots"][:1], f"methods.{method}.draws": 2}
    return small


def overrides(small: Mapping[str, Any]) -> list[str]:
    """As options of `dvc exp run`; "++" sets what is there and adds what is not."""
    return [option for name, value in small.items() for option in ("--set-param", f"++{name}={value}")]


def main() -> None:
    """Run the command."""
    args = cli.parser(__doc__).parse_args()
    study = args.params.parent
    small = reduced(read_params_file(args.params))
    missing = [path for path in OUTSIDE if not (study / path).is_dir()]
    if missing:
        raise PipelineError(f"{', '.join(missing)} must be there: run `make smoke`, which brings them")
    dvc = [sys.executable, "-m", "dvc"]
    copied = [option for path in OUTSIDE for option in ("--copy-paths", path)]
    # What a run that broke off has left.
    subprocess.run([*dvc, "exp", "remove", "--quiet", NAME], cwd=study, check=False, stderr=subprocess.DEVNULL)
    done = subprocess.run([*dvc, "exp", "run", "--temp", "--name", NAME, *copied, *overrides(small)], cwd=study)
    if done.returncode == 0:
        subprocess.run([*dvc, "exp", "remove", "--quiet", NAME], cwd=study, check=True)
        print(f"smoke: {Path(study).resolve().name} ran through, on small params; nothing of it is kept")
    sys.exit(done.returncode)


if __name__ == "__main__":
    cli.run(main)
