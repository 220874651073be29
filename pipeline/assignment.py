"""Which side each patient and each image is on: drawn at first sight, by site and label, and never again."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.analysis.duplicates import connected
from pipeline.splits import SIDES, Side, SplitParams, uniform
from pipeline.tables.contract import make_table
from pipeline.tables.images import Ledger, Splits

NEGATIVE, UNLABELLED, ANY = "(negative)", "(unlabelled)", "(any)"
# Of images that show one picture those of the first split stay: what tests before what trains.
_PRECEDENCE = ("id_test", "id_val", "train", "ood_test", "target_adapt")


@dataclass(frozen=True)
class Assignment:
    """What ``assign`` decides.

    Attributes:
        splits: rows of ``tables.images.Splits``.
        ledger: rows of ``tables.images.Ledger``: those given, and the patients seen first.
        left_out: reason to the images (image_id, source_id, site) that are not used.
    """

    splits: pd.DataFrame
    ledger: pd.DataFrame
    left_out: dict[str, pd.DataFrame]


def assign(
    instances: pd.DataFrame,
    labels: pd.DataFrame,
    duplicates: pd.DataFrame,
    ledger: pd.DataFrame,
    params: SplitParams,
) -> Assignment:
    """Each image's split: by its patient's side, and by whether its site is a source or a target.

    A patient of the ledger keeps the side that stands there, whatever role the site has by now. A patient seen at a
    source and at a target site serves the source; the target's images of that patient are left out. Of images that
    show one picture (``duplicates``) and would come into two splits, those of one split stay.

    Args:
        instances: image_id, source_id, patient_id, site; study_id where it is known.
        labels: image_id, finding, label; the target sites' are not looked at.
        duplicates: image_id, duplicate_of, patient_id, duplicate_patient_id, correlation.
        ledger: as ``tables.images.Ledger``.
        params: the section.
    """
    grown = grow(ledger, first_sight(instances, labels, params), duplicates, params)
    sides = grown.set_index("patient_id")["side"]
    is_source = instances["site"].isin(params.source)
    crossing = ~is_source & instances["patient_id"].isin(instances.loc[is_source, "patient_id"])
    found = instances[~crossing].copy()
    found["role"] = np.where(found["site"].isin(params.source), "source", "target")
    split_of = {(site, side): params.split_of(site, side) for site in params.sites for side in SIDES}
    found["split"] = list(map(split_of.get, zip(found["site"], found["patient_id"].map(sides), strict=True)))
    kept = found
    # Equal pixels are one picture: whichever image of it stands in a pair, it speaks for all.
    equal = duplicates[duplicates["correlation"] == 1.0]
    copies = {name: f"={group}" for name, group in connected(equal["image_id"], equal["duplicate_of"]).items()}
    ends = [duplicates[name].map(lambda image: copies.get(image, image)) for name in ("image_id", "duplicate_of")]
    # Targets go first: so a picture of theirs cannot link two of the source's and change what is trained on.
    for column, precedence in (("role", ("source", "target")), ("split", _PRECEDENCE)):
        pictures = kept["image_id"].map(lambda image: copies.get(image, image))
        here = set(pictures)
        both = ends[0].isin(here) & ends[1].isin(here)
        shown = pictures.map(connected(ends[0][both], ends[1][both]))
        rank = kept[column].map(precedence.index)
        kept = kept[~(rank > rank.groupby(shown).transform("min"))]
    wanted = ["image_id", "source_id", "site"]
    return Assignment(
        make_table(Splits, kept.reindex(columns=list(Splits.columns))),
        grown,
        {
            "patient_in_source": instances.loc[crossing, wanted],
            "near_duplicate": found.loc[found.index.difference(kept.index), wanted],
        },
    )


def first_sight(instances: pd.DataFrame, labels: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Site and stratum of every patient, if seen today for the first time: patient_id, site, stratum.

    Of several sites a source site counts, of these the first by name. The stratum is the finding that the fewest of
    the site's patients have, of those for which one of the patient's images there is positive.
    """
    seen = instances[["image_id", "patient_id", "site"]].assign(away=~instances["site"].isin(params.pool))
    home = seen.sort_values(["away", "site"]).drop_duplicates("patient_id")[["patient_id", "site", "away"]]
    given = seen[~seen["away"]].merge(labels[labels["label"].notna()], on="image_id")
    given = given.merge(home[["patient_id", "site"]], on=["patient_id", "site"])
    positive = given[given["label"] == 1].drop_duplicates(["patient_id", "finding"])
    patients = positive.groupby(["site", "finding"], as_index=False).agg(patients=("patient_id", "size"))
    rarest = positive.merge(patients, on=["site", "finding"]).sort_values(["patients", "finding"])
    rarest = rarest.drop_duplicates("patient_id").set_index("patient_id")["finding"]
    home["stratum"] = np.select(
        [home["away"], home["patient_id"].isin(rarest.index), home["patient_id"].isin(given["patient_id"])],
        [ANY, home["patient_id"].map(rarest).astype(object), NEGATIVE],
        UNLABELLED,
    )
    return home[["patient_id", "site", "stratum"]]


