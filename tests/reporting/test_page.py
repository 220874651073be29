import base64
import hashlib
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting import fabricated, fabricated_gallery
from reporting.page_checker import misquoted, read, untraced

from pipeline.reporting import cells, figures, html, privacy_figures, shift_figures
from pipeline.reporting.study import Study, against_zero, slug
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Efficiency, Metrics, Verdicts
from pipeline.tables.quality import Outliers

SECTIONS = [
    "summary",
    "funnel",
    "composition",
    "quality",
    "samples",
    "leakage",
    "training",
    "verdict",
    "pixels",
    "efficiency",
    "choice",
    "hospitals",
    "mismatch",
    "diagnosis",
    "matrix",
    "stress",
    "remedies",
    "controls",
    "continual",
    "calibration",
    "subgroups",
    "gallery",
    "membership",
    "provenance",
    "checklist",
    "reading",
]
PIXEL = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1, 1)  # as much of a picture as the page reads
NOT_IMAGENET = "random initialisation, not ImageNet"


@pytest.fixture(scope="module")
def study() -> Study:
    return fabricated.study()


@pytest.fixture(scope="module")
def pictures(study: Study) -> dict[str, bytes]:
    return html.draw(study, fabricated.samples(), fabricated.suspects(), fabricated_gallery.walls(study))


@pytest.fixture(scope="module")
def page(study: Study, pictures: dict[str, bytes]) -> str:
    return html.page(study, pictures)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", "".join(text for text, _ in read(page).texts))


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def without(frame: pd.DataFrame, **where: str) -> pd.DataFrame:
    hit = pd.Series(True, index=frame.index)
    for column, value in where.items():
        hit &= frame[column] == value
    return frame[~hit]


class TestNumbers:
    def test_each_numeral_is_traced(self, page: str, study: Study):
        assert untraced(read(page), study.frames) == []

    def test_each_trace_leads_to_what_is_shown(self, page: str, study: Study):
        parsed = read(page)
        assert len(parsed.data) > 500
        assert misquoted(parsed, study.frames, study.min_cell) == []

    def test_the_checker_sees_a_planted_number(self, page: str, study: Study):
        planted = page.replace("<h2>Summary</h2>", "<h2>Summary</h2><p>AUROC 0.99</p>")
        assert untraced(read(planted), study.frames) == ["AUROC 0.99"]

    def test_the_checker_sees_a_number_dressed_as_a_name(self, page: str, study: Study):
        planted = page.replace("<h2>Summary</h2>", '<h2>Summary</h2><p class="name">0.99</p>')
        assert untraced(read(planted), study.frames) == ["0.99"]

    def test_the_checker_sees_an_altered_text(self, page: str, study: Study):
        altered = re.sub(r'(data-column="value">)0\.8\d<', r"\g<1>0.99<", page, count=1)
        assert len(misquoted(read(altered), study.frames, study.min_cell)) == 1

    def test_the_checker_sees_an_altered_table(self, page: str, study: Study):
        metrics = study.frames["metrics"].assign(value=study.frames["metrics"]["value"] + 0.3)
        assert len(misquoted(read(page), {**study.frames, "metrics": metrics}, study.min_cell)) > 100

    @pytest.mark.parametrize(
        ("value", "signed", "text"),
        [
            (0.7312, False, "0.73"),
            (-0.021, True, "−0.02"),
            (0.05, True, "+0.05"),
            (0.003, True, "+0.003"),
            (0.0, True, "0.00"),
            (-0.00001, True, "0.00"),
        ],
    )
    def test_number(self, value: float, signed: bool, text: str):
        assert cells.number(value, signed=signed) == text

    def test_key_is_reversible(self):
        assert cells.join_key(["a|b", "c\\", 3]) == "a\\|b|c\\\\|3"


