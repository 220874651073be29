"""From a site's entry in params to its adapter, the module ``pipeline/datasets/NAME.py``."""

import importlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from pipeline.datasets.common import LabelRow, SiteParams, Source, Terms
from pipeline.dicom.headers import Description, IngestParams
from pipeline.imaging.intensity import ModalityImage
from pipeline.key import NEVER, PrivacyParams
from pipeline.params import ParamsError, load_params, parse, read_params_file, section_of


class Adapter(Protocol):
    """What a module in ``pipeline/datasets`` offers."""

    Params: type[SiteParams]

    def list_sources(self, site: Any, base: Path) -> Iterator[Source]:
        """Every file of the site, in a fixed order."""

    def describe(
        self, source: Source, content: bytes, *, site: str, issuer: str, key: bytes, policy: IngestParams
    ) -> Description:
        """What goes on from a file; raises ``Refusal``."""

    def read_images(self, content: bytes, frames: Sequence[int], policy: IngestParams) -> Iterator[ModalityImage]:
        """Some of a file's images before display; raises ``Refusal``."""

    def read_labels(self, site: Any, base: Path) -> Iterator[LabelRow]:
        """The rows of the label file."""

    def label_target(self, site: Any, site_name: str, key: bytes, row: LabelRow) -> tuple[str, str]:
        """Which column of ``Instances`` a label row names, and its pseudonym; ``common.label_target`` for most."""

    def terms(self, site: Any) -> Terms:
        """What the data may be used for."""

    def recognise(self, folder: Path) -> dict[str, Any] | None:
        """A proposal for the site's entry, paths relative to ``folder``, where the folder is in this layout.

        Looks at some names and CSV headers, opens nothing else but to tell DICOM from other files; None where the
        layout is another. What cannot be known (which column is a finding) is left out.
        """


def adapter_names() -> list[str]:
    """The adapters there are: a module that is neither shared code nor private."""
    shared = {"__init__", "common", "registry", "inventory"}
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in shared)


@cache
def load_adapter(name: str) -> Adapter:
    """The adapter of that name.

    Raises:
        ParamsError: there is none.
    """
    if name not in adapter_names():
        raise ParamsError(f"sites: unknown adapter '{name}'; known: {', '.join(adapter_names())}")
    return cast("Adapter", importlib.import_module(f"pipeline.datasets.{name}"))


def load_site(name: str, params_path: Path) -> tuple[Adapter, Any]:
    """A site's adapter and its validated entry.

    Raises:
        ParamsError: no such site, or its entry does not fit the adapter.
    """
    where = f"sites.{name}"
    raw = section_of(read_params_file(params_path), where, params_path)
    if not isinstance(raw, dict) or "adapter" not in raw:
        raise ParamsError(f"{where}.adapter: required, but missing; known: {', '.join(adapter_names())}")
    adapter = load_adapter(str(raw["adapter"]))
    return adapter, parse(adapter.Params, raw, where)


def check_remote(site_name: str, terms: Terms, params_path: Path) -> None:
    """Hold what may not be redistributed back from DVC's remotes.

    Raises:
        ParamsError: ``privacy.remote`` lets rows and pixels be pushed, which the site's terms forbid.
    """
    remote = load_params(PrivacyParams, "privacy", params_path).remote
    if remote != NEVER and not terms.redistribution:
        raise ParamsError(
            f"privacy.remote: must be {NEVER}, because the terms of site {site_name} "
            f"({terms.licence or 'no licence stated'}) forbid redistribution; got {remote or 'null (the default)'}. "
            f"Write remote: {NEVER}, or, if the data is yours to share, redistribution: true in the site's entry"
        )