def grow(ledger: pd.DataFrame, seen: pd.DataFrame, duplicates: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """The ledger with the patients it lacks.

    Patients that share a picture are drawn as one; where one of them stands in the ledger, the others join (a test's
    side before val's before train's). The rest go, in the order of a hash and large groups first, each to the side
    that lags furthest behind its share of the stratum.
    """
    sides = dict(zip(ledger["patient_id"], ledger["side"], strict=True))
    strange = seen[~seen["patient_id"].isin(sides.keys())]
    order = sorted(
        (site not in params.pool, uniform(params.seed, "split", patient), patient, (site, stratum))
        for patient, site, stratum in strange[["patient_id", "site", "stratum"]].itertuples(index=False)
    )
    across = duplicates[duplicates["patient_id"] != duplicates["duplicate_patient_id"]]
    groups = connected(across["patient_id"], across["duplicate_patient_id"])
    joined: dict[int, Side] = {}
    for patient in groups.keys() & sides.keys():
        group = groups[patient]
        joined[group] = max(sides[patient], joined.get(group, SIDES[0]), key=SIDES.index)
    units: dict[object, list[tuple[str, tuple[str, str]]]] = defaultdict(list)
    for _, _, patient, stratum in order:
        units[groups.get(patient, patient)].append((patient, stratum))
    counts: dict[tuple[str, str], dict[Side, int]] = defaultdict(lambda: dict.fromkeys(SIDES, 0))
    tally = ledger.groupby(["site", "stratum", "side"]).size()
    for (site, stratum, side), number in tally.items():
        counts[site, stratum][side] = int(number)
    # Who joins a group of the ledger is counted before anybody is drawn; Python's sort is stable.
    for unit, members in sorted(units.items(), key=lambda item: (item[0] not in joined, -len(item[1]))):
        site, _ = members[0][1]
        side = joined[unit] if unit in joined else lagging(counts[members[0][1]], len(members), site, params)
        for patient, stratum in members:
            sides[patient] = side
            counts[stratum][side] += 1
    return make_table(Ledger, pd.concat([ledger, strange.assign(side=strange["patient_id"].map(sides))]))


def lagging(count: dict[Side, int], size: int, site: str, params: SplitParams) -> Side:
    """The side that ``size`` more patients of a stratum go to, so that each stays within one patient of its share.

    At a source a stratum's first patient trains and its second selects, unless a side would then lag by a whole
    patient: training and selection need every class, even where there are two patients of it.

    Args:
        count: patients of the stratum there are, by side.
        size: of the group.
        site: the stratum's.
        params: the section.
    """
    total = sum(count.values()) + size
    lag = {side: share * total - count[side] for side, share in zip(SIDES, params.shares(site), strict=True)}
    furthest = max(SIDES, key=lambda side: lag[side])
    if site in params.pool and lag[furthest] < size:
        return next((side for side in ("train", "val") if not count[side]), furthest)
    return furthest
