import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from reporting import fabricated, fabricated_shift
from reporting.page_checker import misquoted, read, untraced
from reporting.test_page import section, text_of, without

from pipeline.reporting import cells, html, shift_figures
from pipeline.reporting.study import Place, Study, label
from pipeline.tables.choice import RankCorrelations
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Metrics
from pipeline.tables.protocol import Protocols

OF_SHIFT = {
    "pixels",
    "choice",
    "subgroups",
    "gallery",
    "mismatch",
    "diagnosis",
    "stress",
    "remedies",
    "membership",
    "continual",
    "controls",
    "matrix",
}
LEFT_OUT = (
    "baseline_columns", "mismatch", "scores", "rank_correlations", "rungs", "search_outcome", "protocol", "openings",
    "diagnoses", "probes", "abstention", "stress", "remedies", "attacks", "exposures",
    "continual_steps", "continual_scores", "continual_measures", "controls", "gallery",
    "gallery_counts", "gallery_means", "matrix_scores",
)  # fmt: skip


@pytest.fixture(scope="module")
def study() -> Study:
    return fabricated.study()


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    return html.page(study, {})


def shown(page: str, name: str) -> str:
    return text_of(section(page, name))


def few_methods() -> dict[str, pd.DataFrame]:
    """The frames of one network and two methods, and nothing of what was before training: quickly rendered."""
    frames = {}
    for name, frame in fabricated.study().frames.items():
        if "run" in frame and name != "protocol":
            frame = frame[frame["run"].str.contains("no_pixels|^resnet18-(?:scratch|full_finetune)(?:-|$)")]
        frames[name] = frame.head(0) if name in ("flow", "table_one", "deidentification", "histograms") else frame
    return frames


def with_frame(**frames: pd.DataFrame) -> str:
    return html.page(fabricated.study(frames={**few_methods(), **frames}), {})


def of_old_stages() -> Study:
    """A study as before there was anything to say of shift: its frames are not there at all."""
    frames = {name: frame for name, frame in few_methods().items() if name not in LEFT_OUT}
    metrics = frames["metrics"]
    extra = metrics["run"].str.contains("no_pixels|adapt_|-coral|-prevalence|-temperature")
    extra |= metrics["group"].str.contains("sex") | metrics["metric"].isin(["auroc_minus_no_pixels"])
    frames["metrics"] = make_table(Metrics, metrics[~extra])
    return Study(**{**vars(fabricated.study()), "frames": frames})


class TestWho:
    def test_baseline_remedies_and_trainings_are_no_families(self, study: Study):
        assert {family.run for family in study.families} == {
            f"{backbone}-{method}" for backbone in fabricated.BACKBONES for method in fabricated.METHODS
        }
        assert study.backbones == list(fabricated.BACKBONES)

    @pytest.mark.parametrize("part", ["summary", "verdict", "efficiency", "hospitals", "calibration", "training"])
    def test_they_stay_out_of_other_sections(self, page: str, part: str):
        told = section(page, part).lower().partition("what to worry about")[0]  # which names remedies that hurt
        assert not re.search("coral|no_pixels|no pixels|minus plain", told)

    def test_remedies_follow_their_plain_twin(self, study: Study):
        found = study.adapted("resnet18")
        plain, *adapted = found["full_finetune"]
        assert (list(found), plain.run) == (["full_finetune"], "resnet18-full_finetune")
        assert [study.remedy(family) for family in adapted] == [
            "CORAL", "Prevalence recalibration", "Temperature scaling",
        ]  # fmt: skip
        assert study.remedy(plain) == ""

    def test_a_remedy_is_known_by_its_runs_alone(self):
        study = fabricated.study(frames={"remedies": fabricated.study().frames["remedies"].head(0)})
        assert "coral" not in {family.variant for family in study.families}


class TestPresence:
    def test_without_the_stages_the_page_is_as_it_was(self):
        made = html.page(of_old_stages(), {})
        parsed = read(made)
        found = {attributes["id"] for tag, attributes in parsed.elements if tag == "section"}
        assert not found & OF_SHIFT
        assert {a["href"][1:] for tag, a in parsed.elements if tag == "a"} <= found
        assert parsed.faults == []

    def test_each_table_alone(self):
        old, whole = of_old_stages(), few_methods()
        metrics = old.frames["metrics"]
        for name in LEFT_OUT:
            study = Study(**{**vars(old), "frames": {"metrics": metrics, name: whole[name]}})
            parsed = read(html.page(study, {}))
            assert parsed.faults == []
            assert untraced(parsed, study.frames) == []

    def test_no_table_is_empty(self, page: str):
        for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
            assert "<td" in table