class TestPage:
    def test_well_formed(self, page: str):
        assert read(page).faults == []

    def test_same_bytes_in_another_process(self, page: str, pictures: dict[str, bytes]):
        # Another order of sets and dicts' hashes; one figure of each kind, the page with all.
        code = """import hashlib, pickle, sys
from reporting import fabricated
from pipeline.reporting import figures, html, shift_figures
study, of = fabricated.study(), (fabricated.FINDING, "resnet18")
pictures = pickle.load(sys.stdin.buffer)
samples = fabricated.samples()[fabricated.FINDING]
drawn = [
    figures.to_png(figures.funnel, study), figures.to_png(figures.forest, study, *of),
    figures.to_png(figures.reliability, study, *of), figures.to_png(figures.training_curves, study, "resnet18"),
    figures.to_png(figures.contact_sheet, samples, fabricated.FINDING, ""),
    figures.to_png(figures.histograms, study), figures.to_png(figures.suspects, study, fabricated.suspects()),
    figures.to_png(figures.verdicts, study, *of, "scratch"), figures.to_png(figures.efficiency, study, *of),
    figures.to_png(figures.costs, study, *of), figures.to_png(shift_figures.stress, study, *of),
    html.page(study, pictures).encode(),
]
print(*(hashlib.sha256(made).hexdigest() for made in drawn))"""
        names = ["funnel", "forest-pneumonia-resnet18", "reliability-pneumonia-resnet18", "curves-resnet18"]
        names += ["samples-pneumonia", "histograms", "suspects", "verdict-pneumonia-resnet18-scratch"]
        names += ["labels-pneumonia-resnet18", "costs-pneumonia-resnet18", "stress-pneumonia-resnet18"]
        here = [*(pictures[name] for name in names), page.encode()]
        path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            input=pickle.dumps(pictures),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        )
        assert done.stdout.decode().split() == [hashlib.sha256(made).hexdigest() for made in here]

    def test_self_contained(self, page: str):
        parsed = read(page)
        assert {tag for tag, _ in parsed.elements} & {"link", "iframe", "object"} == set()
        scripts = [attributes for tag, attributes in parsed.elements if tag == "script"]
        assert {attributes.get("type", "") for attributes in scripts} == {"application/json", "text/plain", ""}
        assert not any("src" in attributes for attributes in scripts)
        assert "default-src 'none'" in page
        sources = [a[name] for _, a in parsed.elements for name in ("src", "href", "srcset") if name in a]
        assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
        style = page.split("<style>")[1].split("</style>")[0]
        assert "url(" not in style
        assert "@import" not in style
        targets = {a["id"] for _, a in parsed.elements if "id" in a}
        assert {source[1:] for source in sources if source.startswith("#")} <= targets

    def test_holds_each_picture_with_words_for_it(self, page: str, pictures: dict[str, bytes]):
        images = [attributes for tag, attributes in read(page).elements if tag == "img"]
        held = {base64.b64decode(attributes["src"].partition(",")[2]) for attributes in images}
        assert held == set(pictures.values())
        assert all(len(attributes["alt"]) > 40 for attributes in images)

    def test_tables_have_captions_and_scopes(self, page: str):
        elements = read(page).elements
        tags = [tag for tag, _ in elements]
        assert tags.count("table") == tags.count("caption") > 8
        assert {a.get("scope") for tag, a in elements if tag == "th"} <= {"col", "colgroup", "row", "rowgroup"}
        levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))

    def test_sections_in_order(self, page: str):
        found = [a["id"] for tag, a in read(page).elements if tag == "section"]
        assert found == SECTIONS

    def test_no_path_of_this_machine(self, page: str, pictures: dict[str, bytes]):
        here = str(Path(__file__).resolve().parents[2])
        assert here not in page
        assert all(here.encode() not in png and b"Software" not in png for png in pictures.values())

    def test_hostile_names_are_escaped(self, pictures: dict[str, bytes]):
        hostile = '<script>alert(1)</script>"&|\\'
        frames = dict(fabricated.study().frames)
        flow = frames["flow"].assign(site=frames["flow"]["site"].replace("north", hostile))
        study = fabricated.study(
            title=hostile,
            notice=hostile,
            sources=(hostile, "south"),
            frames={"flow": flow},
            params_yaml=f"a: {hostile}\n",
        )
        made = html.page(study, pictures)
        parsed = read(made)
        assert parsed.faults == []
        assert "alert" not in "".join(re.findall(r"<script>.*?</script>", made, re.DOTALL))
        assert hostile in text_of(made)
        assert misquoted(parsed, study.frames, study.min_cell) == []

    def test_dollars_and_long_names_in_figures(self):
        frames = fabricated.study().frames
        flow = frames["flow"].assign(site=frames["flow"]["site"].replace("north", "$x_1$" * 9))
        study = fabricated.study(sources=("$x_1$" * 9, "south"), frames={"flow": flow})
        assert figures.to_png(figures.funnel, study)


