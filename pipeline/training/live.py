"""Learning curves in DVCLive's files while a run trains, for `dvc plots show` and editors that follow them.

A run that goes on after a kill is told its earlier epochs again, so that the files end in the same bytes.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.training.loop import Epoch


@contextmanager
def live_curves(folder: Path | None) -> Iterator[Callable[[Epoch], None]]:
    """What an engine tells its epochs; of each phase a pair of curves, ``NUMBER-PHASE/{train_loss,id_val_loss}``.

    Args:
        folder: for ``plots/metrics`` and ``metrics.json``, emptied first; it is not made where there is no epoch (a
            probe trains by no gradient). None writes nothing.
    """
    started: list[Any] = []
    phase = 0

    def told(row: Epoch) -> None:
        nonlocal phase
        if folder is None:
            return
        if not started:
            from dvclive.live import Live  # a second, which a probe need not pay

            started.append(Live(str(folder), dvcyaml=False, save_dvc_exp=False, report=None))
        phase += row.epoch == 0
        name = f"{phase}-{re.sub('[^a-z0-9]+', '_', row.phase.lower())}"
        started[0].step = row.epoch
        for curve, loss in (("train_loss", row.train_loss), ("id_val_loss", row.id_val_loss)):
            started[0].log_metric(f"{name}/{curve}", loss, timestamp=False)

    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield told
    finally:
        for live in started:
            live.end()