class TestProtocol:
    @pytest.mark.parametrize("declared", [True, False])
    def test_nothing_declared_is_exploratory(self, declared: bool):
        rows = [{"statement": "no protocol was declared: exploratory; test labels opened once"}] * declared
        made = shown(with_frame(protocol=make_table(Protocols, rows)), "verdict")
        assert "exploratory. It can suggest a hypothesis" in made
        assert "Primary comparison" not in made
        assert ("opened once" in made) == declared

    def test_the_primary_comparison_has_its_verdict(self, page: str):
        made = shown(page, "verdict").split("Each method is compared")[0]
        assert "helps, +0.06 (+0.03 to +0.09)" in made
        assert "exploratory. It can" not in made
        assert "opening 2" in made
        assert "c3" * 32 in made

    def test_a_comparison_that_was_not_made(self):
        protocol = fabricated.study().frames["protocol"].assign(run="resnet18-lp_ft", group="site=nowhere")
        made = shown(with_frame(protocol=make_table(Protocols, protocol)), "verdict")
        assert "no verdict: it was not compared here" in made


class TestChoice:
    def test_nothing_was_chosen_by_scores(self, page: str):
        made = shown(page, "choice")
        assert "known to be unreliable, and nothing on this page was chosen by them" in made
        assert "the weights are random: no source classes" in made

    def test_correlations_that_are_all_undefined_are_a_sentence(self):
        frame = fabricated.study().frames["rank_correlations"]
        none = frame.assign(weighted_tau=None, spearman=None, note="needs 3 backbones")
        made = section(with_frame(rank_correlations=make_table(RankCorrelations, none)), "choice")
        assert "No rank correlation is defined" in text_of(made)
        assert "needs 3 backbones" in text_of(made)
        assert "weighted tau" not in text_of(made)

    def test_a_small_number_of_networks_is_no_small_count(self, page: str):
        rows = [(a, text) for a, text in read(page).data if a.get("data-column") in ("num_backbones", "num_families")]
        assert {text for _, text in rows} == {"2", "12"}


class TestDiagnosis:
    def test_words(self, page: str):
        made = shown(page, "diagnosis")
        assert "concept shift (the same image meaning another label) cannot be identified" in made
        assert made.count("rejected p 0.0004") == len(fabricated.BACKBONES) * len(fabricated.METHODS) * 2
        assert "prevalence 0.21 (0.12 to 0.33) by likelihood 0.24 (0.16 to 0.31)" in made
        assert "slope −0.40 (−1.20 to +0.30)" in made

    @pytest.mark.parametrize("part", sorted(OF_SHIFT))
    def test_no_cause_is_claimed(self, page: str, part: str):
        told = shown(page, part).lower().replace("because both", "")
        assert not re.search(r"because|due to|caused|proves|significant", told)

    def test_probes(self, page: str):
        made = shown(page, "diagnosis")
        assert "Do features tell a hospital elsewhere from home?" in made
        assert "shortcut; how the file came about: the cue is the same on all images" in made


class TestControls:
    def test_passed(self, page: str):
        made = shown(page, "controls")
        assert "Controls passed." in made
        assert "0 raised an alarm" in made
        assert "0.50 (0.49 to 0.52)" in made
        assert "0.05 (0.001 to 0.25)" in made
        assert "needs 4 trainings, 2 a group; there are 3" in made
        assert "A control raised an alarm" not in page

    def test_one_alarm_is_told_before_all_else(self):
        frame = fabricated.study().frames["controls"].copy()
        frame.loc[0, "verdict"] = "alarm"
        made = with_frame(controls=frame)
        assert made.index("A control raised an alarm") < made.index('<section id="summary">')
        assert "Alarm: read this before anything else" in shown(made, "controls")
        assert "1 raised an alarm" in shown(made, "controls")

    def test_none_could_be_made(self):
        frame = fabricated.study().frames["controls"]
        made = shown(with_frame(controls=frame[frame["verdict"] == "undetermined"]), "controls")
        assert "No control could be made." in made
        assert "passed." not in made.replace("0 passed", "")