class TestSummary:
    @pytest.mark.parametrize(
        ("low", "high", "words"),
        [
            (0.01, 0.2, "above zero"),
            (-0.2, -0.01, "below zero"),
            (-0.1, 0.1, "includes zero"),
            (0.0, 0.1, "includes zero"),
        ],
    )
    def test_words_follow_the_interval(self, low: float, high: float, words: str):
        assert against_zero({"value": 0.0, "ci_low": low, "ci_high": high}) == words.split()[0]
        metrics = fabricated.study().frames["metrics"].copy()
        metrics.loc[metrics["group"] == "target_minus_source", ["ci_low", "ci_high"]] = [low, high]
        summary = section(html.page(fabricated.study(frames={"metrics": metrics}), {}), "summary")
        assert set(re.findall(r"above zero|below zero|includes zero", summary)) == {words}

    def test_without_an_interval_nothing_is_said(self):
        metrics = fabricated.study().frames["metrics"].assign(ci_low=None, ci_high=None)
        summary = text_of(section(html.page(fabricated.study(frames={"metrics": metrics}), {}), "summary"))
        assert "given without an interval, so nothing is said about it" in summary
        assert "zero:" not in summary

    def test_absent_comparison(self):
        metrics = without(fabricated.study().frames["metrics"], group="target_minus_source")
        assert "not evaluated" in text_of(
            section(html.page(fabricated.study(frames={"metrics": metrics}), {}), "summary")
        )

    @pytest.mark.parametrize(
        ("verdict", "words"),
        [
            ("helps", "better, beyond chance"),
            ("harms", "worse, beyond chance"),
            ("equivalent", "any difference is smaller than the margin of 0.05"),
            ("undecided", "this study is too small to tell"),
            (None, "no verdict (one class only"),
        ],
    )
    def test_words_follow_the_verdict(self, verdict: str | None, words: str):
        verdicts = fabricated.study().frames["verdicts"].assign(verdict=verdict, note="one class only")
        made = html.page(fabricated.study(frames={"verdicts": make_table(Verdicts, verdicts)}), {})
        summary = text_of(section(made, "summary"))
        methods = len(fabricated.METHODS) - 2
        assert summary.count(words) == methods * 2 * 3  # home and elsewhere; one backbone with a second baseline
        other = {"helps": "worse,", "harms": "better,"}.get(str(verdict), "beyond chance")
        assert other not in summary.split("Does transfer help?")[1].split("Does the model survive")[0]


