"""The ledger's file: what was written comes back; anything else is refused with its line and without its content."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.ledger import forget, holds_patient, read_ledger, write_ledger
from pipeline.splits import SIDES
from pipeline.tables.contract import make_table
from pipeline.tables.images import Ledger

KEY = "0123456789abcdef"
rows = st.dictionaries(
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.tuples(
        st.sampled_from(["north", "site_2"]),
        st.sampled_from(["opacity", "no_finding", "(negative)", "(unlabelled)", "(any)"]),
        st.sampled_from(SIDES),
    ),
    max_size=8,
)


def table(entries):
    return make_table(Ledger, [dict(zip(Ledger.columns, (name, *rest), strict=True)) for name, rest in entries.items()])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("ledger") / "splits.csv"


@given(rows)
def test_round_trip_and_equal_bytes(path, entries):
    write_ledger(path, KEY, table(entries))
    first = path.read_bytes()
    back = read_ledger(path, KEY)
    assert back.equals(table(entries))
    write_ledger(path, KEY, back.sample(frac=1.0, random_state=1))
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["splits.csv"]


@given(rows.filter(bool))
def test_forgetting_one_keeps_the_others_bytes(path, entries):
    write_ledger(path, KEY, table(entries))
    patient, *others = entries
    assert holds_patient(path, patient)
    forget(path, patient)
    assert not holds_patient(path, patient)
    forgotten = path.read_bytes()
    write_ledger(path, KEY, table({name: entries[name] for name in others}))
    assert path.read_bytes() == forgotten


def test_no_file_is_an_empty_ledger(tmp_path):
    assert read_ledger(tmp_path / "splits.csv", KEY).empty
    assert not holds_patient(tmp_path / "splits.csv", "a" * 32)


HEAD = f"# key {KEY}\npatient_id,site,stratum,side\n"
ROW = f"{'a' * 32},north,(negative),train\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "splits.csv, line 1: expected '# key'"),
        (ROW, "line 1: expected '# key'"),
        (f"# key {KEY}\n" + ROW, "line 2: expected"),
        (HEAD.replace(KEY, "f" * 16) + ROW, f"line 1: written under the key {'f' * 16}, .* is {KEY}.*delete"),
        (HEAD + ROW + ROW, "line 4: the patient of line 3 again"),
        (HEAD + ROW + ROW.replace("train", "test"), "line 4: the patient of line 3 again.*test before val"),
        (HEAD + ROW + "ZEBRAFELD,north,(negative),train\n", "line 4: expected patient_id"),
        (HEAD + ROW + "\n", "line 4: expected"),
        (HEAD + "<<<<<<< HEAD\n" + ROW, "line 3: expected .*merge"),
        (HEAD + ROW.replace("train", "id_test"), "line 3: expected .*one of train, val, test"),
        (HEAD + ROW.replace("north", "North"), "line 3: expected"),
        (HEAD + "=1+1" + ROW, "line 3: expected"),
    ],
)
def test_what_is_no_ledger_is_refused_by_line(tmp_path, text, message):
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(PipelineError, match=message) as told:
        read_ledger(path, KEY)
    assert "ZEBRAFELD" not in str(told.value)
    assert "aaaa" not in str(told.value)


def test_other_bytes_are_refused(tmp_path):
    (tmp_path / "splits.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PipelineError, match="not a text in UTF-8"):
        read_ledger(tmp_path / "splits.csv", KEY)