class TestRemedies:
    def test_difference_and_verdict(self, page: str):
        rows = re.findall(r"<tr>.*?</tr>", section(page, "remedies"), re.DOTALL)
        coral = [text_of(row) for row in rows if "CORAL" in row and "harms" in row]
        assert len(coral) == len(fabricated.BACKBONES)
        assert all("−0.03 −0.05 to −0.01 harms p 0.012" in row for row in coral)

    def test_decisions_are_counted(self, page: str, study: Study):
        remedies = [(a, text) for a, text in read(page).data if a["data-table"] == "remedies"]
        counted = [(a["data-where"], text) for a, text in remedies if "data-where" in a]
        assert ("decision=refused|remedy=prevalence|site=east", "6") in counted
        assert len(counted) == 3 * len(fabricated_shift.REMEDIES) * len(fabricated.TARGETS)
        assert "the prevalence cannot be told from 31 patients" in shown(page, "remedies")
        wrong = page.replace('site=east">6</data>', 'site=east">5</data>', 1)
        assert wrong != page
        assert len(misquoted(read(wrong), study.frames, study.min_cell)) == 1


class TestMembership:
    def test_attacks_and_their_control(self, page: str):
        rows = re.findall(r"<tr>.*?</tr>", section(page, "membership"), re.DOTALL)
        leaking = [text_of(row) for row in rows if "0.34" in row]
        assert len(leaking) == 3 * len(fabricated.BACKBONES)
        assert all(re.search(r"0\.28 to 0\.40\s*7", row) for row in leaking), leaking[0]
        assert shown(page, "membership").count("Control: patients of the training side") == len(fabricated.BACKBONES)
        assert "calibrated; Full fine-tuning" in shown(page, "membership")

    def test_a_level_that_too_few_patients_allow_is_a_sentence(self, page: str):
        made = section(page, "membership")
        assert text_of(made).count("this study is too small to say: a threshold at this rate needs") == 2
        assert "of 0.01 of patients" in text_of(made)

    def test_an_attack_without_any_value_has_no_column(self):
        frame = fabricated.study().frames["attacks"]
        none = frame.assign(auroc=frame["auroc"].where(frame["attack"] != "calibrated"))
        assert "Calibrated" not in shown(with_frame(attacks=none), "membership")

    def test_no_promise_is_made(self, page: str):
        told = shown(page, "membership")
        assert "No training on this page was differentially private" in told
        assert not re.search(r"is private[^.]*\. It is|safe|guaranteed", told)


class TestSubgroups:
    def test_few_patients_are_hidden(self, page: str):
        of_few = [(a, text) for a, text in read(page).data if "age_band=80+" in a.get("data-key", "")]
        assert of_few
        assert {text for _, text in of_few} == {"hidden"}

    def test_no_level_is_told_by_subtraction(self, page: str):
        counts = [
            text
            for a, text in read(page).data
            if a.get("data-column") == "num_patients" and "age_band=40-59" in a["data-key"]
        ]
        assert set(counts) == {"hidden"}

    def test_the_checker_sees_what_is_not_hidden(self, study: Study):
        made = html.page(fabricated.study(min_cell=0, frames=few_methods()), {})
        assert "hidden" not in {text for _, text in read(section(made, "subgroups")).data}
        assert len(misquoted(read(made), study.frames, study.min_cell)) > 5

    def test_an_undefined_value_of_few_patients_does_not_say_why(self):
        metrics = few_methods()["metrics"].copy()
        few = metrics["group"].str.contains("80")
        metrics.loc[few, ["value", "ci_low", "ci_high"]] = None
        metrics.loc[few, "note"] = "one class only (positives: 1)"
        assert "positives: 1" not in section(with_frame(metrics=make_table(Metrics, metrics)), "subgroups")

    @pytest.mark.parametrize(
        ("group", "of", "title"),
        [
            ("sex=F+age_band=80+", "sex+age_band", "Home: sex F, age band 80+"),
            ("model=X_2", "model", "Home: model X_2"),
            ("worst_sex+age_band", "sex+age_band", "Home: worst sex, age band"),
            ("view_position=(missing)", "view_position", "Home: view position (missing)"),
            ("worst_site", "", "Elsewhere, worst hospital"),
            ("site=north", "", "Home, all hospitals"),
        ],
    )
    def test_names(self, group: str, of: str, title: str):
        place = Place("id_test", group, "Home", "")
        assert (place.of, place.title) == (of, title)

    def test_none_asked_for(self):
        metrics = fabricated.study().frames["metrics"]
        study = fabricated.study(frames={"metrics": metrics[~metrics["group"].str.contains("sex")]})
        assert "subgroups" not in study.parts