class TestTransfer:
    @pytest.fixture
    def drawn(self, monkeypatch: pytest.MonkeyPatch):
        """The names of a study's figures, none of which is drawn."""
        monkeypatch.setattr(figures, "to_png", lambda *_: PIXEL)
        return lambda study: set(html.draw(study, {}))

    def test_without_scratch_the_page_says_so(self, drawn: Callable[[Study], set[str]]):
        frames = {name: fabricated.study().frames[name].head(0) for name in ("verdicts", "savings")}
        study = fabricated.study(frames=frames)
        made = html.page(study, {})
        assert read(made).faults == []
        assert "There is no verdict: no method has the same network trained from scratch" in text_of(
            section(made, "verdict")
        )
        assert "No verdict: there is no network from scratch to compare it with" in text_of(section(made, "summary"))
        assert not [name for name in drawn(study) if name.startswith("verdict")]

    def test_a_backbone_without_a_twin_is_named(self):
        verdicts = fabricated.study().frames["verdicts"]
        some = verdicts[verdicts["run"].str.startswith("resnet18")]
        made = text_of(section(html.page(fabricated.study(frames={"verdicts": some}), {}), "verdict"))
        assert "pneumonia, mobilenet_v2: no verdict, because no network trained from scratch" in made

    def test_each_baseline_has_its_table_and_figure(self, page: str, pictures: dict[str, bytes]):
        shown = section(page, "verdict")
        assert shown.count("Against: ") == 3
        assert {name for name in pictures if name.startswith("verdict")} == {
            "verdict-pneumonia-mobilenet_v2-scratch",
            "verdict-pneumonia-resnet18-scratch",
            "verdict-pneumonia-resnet18-scratch_converged",
        }

    def test_the_margin_and_the_level_are_stated(self, page: str):
        shown = text_of(section(page, "verdict"))
        assert "A difference in AUROC of less than 0.05 is taken for none that matters" in shown
        assert "The level is 0.05" in shown

    def test_why_there_is_no_verdict_and_what_else_is_to_be_known(self, page: str):
        shown = text_of(section(page, "verdict"))
        assert "Elsewhere: west: one class only" in shown
        assert "unequal tuning budget: 1 against 3" in shown

    @pytest.mark.parametrize(
        ("value", "text"), [(3e-6, "<0.0001"), (0.0004, "0.0004"), (0.0312, "0.031"), (1.0, "1.000")]
    )
    def test_p_values(self, value: float, text: str):
        assert cells.shown({"p_holm": value}, "p_holm", 0) == text

    @pytest.mark.parametrize(("value", "text"), [(0.05, "0.05"), (0.025, "0.025"), (0.1, "0.10"), (0.0123, "0.0123")])
    def test_the_margin_is_not_rounded(self, value: float, text: str):
        assert cells.shown({"margin": value}, "margin", 0) == text

    def test_one_hospital_a_side_is_the_side(self):
        verdicts = fabricated.study().frames["verdicts"]
        pooled = verdicts[verdicts["group"].isin(["source", "target"])]
        study = fabricated.study(sources=("north",), targets=("east",), frames={"verdicts": pooled})
        places = study.verdict_places(fabricated.FINDING)
        assert [(place.group, place.title) for place in places] == [
            ("source", "Home: north"),
            ("target", "Elsewhere: east"),
        ]

    def test_savings_say_whether_they_are_bounds(self, page: str):
        shown = text_of(section(page, "efficiency"))
        assert "at most 10" in shown
        assert "at least 99.2 %" in shown
        assert "77.3 %" in shown
        assert "its AUROC is not reached" in shown

    def test_one_label_budget_has_no_curve(self, drawn: Callable[[Study], set[str]]):
        frames = fabricated.study().frames
        whole = frames["efficiency"][frames["efficiency"]["budget"] == "all"]
        study = fabricated.study(frames={"efficiency": whole, "savings": frames["savings"].head(0)})
        assert not [name for name in drawn(study) if name.startswith("labels")]
        assert "there is no curve, and no saving to be read off" in text_of(section(html.page(study, {}), "efficiency"))

    def test_costs_that_are_not_known_are_not_drawn(self, drawn: Callable[[Study], set[str]]):
        efficiency = fabricated.study().frames["efficiency"].assign(train_tflop=None)
        made = make_table(Efficiency, efficiency)
        study = fabricated.study(frames={"efficiency": made})
        assert not [name for name in drawn(study) if name.startswith("costs")]

    def test_numbers_of_patients_that_are_not_known_are_dashes(self):
        efficiency = fabricated.study().frames["efficiency"].copy()
        efficiency.loc[efficiency["budget"] == "all", "labelled_patients"] = None
        frames = {"efficiency": make_table(Efficiency, efficiency)}
        study = fabricated.study(frames=frames)
        assert figures.to_png(figures.efficiency, study, fabricated.FINDING, "resnet18")
        made = html.page(study, {})
        assert misquoted(read(made), study.frames, study.min_cell) == []

    def test_few_label_families_leave_summary_and_forest_to_the_whole(self, study: Study):
        metrics = study.frames["metrics"]
        pooled = metrics[metrics["metric"] == "brier"]  # which single trainings have not
        both = pd.concat([metrics, pooled.assign(run=pooled["run"] + "-labels10")], ignore_index=True)
        more = fabricated.study(frames={"metrics": make_table(Metrics, both)})
        assert "resnet18-l2_sp-labels10" in {family.run for family in more.families_of("resnet18")}
        assert more.main_families("resnet18") == study.main_families("resnet18")

    def test_losses_at_the_kept_epoch(self, page: str):
        shown = section(page, "training")
        assert 'data-table="overfitting"' in shown
        assert "+0.051" in text_of(shown)


