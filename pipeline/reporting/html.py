"""Tables and figures to one self-contained HTML page. It looks up, orders and formats; it computes nothing."""

import base64
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.reporting import (
    continual_figures,
    figures,
    gallery_figures,
    interactive,
    matrix_figures,
    privacy_figures,
    shift_figures,
    summary,
)
from pipeline.reporting.cells import Cells
from pipeline.reporting.checklist import GUIDELINES
from pipeline.reporting.study import (
    BASELINES,
    DIFFERENCE,
    ELSEWHERE,
    HOME,
    MINUS_NO_PIXELS,
    MINUS_PLAIN,
    SCRATCH,
    SUBGROUP_METRICS,
    WORST,
    Study,
    against_zero,
    attack_label,
    remedy_label,
    slug,
)
from pipeline.tables.continual import MEASURES as CONTINUAL_MEASURES
from pipeline.tables.diagnosis import HYPOTHESES, PROBE_KINDS
from pipeline.tables.gallery import CALLS, GROUPS, REGIONS
from pipeline.tables.quality import OUTLIER_KINDS

_TEMPLATES = Path(__file__).parent / "templates"

_ATTACK_WORDS = {
    "loss": "A model is surer of the right label of patients that it was trained on.",
    "entropy": "A model is surer of patients that it was trained on; the attacker need not know the label.",
    "modified_entropy": "As the loss, with a threshold for each class, read off validation patients.",
    "calibrated": "As the loss, less what models say that were not trained on the patient: easy patients look easy to "
    "them too. Only of patients whom another training left out.",
}


def draw(
    study: Study,
    samples: Mapping[str, list[figures.SiteSamples]],
    suspects: Sequence[NDArray[np.uint8]] = (),
    exhibits: Sequence[gallery_figures.Wall] = (),
) -> dict[str, bytes]:
    """All figures of a study as PNG, under the names that the page looks for them.

    Args:
        study: the tables.
        samples: per finding, images of each site; empty where none are to be shown.
        suspects: the images of ``study.suspects``, in their order; empty where none are to be shown.
        exhibits: the failure galleries, hospital by hospital; empty where no images are to be shown.
    """
    drawn = {} if "flow" in study.absent else {"funnel": figures.to_png(figures.funnel, study)}
    if any(study.rows("histograms")):
        drawn["histograms"] = figures.to_png(figures.histograms, study)
    if len(suspects):
        drawn["suspects"] = figures.to_png(figures.suspects, study, suspects)
    for wall in exhibits:
        name = slug("gallery", wall.gallery, wall.finding, wall.site)
        drawn[name] = figures.to_png(gallery_figures.gallery, study, wall, dpi=gallery_figures.DPI)
    for finding, sites in samples.items():
        name = slug("samples", finding)
        drawn[name] = figures.to_png(figures.contact_sheet, sites, finding, study.not_imagenet)
    for backbone in study.backbones:
        drawn[slug("curves", backbone)] = figures.to_png(figures.training_curves, study, backbone)
        for finding in study.findings:
            names = slug(finding, backbone)
            for against in study.baselines(finding, backbone):
                drawn[f"verdict-{names}-{slug(against)}"] = figures.to_png(
                    figures.verdicts, study, finding, backbone, against
                )
            if study.label_budgets(finding, backbone) > 1:
                drawn[f"labels-{names}"] = figures.to_png(figures.efficiency, study, finding, backbone)
            if study.has_costs(finding, backbone):
                drawn[f"costs-{names}"] = figures.to_png(figures.costs, study, finding, backbone)
            drawn[f"forest-{names}"] = figures.to_png(figures.forest, study, finding, backbone)
            drawn[f"reliability-{names}"] = figures.to_png(figures.reliability, study, finding, backbone)
    for backbone in study.backbones:
        if study.attacked(backbone):
            drawn[f"membership-{slug(backbone)}"] = figures.to_png(privacy_figures.membership, study, backbone)
    for name, draw_one in (("stress", shift_figures.stress), ("abstention", shift_figures.abstention)):
        for finding, backbone in study.subjects(name):
            drawn[f"{name}-{slug(finding, backbone)}"] = figures.to_png(draw_one, study, finding, backbone)
    for finding in study.findings:
        drawn[f"home_and_away-{slug(finding)}"] = figures.to_png(matrix_figures.home_and_away, study, finding)
    for finding, backbone in study.subjects("matrix_scores"):
        for method in study.distinct("matrix_scores", "method", finding=finding, backbone=backbone):
            drawn[f"matrix-{slug(finding, backbone, method)}"] = figures.to_png(
                matrix_figures.heat_map, study, finding, backbone, method
            )
    for finding, backbone in study.subjects("continual_scores"):
        drawn[f"continual-{slug(finding, backbone)}"] = figures.to_png(
            continual_figures.sequence, study, finding, backbone
        )
    return drawn


def page(study: Study, pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        study: the tables.
        pictures: PNG files by name, as ``draw`` gives them.
    """
    specs = {name: spec for name, spec in interactive.specs(study).items() if name in pictures}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            study=study,
            cells=Cells(study),
            pictures=pictures,
            picture_source=_source,
            slug=slug,
            against_zero=against_zero,
            flow_lines=figures.flow_lines,
            HOME=HOME,
            ELSEWHERE=ELSEWHERE,
            WORST=WORST,
            DIFFERENCE=DIFFERENCE,
            SCRATCH=SCRATCH,
            BASELINES=BASELINES,
            MINUS_NO_PIXELS=MINUS_NO_PIXELS,
            MINUS_PLAIN=MINUS_PLAIN,
            SUBGROUP_METRICS=SUBGROUP_METRICS,
            KINDS=OUTLIER_KINDS,
            CONTINUAL_MEASURES=CONTINUAL_MEASURES,
            HYPOTHESES=HYPOTHESES,
            PROBE_KINDS=PROBE_KINDS,
            CALLS=CALLS,
            MAP_GROUPS=GROUPS,
            REGIONS=REGIONS,
            remedy_label=remedy_label,
            attack_label=attack_label,
            ATTACK_WORDS=_ATTACK_WORDS,
            summary=summary,
            GUIDELINES=GUIDELINES,
            specs=specs,
            as_json=interactive.as_json,
            library=interactive.library() if specs else None,
            style=_own("page.css"),
            script=_own("page.js"),
            script_source=Markup(interactive.csp_source(_own("page.js").encode("utf-8"))),  # noqa: S704 - a hash
        )
    )


def _own(name: str) -> Markup:
    """One of our own files, to stand in the page as it is."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 - no input of anybody's


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(png: bytes) -> Markup:
    """The attributes of an ``img``: its bytes, and its size in pixels (PNG, IHDR) so that nothing jumps."""
    width, height = struct.unpack(">II", png[16:24])
    text = base64.b64encode(png).decode("ascii")
    return Markup('src="data:image/png;base64,{}" width="{}" height="{}"').format(text, width, height)
