"""The shards of the last run, kept outside DVC's outputs: what has not changed is not decoded again.

Beside each shard stands what its planes were made from; the SHA-256 of the shard is in it, so that a run that was
killed between the two leaves nothing that could be taken for whole. An output is a second name of the same file (a hard
link) where the file system has them, so that keeping costs no space until the output changes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.imaging.intensity import Grey
from pipeline.imaging.store import PlaneFormat, Shard, open_planes, replacing


class Entry(NamedTuple):
    """What became of one source, as JSON has it.

    Attributes:
        stamp: another stamp, another source; "" is never used again.
        first: number of its first plane in the shard.
        planes: how many it has.
        rows: of its images, see ``tables.images.Images``.
        refusal: outcome, reason and detail; None where it has images.
    """

    stamp: str
    first: int
    planes: int
    rows: list[dict[str, Any]]
    refusal: list[str] | None


@dataclass(frozen=True)
class KeptShard:
    """A shard of the last run and its sources, in their order."""

    shard: Shard
    entries: Mapping[str, Entry]


class LastRun:
    """The shards that a folder holds, those that are not whole left out."""

    def __init__(self, folder: Path, form: PlaneFormat, description: str) -> None:
        """Read all, and check the planes of each against its SHA-256."""
        self._folder = folder
        self._form = form
        self._where: dict[str, tuple[Path, str]] = {}
        self._read = lru_cache(maxsize=2)(self._load)
        cards = sorted(folder.glob("planes-*.json"))
        for path in tqdm(cards, desc=description, unit="shard", mininterval=0.5, disable=not cards):
            try:
                kept, planes = self._read(path)
            except (PipelineError, ValueError, TypeError, KeyError, AttributeError):
                continue
            if _digest(planes) == kept.shard.sha256:
                self._where.update({source_id: (path, entry.stamp) for source_id, entry in kept.entries.items()})

    def has(self, source_id: str, stamp: str) -> bool:
        """Whether a source's planes are here, made under this stamp."""
        return bool(stamp) and self._where.get(source_id, (None, ""))[1] == stamp

    def get(self, source_id: str) -> tuple[Entry, Grey]:
        """What became of a source that is here, and its planes (P, H, W)."""
        kept, planes = self._read(self._where[source_id][0])
        entry = kept.entries[source_id]
        return entry, planes[entry.first : entry.first + entry.planes]

    def shard_of(self, name: str, stamps: Mapping[str, str]) -> KeptShard | None:
        """The shard of that name, if it holds just these sources in this order, under these stamps."""
        path = _card(self._folder / name)
        if any(not stamp or self._where.get(source_id) != (path, stamp) for source_id, stamp in stamps.items()):
            return None
        kept, _ = self._read(path)
        return kept if list(kept.entries) == list(stamps) else None

    def _load(self, path: Path) -> tuple[KeptShard, Grey]:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kept = KeptShard(Shard(**raw["shard"]), {name: Entry(*entry) for name, entry in raw["sources"].items()})
        return kept, open_planes(self._folder, kept.shard, self._form)


def keep(folder: Path, kept: KeptShard) -> None:
    """Write down what a shard that lies in the folder was made from."""
    raw = {"shard": asdict(kept.shard), "sources": kept.entries}
    with replacing(_card(folder / kept.shard.file)) as file:
        file.write(json.dumps(raw, allow_nan=False, separators=(",", ":")).encode())


def publish(folder: Path, shards: Sequence[Shard], out: Path) -> None:
    """Give the shards that have planes a place in the output, and delete all others from both folders."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("planes-*"):
        old.unlink()
    for shard in shards:
        if not shard.planes:  # all its files were refused, which is worth remembering
            continue
        target = out / shard.file
        try:
            os.link(folder / shard.file, target)
        except OSError:  # another file system, or one without links
            with replacing(target) as file, (folder / shard.file).open("rb") as source:
                shutil.copyfileobj(source, file, 2**20)
    names = {shard.file for shard in shards}
    for path in folder.glob("planes-*"):
        if path.with_suffix(".npy").name not in names:
            path.unlink()


def _card(shard: Path) -> Path:
    return shard.with_suffix(".json")


def _digest(planes: Grey) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(planes):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(planes: Grey) -> Iterator[bytes]:
    for start in range(0, len(planes), 64):
        yield planes[start : start + 64].tobytes()
