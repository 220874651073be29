"""The manifest: what lies in a raw archive, without a name of it. DVC depends on it instead of the archive."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline.datasets.common import Source
from pipeline.datasets.registry import Adapter
from pipeline.dicom.deidentify import keyed_hash, pseudonym
from pipeline.errors import PipelineError
from pipeline.tables import Manifest, make_table


def identify(adapter: Adapter, site: Any, site_name: str, base: Path, key: bytes) -> dict[str, Source]:
    """The site's sources by pseudonym: the only way back from one to a path, made anew where it is needed.

    Raises:
        PipelineError: the raw folder is not there, or holds no file.
    """
    sources = {
        pseudonym(key, "source", site_name, source.relative): source for source in adapter.list_sources(site, base)
    }
    if not sources:
        raise PipelineError(f"site {site_name}: no file below {site.root}")
    return sources


def take_inventory(sources: Mapping[str, Source], key: bytes, *, hash_content: bool) -> pd.DataFrame:
    """The manifest of some sources.

    Args:
        sources: by pseudonym.
        key: the study's.
        hash_content: read every file and record its keyed hash, which is the same on every machine; else size
            and time of change, which costs no reading.
    """
    rows = []
    for source_id, source in tqdm(sources.items(), desc="inventory", unit="file", mininterval=0.5):
        try:
            status = source.path.stat()
            hashed = keyed_hash(key, source.path.read_bytes()) if hash_content else None
        except OSError:  # listed and not there, or not readable: ingest says so of this file
            rows.append({"source_id": source_id, "size_bytes": -1})
            continue
        rows.append(
            {
                "source_id": source_id,
                "size_bytes": status.st_size,
                "modified_ns": None if hash_content else status.st_mtime_ns,
                "source_hmac": hashed,
            }
        )
    return make_table(Manifest, rows)


def locate(manifest: pd.DataFrame, sources: Mapping[str, Source], site_name: str) -> dict[str, Source]:
    """The manifest's sources as they lie on disk now.

    Raises:
        PipelineError: the archive has files that the manifest lacks, or the other way round.
    """
    listed = set(manifest["source_id"])
    if listed != set(sources):
        raise PipelineError(
            f"site {site_name}: {len(set(sources) - listed)} files are not in the manifest, "
            f"{len(listed - set(sources))} of the manifest are gone; run `python -m pipeline.commands.inventory`, "
            "then `dvc repro`"
        )
    return {source_id: sources[source_id] for source_id in sorted(listed)}
