"""Groups by what was recorded: names of levels, bands of age, intersections, studies, and what is refused."""

import pandas as pd
import pytest

from pipeline.analysis.subgroups import COLUMNS, check_names, columns_of, group_names, of_images
from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.tables.contract import make_table
from pipeline.tables.files import Instances


def instances(rows):
    fixed = {"source_id": "s", "frame": 0, "patient_id": "p", "site": "a", "rows": 1, "columns": 2, "source_hmac": "h"}
    return make_table(Instances, [{"study_id": f"study{n}", **fixed, **row} for n, row in enumerate(rows)])


def groups(rows, *names, unit="image"):
    table = instances([{"image_id": f"i{n}", **row} for n, row in enumerate(rows)])
    return group_names(table[columns_of(names)], names, unit)


def test_levels_by_hand():
    made = groups(
        [
            {"sex": "F", "age_years": 59, "kvp": 120.0, "lossy": True},
            {"sex": None, "age_years": 60, "kvp": None},
            {"sex": "M", "age_years": None, "kvp": 81.5},
            {"sex": "M", "age_years": 90, "kvp": 81.5},
            {"sex": "F", "age_years": 0},
        ],
        *("sex", "age_band", "sex+age_band", "kvp", "lossy"),
    )
    assert made["sex"].tolist() == ["sex=F", "sex=(missing)", "sex=M", "sex=M", "sex=F"]
    assert made["age_band"].str.removeprefix("age_band=").tolist() == ["40-59", "60-79", "(missing)", "80+", "0-19"]
    assert made["sex+age_band"].tolist()[:2] == ["sex=F+age_band=40-59", "sex=(missing)+age_band=60-79"]
    assert made["kvp"].tolist()[:3] == ["kvp=120", "kvp=(missing)", "kvp=81.5"]
    assert made["lossy"].tolist()[:2] == ["lossy=True", "lossy=(missing)"]


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_that_may_be_named_has_levels_even_where_it_is_empty(name):
    assert groups([{}, {}], name)[name].str.startswith(f"{name}=").all()


def test_of_a_study_whose_images_differ_no_level_is_made_up():
    rows = [
        {"study_id": "one", "view_position": "ap", "sex": "F"},
        {"study_id": "one", "view_position": "pa", "sex": "F"},
        {"study_id": "two", "view_position": None, "sex": "M"},
        {"study_id": "two", "view_position": "pa", "sex": "M"},
    ]
    made = groups(rows, "view_position", "sex", unit="study")
    assert made.loc["one"].tolist() == ["view_position=(several)", "sex=F"]
    assert made.loc["two"].tolist() == ["view_position=(several)", "sex=M"]


def test_images_are_looked_up_and_must_be_there():
    made = groups([{"sex": "F"}, {"sex": "M"}], "sex")
    assert of_images(made, ["i1", "i0"])["sex"].tolist() == ["sex=M", "sex=F"]
    with pytest.raises(PipelineError, match="1 of 2 images"):
        of_images(made, ["i1", "elsewhere"])


def test_an_image_twice_is_refused():
    table = instances([{"image_id": "i0"}])
    with pytest.raises(PipelineError, match="1 images stand there twice"):
        group_names(pd.concat([table, table])[columns_of(["sex"])], ["sex"])


@pytest.mark.parametrize("unknown", ["gender", "patient_id", "site", "age_years", "sex+site", ""])
def test_identifiers_and_what_is_unknown_are_refused(unknown):
    with pytest.raises(ParamsError, match=r"no column .*known: age_band, "):
        check_names([], [unknown])


def test_a_name_twice_is_refused():
    with pytest.raises(ParamsError, match="stands twice"):
        check_names(["sex"], ["sex"])
    assert check_names(["sex"], ["age_band"]) == ["sex", "age_band"]