class TestGaps:
    def test_undefined_is_a_dash_with_its_reason(self, page: str):
        shown = [(a, text) for a, text in read(page).data if "undefined" in a["class"] and a["data-table"] == "metrics"]
        assert {text for _, text in shown} == {"–"}
        assert {a["title"] for a, _ in shown} == {"undefined: fewer than 10 positives"}
        assert "undefined: fewer than 10 positives" in text_of(section(page, "calibration"))

    def test_nothing_was_evaluated(self):
        names = ("metrics", "calibration", "thresholds", "runs", "curves")
        names += ("verdicts", "efficiency", "savings", "overfitting")
        study = fabricated.study(frames={name: fabricated.study().frames[name].head(0) for name in names})
        made = html.page(study, html.draw(study, {}))
        assert read(made).faults == []
        assert "Nothing was evaluated" in made
        assert untraced(read(made), study.frames) == []

    def test_unknown_method_and_metric_render(self):
        rename = {"resnet18-lp_ft": "resnet18-adapters_r16", "resnet18-linear_probe": "resnet18-linear_probe-f0.25"}
        metrics = fabricated.study().frames["metrics"].copy()
        metrics["run"] = metrics["run"].replace(rename)
        metrics["metric"] = metrics["metric"].replace("average_precision", "f_beta_2")
        study = fabricated.study(frames={"metrics": metrics})
        assert figures.to_png(figures.forest, study, fabricated.FINDING, "resnet18")
        made = html.page(study, {})
        assert "adapters r16" in section(made, "hospitals")
        assert "f beta 2" in section(made, "hospitals")
        assert "Linear probe, f0.25" in text_of(section(made, "summary"))
        assert untraced(read(made), study.frames) == []
        assert misquoted(read(made), study.frames, study.min_cell) == []

    def test_one_target_and_two_findings(self):
        frames = dict(fabricated.study().frames)
        metrics = without(without(frames["metrics"], group="site=west"), group="worst_site")
        second = pd.concat([metrics, metrics.assign(finding="effusion")], ignore_index=True)
        study = fabricated.study(targets=("east",), frames={"metrics": make_table(Metrics, second)})
        assert figures.to_png(figures.forest, study, "effusion", "resnet18")
        made = html.page(study, {})
        assert read(made).faults == []
        assert untraced(read(made), study.frames) == []
        assert [place.title for place in study.places("effusion")][-1] == "Elsewhere: east"