class TestNumbers:
    @pytest.mark.parametrize(
        ("row", "column", "text"),
        [
            ({"difference": -0.1, "severity": 5, "ci_low": 0.71}, "ci_low", "0.71"),
            ({"difference": -0.1, "severity": 5, "difference_high": 0.02}, "difference_high", "+0.02"),
            ({"difference": -0.1, "ci_low": 0.71}, "ci_low", "+0.71"),
            ({"hypothesis": "label_shift_only", "estimate": 0.2}, "estimate", "0.20"),
            ({"hypothesis": "covariate_shift_only", "estimate": 0.2}, "estimate", "+0.20"),
            ({"metric": "net_benefit_at_5_percent", "value": 0.0512}, "value", "0.051"),
            ({"mmd2": 0.0412}, "mmd2", "0.041"),
            ({"strength": 0.027}, "strength", "0.027"),
            ({"num_backbones": 2}, "num_backbones", "2"),
            ({"num_patients": 2}, "num_patients", "<11"),
        ],
    )
    def test_shown(self, row: dict[str, Any], column: str, text: str):
        assert cells.shown(row, column, 11) == text

    def test_names_of_metrics_at_a_stated_share(self):
        assert label("ppv_at_2_5_percent") == "PPV at 2.5 percent"
        assert label("net_benefit_at_10_percent") == "net benefit at 10 percent"

    def test_metrics_stand_in_one_table_each(self, study: Study):
        kinds = [study.metrics_of(fabricated.FINDING, kind) for kind in ("main", "calibration", "use")]
        assert kinds[2] == ["ppv", "npv", "net_benefit", "net_benefit_all", "ppv_at_2_5_percent"]
        assert "brier_refinement" in kinds[1]
        assert len({metric for kind in kinds for metric in kind}) == sum(map(len, kinds))


class TestFigures:
    def lines(self, figure: Figure, title: str) -> list[np.ndarray]:
        axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == title)
        return [np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() not in ("None", "")]

    def test_stress_draws_what_the_table_says(self, study: Study):
        figure = shift_figures.stress(study, fabricated.FINDING, "resnet18")
        drawn = [line for line in self.lines(figure, "contrast window") if len(line)]
        frame = study.frames["stress"]
        own = frame[(frame["kind"] == "window") & frame["run"].str.startswith("resnet18")].sort_values("severity")
        wanted = {run: tuple(rows["value"]) for run, rows in own.groupby("run")}
        assert {tuple(line) for line in drawn} == set(wanted.values())

    def test_what_is_undefined_is_not_drawn(self, study: Study):
        stress = study.frames["stress"].copy()
        stress.loc[stress["severity"] == 5, ["value", "ci_low", "ci_high"]] = None
        changed = fabricated.study(frames={"stress": stress})
        drawn = self.lines(shift_figures.stress(changed, fabricated.FINDING, "resnet18"), "blur")
        assert {len(line) for line in drawn if len(line)} == {5}

    def test_fewer_images_are_kept_to_the_right(self, study: Study):
        figure = shift_figures.abstention(study, fabricated.FINDING, "resnet18")
        axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Elsewhere: west\nenergy")
        left, right = axes.get_xlim()
        assert left > right

    def test_chance_is_drawn_where_it_lies_on_the_axis(self, study: Study):
        low = study.frames["stress"].copy()
        low[["value", "ci_low"]] -= 0.3
        for frame, there in ((study.frames["stress"], False), (low, True)):
            figure = shift_figures.stress(fabricated.study(frames={"stress": frame}), fabricated.FINDING, "resnet18")
            found = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0.5, 0.5]]
            assert bool(found) == there


def test_absent_rows_are_dashes():
    metrics = without(few_methods()["metrics"], metric="auroc_minus_no_pixels")
    made = section(with_frame(metrics=metrics), "pixels")
    assert "not evaluated" in made
    assert "the reference itself" in made
