"""Scores against what training gave, and the search's winner among the full runs: by hand and in their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis.choice import full_families, rank_correlations, search_outcome
from pipeline.analysis.evaluation import Family, Setting, family_name
from pipeline.tables.choice import SCORES, SearchRungs, TransferScores
from pipeline.tables.contract import make_table
from pipeline.tables.evaluation import Metrics

NETS = ("a", "b", "c", "d")
HOME, AWAY, VAL = ("id_test", "source"), ("ood_test", "target"), ("id_val", "source")


def family(backbone, method, **changes):
    setting = Setting(**{"protocol": "p", "label_fraction": 1.0, "shots": 0, "adaptation": "", **changes})
    return Family(family_name(backbone, method, setting._replace(protocol="")), backbone, method, setting, {"run": 0})


def scores_of(values, finding="f", score="log_me"):
    return [
        {"backbone": net, "finding": finding, "score": score, "value": value, "num_images": 9, "note": ""}
        for net, value in values.items()
    ]


def metric(run, place, value, name="auroc", finding="f"):
    split, group = place
    base = {"run": run, "finding": finding, "split": split, "group": group, "metric": name, "value": value}
    return {**base, "num_images": 9, "num_patients": 9}


def correlated(scores, metrics, families):
    found = rank_correlations(make_table(TransferScores, scores), make_table(Metrics, metrics), families)
    return found.set_index(["finding", "score", "method", "split"]).sort_index()


def of_method(method, at_home, away=()):
    rows = [metric(f"{net}-{method}", HOME, value) for net, value in zip(NETS, at_home, strict=False)]
    return rows + [metric(f"{net}-{method}", AWAY, value) for net, value in zip(NETS, away, strict=False)]


class TestRankCorrelations:
    families = tuple(family(net, method) for net in NETS for method in ("probe", "full"))

    def test_by_hand(self):
        """At home the score has the two in the middle exchanged, elsewhere it is turned round."""
        scores = scores_of({"d": 1.0, "c": 3.0, "b": 2.0, "a": 4.0})
        metrics = of_method("probe", [0.9, 0.8, 0.7, 0.6], [0.6, 0.7, 0.65, 0.8])
        found = correlated(scores, metrics, self.families)
        home, away = (found.loc[("f", "log_me", "probe", place[0])] for place in (HOME, AWAY))
        # Ranks 1 to 4 weigh 1 / r; the pair of ranks 2 and 3 is the one in the wrong order.
        pairs = [1 / r + 1 / s for r in range(1, 5) for s in range(r + 1, 5)]
        assert home["weighted_tau"] == pytest.approx(1 - 2 * (1 / 2 + 1 / 3) / sum(pairs))
        assert home["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
        assert (home["num_backbones"], home["note"], home["group"]) == (4, "", "source")
        assert (away["weighted_tau"], away["spearman"]) == pytest.approx((-1.0, -1.0))
        assert away["group"] == "target"

    def test_each_finding_score_and_method_has_its_own(self):
        scores = [
            row
            for number, score in enumerate(SCORES)
            for finding, sign in (("f", 1.0), ("g", -1.0))
            for row in scores_of({net: sign * (i + number) for i, net in enumerate(NETS)}, finding, score)
        ]
        rising, falling = [0.6, 0.7, 0.8, 0.9], [0.9, 0.8, 0.7, 0.6]
        metrics = of_method("probe", rising) + of_method("full", falling)
        metrics += [{**row, "finding": "g"} for row in metrics]
        found = correlated(scores, metrics, self.families)["spearman"]
        assert len(found) == 3 * 2 * 2 * 2
        for score in SCORES:
            assert found[("f", score, "probe", "id_test")] == pytest.approx(1)
            assert found[("f", score, "full", "id_test")] == pytest.approx(-1)
            assert found[("g", score, "probe", "id_test")] == pytest.approx(-1)
            assert np.isnan(found[("f", score, "probe", "ood_test")])

    def test_fewer_than_three_backbones_are_null_with_the_reason(self):
        metrics = of_method("probe", [0.9, 0.8, None, 0.6])
        found = correlated(scores_of({"a": 1.0, "b": 2.0, "c": 3.0, "d": None}), metrics, self.families)
        row = found.loc[("f", "log_me", "probe", "id_test")]
        assert np.isnan(row["weighted_tau"])
        assert np.isnan(row["spearman"])
        assert (row["num_backbones"], row["note"]) == (2, "2 of 4 have both values, and a ranking needs 3")
        assert found.loc[("f", "log_me", "full", "id_test")]["note"].startswith("0 of 4 have both values")

    def test_only_plain_families_with_all_labels_of_scored_backbones_count(self):
        others = [
            family(net, "probe", **change)
            for net in NETS
            for change in ({"label_fraction": 0.5}, {"shots": 5}, {"adaptation": "coral"})
        ]
        foreign = family("no_pixels", "logistic")
        metrics = of_method("probe", [0.9, 0.8, 0.7, 0.6])
        scores = scores_of({net: -float(i) for i, net in enumerate(NETS)})
        extra = [metric(one.name, HOME, i / 12) for i, one in enumerate(others)] + [metric(foreign.name, HOME, 0.1)]
        plain = correlated(scores, metrics, self.families)
        crowded = correlated(scores, metrics + extra, [*others, foreign, *self.families])
        assert crowded.equals(plain)
        assert plain.loc[("f", "log_me", "probe", "id_test")]["spearman"] == pytest.approx(1)

    def test_other_metrics_and_places_are_not_read(self):
        metrics = of_method("probe", [0.6, 0.7, 0.8, 0.9])
        noise = [metric(f"{n}-probe", HOME, 1 - i / 4, "brier") for i, n in enumerate(NETS)]
        noise += [metric(f"{n}-probe", ("ood_test", "site=x"), 1 - i / 4) for i, n in enumerate(NETS)]
        scores = scores_of({net: float(i) for i, net in enumerate(NETS)})
        assert correlated(scores, metrics + noise, self.families).equals(correlated(scores, metrics, self.families))

    def test_no_scores_no_rows(self):
        assert len(correlated([], [], self.families)) == 0

    def test_several_protocols_are_the_callers_mistake(self):
        with pytest.raises(ValueError, match="of one protocol"):
            full_families([family("a", "probe"), family("a", "probe", protocol="q")])


def rungs_of(winner, losers, rung=1):
    rows = [{"rung": 0, "backbone": b, "method": m, "kept": (b, m) == winner} for b, m in [*losers, winner]]
    rows += [{"rung": rung, "backbone": winner[0], "method": winner[1], "kept": True}] if winner in losers else []
    return make_table(SearchRungs, [{"epochs": 1, "id_val_loss": 0.5, "note": "", **row} for row in rows])


WON, SECOND, THIRD = ("a", "probe"), ("b", "probe"), ("a", "full")
ALL = [family(*candidate) for candidate in (WON, SECOND, THIRD)]


def outcome(values, rungs=None, families=ALL, places=((VAL, "log_loss"),)):
    """values: candidate to a value a finding, the same at each place."""
    metrics = [
        metric("-".join(candidate), place, value, name, finding)
        for candidate, row in values.items()
        for finding, value in zip("fg", row, strict=False)
        for place, name in places
    ]
    rungs = rungs_of(WON, [SECOND, THIRD]) if rungs is None else rungs
    found = search_outcome(rungs, make_table(Metrics, metrics), families)
    return found.set_index(["split", "metric"])


JUDGED = ((VAL, "log_loss"), (HOME, "auroc"))


class TestSearchOutcome:
    def test_by_hand_over_two_findings(self):
        row = outcome({WON: (0.5, 0.3), SECOND: (0.2, 0.4), THIRD: (0.6, 0.9)}).loc[("id_val", "log_loss")]
        assert (row["backbone"], row["method"]) == WON
        assert (row["best_backbone"], row["best_method"]) == SECOND
        assert (row["rank"], row["num_families"], row["note"]) == (2, 3, "")
        assert (row["value"], row["best_value"], row["regret"]) == pytest.approx((0.4, 0.3, 0.1))

    def test_a_high_auroc_is_good_and_a_high_loss_is_not(self):
        values = {WON: (0.9,), SECOND: (0.8,), THIRD: (0.6,)}
        places = ((VAL, "log_loss"), (VAL, "auroc"), (HOME, "auroc"), (AWAY, "auroc"))
        found = outcome(values, places=places)
        assert found["rank"].to_dict() == {
            ("id_test", "auroc"): 1,
            ("id_val", "auroc"): 1,
            ("id_val", "log_loss"): 3,
            ("ood_test", "auroc"): 1,
        }
        assert found["regret"].to_dict() == pytest.approx(
            {("id_test", "auroc"): 0, ("id_val", "auroc"): 0, ("id_val", "log_loss"): 0.3, ("ood_test", "auroc"): 0}
        )

    def test_a_winner_that_was_not_evaluated_is_null_with_the_reason(self):
        row = outcome({SECOND: (0.2,), THIRD: (0.3,)}).loc[("id_val", "log_loss")]
        assert row[["value", "rank", "regret", "best_value"]].isna().all()
        assert (row["backbone"], row["num_families"]) == ("a", 2)
        assert row["note"].startswith("the search's winner: not evaluated here in full, or not for every finding")

    def test_another_that_was_not_is_counted_out_and_told(self):
        row = outcome({WON: (0.5, 0.5), SECOND: (0.2,), THIRD: (0.6, 0.4)}).loc[("id_val", "log_loss")]
        assert (row["rank"], row["num_families"], row["regret"]) == (1, 2, 0.0)
        assert row["note"] == "1 of 3 candidates not evaluated here in full, or not for every finding"

    def test_a_finding_that_nobody_has_a_value_of_is_left_out_and_named(self):
        row = outcome({WON: (0.5, None), SECOND: (0.2, None), THIRD: (0.6, None)}).loc[("id_val", "log_loss")]
        assert (row["rank"], row["note"]) == (2, "undefined for g, which are left out")

    def test_no_winner_no_rank(self):
        row = outcome({WON: (0.5,)}, rungs_of(WON, [SECOND, THIRD]).assign(kept=False)).loc[("id_val", "log_loss")]
        assert row[["backbone", "rank"]].isna().all()
        assert row["note"].startswith("no winner: nothing of the search's last rung could be trained")

    def test_the_last_rung_decides_who_won(self):
        rows = [
            {"rung": 0, "backbone": "a", "method": "probe", "kept": True},
            {"rung": 0, "backbone": "b", "method": "probe", "kept": True},
            {"rung": 1, "backbone": "a", "method": "probe", "kept": False},
            {"rung": 1, "backbone": "b", "method": "probe", "kept": True},
        ]
        rungs = make_table(SearchRungs, [{"epochs": 1, "id_val_loss": 0.5, "note": "", **row} for row in rows])
        row = outcome({WON: (0.5,), SECOND: (0.7,), THIRD: (0.1,)}, rungs).loc[("id_val", "log_loss")]
        assert (row["backbone"], row["rank"], row["num_families"]) == ("b", 2, 2)  # the third was no candidate

    def test_equal_values_share_a_rank_and_the_best_is_named_by_name(self):
        row = outcome({WON: (0.2,), SECOND: (0.2,), THIRD: (0.2,)}).loc[("id_val", "log_loss")]
        assert (row["rank"], row["regret"], row["best_backbone"], row["best_method"]) == (1, 0.0, "a", "full")

    def test_only_full_families_count(self):
        fewer = family(*SECOND, label_fraction=0.5)
        values = {WON: (0.5,), SECOND: (0.7,), THIRD: (0.6,), ("b", "probe", "labels50"): (0.1,)}
        assert outcome(values, families=[fewer, *ALL]).loc[("id_val", "log_loss")]["rank"] == 1

    @settings(deadline=None, max_examples=15)
    @given(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3), st.sampled_from(JUDGED))
    def test_rank_one_and_no_regret_are_one(self, values, place):
        found = outcome(dict(zip((WON, SECOND, THIRD), [(v,) for v in values], strict=True)), places=(place,))
        row = found.loc[(place[0][0], place[1])]
        assert (row["rank"] == 1) == (row["regret"] == 0)
        assert row["regret"] >= 0
        assert 1 <= row["rank"] <= 3
        best = min(values) if place[1] == "log_loss" else max(values)
        assert row["regret"] == pytest.approx(abs(values[0] - best))