class TestSmallCells:
    def test_no_small_count_is_told(self, page: str):
        parsed = read(page)
        columns = [(a.get("data-column", ""), a, text) for a, text in parsed.data]  # a tally counts rows, not people
        told = [(a, text) for column, a, text in columns if column.startswith("num_") or column == "count"]
        assert "<11" in {text for _, text in told}
        others = ("num_parameters", "num_runs", "num_backbones", "num_families")
        counts = [int(a["value"]) for a, _ in told if a["value"] and a["data-column"] not in others]
        assert not [count for count in counts if 0 < count < 11]

    @given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(2, 6))
    def test_subtraction_finds_no_small_level(self, levels: list[int], min_cell: int):
        def row(variable: str, level: str, number: int) -> dict[str, object]:
            return {"site": "north", "split": "train", "variable": variable, "level": level, "num_patients": number}

        total = sum(levels)
        rows = [row("total", "", total), *(row("sex", str(at), number) for at, number in enumerate(levels))]
        hidden = {int(key[3]) for key in cells.suppressed(rows, min_cell) if key[2] == "sex"}
        small = {at for at, number in enumerate(levels) if 0 < number < min_cell}
        assert small <= hidden
        assert bool(small) == bool(hidden)
        if 0 < total < min_cell:
            assert len(hidden) == len(levels)  # the total is hidden too, so nothing can be taken from it
            return
        left = total - sum(number for at, number in enumerate(levels) if at not in hidden)
        choices = product(*(range(1, left + 1) for _ in hidden))  # a hidden level is not 0: those are told
        possible = [dict(zip(sorted(hidden), choice, strict=True)) for choice in choices if sum(choice) == left]
        if max(levels) > 1:  # else the total alone says that each level has one, or none
            assert all(len({fit[at] for fit in possible}) > 1 for at in small)

    def test_a_small_column_tells_no_zero(self):
        rows = [
            {"site": "ge", "split": "ood_test", "variable": variable, "level": level, "num_patients": number}
            for variable, level, number in (("total", "", 3), ("sex", "F", 3), ("sex", "M", 0))
        ]
        assert len(cells.suppressed(rows, 11)) == 3

    def test_differences_from_few_patients_are_hidden(self, page: str):
        shown = {(a["data-key"], text) for a, text in read(page).data if a["data-table"] == "balance"}
        assert ("east|age_years", "0.12") in shown
        assert ("west|age_years", "hidden") in shown

    def test_images_of_few_patients_are_hidden(self):
        assert cells.count({"num_patients": 3, "num_images": 40}, "num_images", 11) == "hidden"

    def test_switched_off(self, pictures: dict[str, bytes]):
        study = fabricated.study(min_cell=0)
        made = html.page(study, pictures)
        assert 'class="v small"' not in made
        assert "are not told" not in made
        assert misquoted(read(made), study.frames, 0) == []


class TestQuality:
    def test_outliers_are_numbered_alike_in_picture_and_table(self, page: str, study: Study):
        assert [(row["kind"], row["site"]) for row in study.suspects] == [
            ("blank", "east"),
            ("cropped", "north"),
            ("unusual", "north"),
        ]
        shown = section(page, "quality")
        assert [shown.index(row["image_id"]) for row in study.suspects] == sorted(
            shown.index(row["image_id"]) for row in study.suspects
        )

    def test_the_clearest_of_each_kind_and_site_come_first(self):
        rows = [
            {"image_id": f"i{n:02d}", "site": site, "kind": "unusual", "score": 4.0 + n, "threshold": 3.5}
            for n, site in enumerate(["north"] * 40 + ["east"] * 2)
        ]
        suspects = fabricated.study(frames={"outliers": make_table(Outliers, rows)}).suspects
        assert [row["image_id"] for row in suspects] == ["i41", "i40", *(f"i{n}" for n in range(39, 17, -1))]

    def test_without_pictures_no_image_is_named(self, study: Study):
        made = section(html.page(study, {}), "quality")
        assert study.suspects[0]["image_id"] not in made
        assert 'data-table="outlier_counts"' in made

    def test_nothing_stands_out(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(figures, "to_png", lambda *_: PIXEL)
        names = ("outliers", "outlier_counts", "histograms", "balance", "table_one")
        study = fabricated.study(frames={name: fabricated.study().frames[name].head(0) for name in names})
        drawn = html.draw(study, {})
        assert not {"histograms", "suspects"} & set(drawn)
        made = html.page(study, drawn)
        assert read(made).faults == []
        assert untraced(read(made), study.frames) == []


class TestInitialisation:
    def test_imagenet_needs_no_banner(self, page: str):
        assert "not ImageNet" not in text_of(page)

    def test_random_is_said_everywhere(self, monkeypatch: pytest.MonkeyPatch):
        study = fabricated.study(frames={"runs": fabricated.initialised("random")}, notice="Simulated images")
        written: list[str] = []
        keep = figures.Sheet.text

        def text(sheet: object, left: float, top: float, words: str, **style: object) -> None:
            written.append(words)
            keep(sheet, left, top, words, **style)  # type: ignore[arg-type]

        monkeypatch.setattr(figures.Sheet, "text", text)
        monkeypatch.setattr(figures, "to_png", lambda draw, *args: draw(*args) and PIXEL)
        drawn = html.draw(study, fabricated.samples(), fabricated.suspects())
        assert written.count(NOT_IMAGENET) == len(drawn)
        made = html.page(study, drawn)
        parsed = read(made)
        banners = re.findall(r'<p class="banner.*?</p>', made, re.DOTALL)
        assert len(banners) == 2
        assert "Random initialisation, not ImageNet" in banners[1]
        for tag in ("caption", "figcaption"):
            captions = re.findall(rf"<{tag}>.*?</{tag}>", made, re.DOTALL)
            assert captions
            assert all(NOT_IMAGENET in caption for caption in captions)
        assert parsed.faults == []

    def test_partly_random_names_the_backbone(self):
        runs = fabricated.initialised("random")
        runs.loc[runs["backbone"] == "mobilenet_v2", "initialisation"] = "imagenet"
        assert fabricated.study(frames={"runs": runs}).not_imagenet == f"{NOT_IMAGENET} (resnet18)"

    @pytest.mark.parametrize(("kind", "words"), [("file", "another file, not ImageNet"), (None, "not recorded")])
    def test_other_origins(self, kind: str, words: str):
        assert words in fabricated.study(frames={"runs": fabricated.initialised(kind)}).not_imagenet


class TestFigures:
    def test_names_are_files(self, pictures: dict[str, bytes]):
        assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in pictures)
        assert slug("A/b", "ü..") == "a_b-_"

    def test_no_texts_overlap(self, study: Study):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        with figures._style():
            for figure in (
                figures.forest(study, fabricated.FINDING, "resnet18"),
                figures.funnel(study),
                figures.training_curves(study, "resnet18"),
                figures.reliability(study, fabricated.FINDING, "resnet18"),
                figures.contact_sheet(fabricated.samples()[fabricated.FINDING], fabricated.FINDING, NOT_IMAGENET),
                figures.histograms(study),
                figures.suspects(study, fabricated.suspects()),
                figures.verdicts(study, fabricated.FINDING, "resnet18", "scratch_converged"),
                figures.efficiency(study, fabricated.FINDING, "resnet18"),
                figures.costs(study, fabricated.FINDING, "resnet18"),
                shift_figures.stress(study, fabricated.FINDING, "resnet18"),
                shift_figures.abstention(study, fabricated.FINDING, "resnet18"),
                privacy_figures.membership(study, "resnet18"),
            ):
                canvas = FigureCanvasAgg(figure)
                canvas.draw()
                found = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
                found += [text for axes in figure.axes for text in (axes.title, axes._left_title, axes.xaxis.label)]
                boxes = [(t, t.get_window_extent(canvas.get_renderer())) for t in found if t.get_text()]
                outside = [t.get_text() for t, box in boxes if box.x0 < 0 or box.x1 > figure.bbox.x1 or box.y0 < 0]
                assert outside == []
                clashes = [
                    (a.get_text(), b.get_text())
                    for i, (a, one) in enumerate(boxes)
                    for b, two in boxes[i + 1 :]
                    if one.overlaps(two.padded(-1))
                ]
                assert clashes == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to lay the page out")
@pytest.mark.parametrize("width_px", [375, 1280])
def test_nothing_sticks_out(page: str, tmp_path: Path, width_px: int):
    # An iframe has the width asked for; a headless window may have a least one of its own.
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    probe = f"""<!DOCTYPE html>
    <iframe id="f" src="page.html" width="{width_px}" height="800" style="border:0"></iframe>
    <script>window.onload = () => {{ const d = document.getElementById("f").contentDocument.documentElement;
    document.title = "W" + d.clientWidth + " S" + d.scrollWidth + " H" + d.scrollHeight; }}</script>"""
    (tmp_path / "probe.html").write_text(probe, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    flags += [
        "--allow-file-access-from-files",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    seen = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r"<title>W(\d+) S(\d+) H(\d+)</title>", seen.stdout)
    assert found, seen.stdout[:500] + seen.stderr[-500:]
    client, scroll, height = map(int, found.groups())
    assert client == width_px
    assert scroll <= width_px
    assert height > 3000


def test_does_not_import_what_is_dear():
    code = """import sys, pipeline.stages.report
dear = ("torch", "sklearn", "pydicom", "matplotlib.pyplot")
print([name for name in dear if name in sys.modules])"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
