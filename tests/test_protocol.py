"""The protocol against params, its hashes, and a log that only grows, and only by what is new."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline import protocol
from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.protocol import (
    SECTIONS,
    UNDECLARED,
    Entry,
    load_protocol,
    opened,
    openings_table,
    params_digest,
    protocol_digest,
    protocol_table,
    read_log,
    record_opening,
    seal,
    splits_digest,
    statement,
    write_log,
)
from pipeline.tables.contract import write_table
from pipeline.tables.protocol import Openings, Protocols

DECLARED = {
    "hypothesis": "Fine-tuning is better\n  than scratch elsewhere.",
    "primary_outcome": {"metric": "auroc", "finding": "opacity", "split": "ood_test", "group": "target"},
    "primary_comparison": {"backbone": "resnet18", "method": "lp_ft", "against": "scratch"},
    "margin": 0.05,
}
PARAMS = {
    "labels": {"findings": ["opacity"]},
    "split": {"seed": 1, "source": ["north"], "target": ["east", "west"]},
    "backbones": {"resnet18": {}},
    "methods": {"scratch": {}, "scratch_converged": {}, "lp_ft": {"learning_rate": 1e-4}},
    "verdict": {"margin": 0.05},
}


def changed(tree, **paths):
    """A deep copy with ``a__b=value`` set."""
    copy = json.loads(json.dumps(tree))
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = copy
        for parent in parents:
            place = place[parent]
        place[last] = value
    return copy


def write(folder, tree):
    with (folder / "protocol.yaml").open("w") as file:
        YAML(typ="safe").dump(tree, file)
    return folder / "protocol.yaml"


def test_a_protocol_is_read(tmp_path):
    declared = load_protocol(write(tmp_path, {**DECLARED, "sample_size": 300}), PARAMS)
    assert declared.primary_comparison.method == "lp_ft"
    assert declared.hypothesis == "Fine-tuning is better than scratch elsewhere."
    assert declared.sample_size == 300


@pytest.mark.parametrize("text", [None, "", "# later\n\n  # much\n"])
def test_no_file_and_an_empty_one_declare_nothing(tmp_path, text):
    """DVC wants a dependency to be there: a study without a protocol has an empty file."""
    path = tmp_path / "protocol.yaml"
    if text is not None:
        path.write_text(text)
    assert load_protocol(path, PARAMS) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"primary_outcome__metric": "aurok"}, "primary_outcome.metric: 'aurok' has no result.*did you mean 'auroc'"),
        ({"primary_outcome__metric": "brier"}, "primary_outcome.metric"),  # methods are compared by AUROC
        ({"primary_outcome__finding": "opacty"}, "primary_outcome.finding.*did you mean 'opacity'"),
        ({"primary_outcome__group": "site=eas"}, "primary_outcome.group.*did you mean 'site=east'"),
        ({"primary_outcome__group": "source"}, "primary_outcome.group: 'source'"),
        ({"primary_outcome__split": "id_test"}, "primary_outcome.group: 'target'.*known: source"),
        ({"primary_outcome__split": "train"}, "primary_outcome.split: Input should be 'id_test' or 'ood_test'"),
        ({"primary_comparison__backbone": "resnet81"}, "primary_comparison.backbone.*did you mean 'resnet18'"),
        ({"primary_comparison__method": "lpft"}, "primary_comparison.method.*did you mean 'lp_ft'"),
        ({"primary_comparison__method": "scratch"}, "primary_comparison.method: 'scratch'"),
        ({"primary_comparison__against": "lp_ft"}, "primary_comparison.against.*scratch, scratch_converged"),
        ({"margin": 0.1}, "margin: must be verdict.margin, which is 0.05; got 0.1"),
        ({"margin": 0.0}, "protocol.margin"),
        ({"sample_size": 1}, "protocol.sample_size"),
        ({"hypothesis": ""}, "protocol.hypothesis"),
        ({"hypothesis": "decided on 2024-03-01"}, "protocol.hypothesis: no dates"),
        ({"hypothesis": "decided on 1.3.2024"}, "protocol.hypothesis: no dates"),
        ({"primary_outcom": {}}, "did you mean 'primary_outcome'"),
    ],
)
def test_a_protocol_without_a_result_is_refused(tmp_path, change, text):
    with pytest.raises(ParamsError, match=text):
        load_protocol(write(tmp_path, changed(DECLARED, **change)), PARAMS)


def test_a_sides_only_hospital_is_the_side(tmp_path):
    path = write(tmp_path, changed(DECLARED, primary_outcome__group="site=east"))
    assert load_protocol(path, PARAMS) is not None
    with pytest.raises(ParamsError, match="known: target"):
        load_protocol(path, changed(PARAMS, split__target=["east"]))


def test_a_site_left_out_is_a_target(tmp_path):
    path = write(tmp_path, changed(DECLARED, primary_outcome__group="site=south"))
    params = changed(PARAMS, split__source=["north", "south"])
    with pytest.raises(ParamsError, match="site=south"):
        load_protocol(path, params)
    assert load_protocol(path, changed(params, split__leave_out="south")) is not None


# --- hashes ---------------------------------------------------------------------------------------------------


def test_the_layout_of_the_protocol_does_not_matter_and_its_words_do(tmp_path):
    first = protocol_digest(load_protocol(write(tmp_path, DECLARED), PARAMS))
    (tmp_path / "protocol.yaml").write_text("# a comment\n" + json.dumps(dict(reversed(DECLARED.items()))))
    assert protocol_digest(load_protocol(tmp_path / "protocol.yaml", PARAMS)) == first
    other = changed(DECLARED, hypothesis="Fine-tuning is worse.")
    assert protocol_digest(load_protocol(write(tmp_path, other), PARAMS)) != first
    assert len(first) == 64
    assert protocol_digest(None) == ""


def test_the_hash_of_params_is_of_the_sections_that_results_hang_on():
    digest = params_digest(PARAMS)
    assert params_digest(dict(reversed(PARAMS.items()))) == digest
    assert params_digest({**PARAMS, "report": {"title": "x"}}) == digest
    assert {"finetune", "evaluate", "split"} <= set(SECTIONS)
    assert params_digest(changed(PARAMS, methods__lp_ft={"learning_rate": 2e-4})) != digest
    assert params_digest({"labels": {"values": {1: "a", "no": "b"}}}) != digest  # keys of any type


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1), st.randoms())
def test_the_hash_of_images_hangs_on_their_names_alone(names, rng):
    digest = splits_digest(names)
    shuffled = names * 2
    rng.shuffle(shuffled)
    assert splits_digest(shuffled) == digest
    assert splits_digest([*names, "d"]) != digest


def test_the_hash_of_images_is_sha256():
    assert splits_digest(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()


# --- the log --------------------------------------------------------------------------------------------------

A, B, NO = "a" * 64, "b" * 64, ""
P, Q, S, T = "1" * 64, "2" * 64, "3" * 64, "4" * 64


def test_the_story_of_a_study():
    log = seal([], A, P, "", None)
    assert log == [Entry(0, A, P, "", "sealed")]
    assert statement(log, A, P) == ("protocol sealed before the test labels were opened; test labels not opened yet")
    log = opened(log, A, P, S)
    assert log[-1] == Entry(1, A, P, S, "first opening")
    assert statement(log, A, P) == "protocol sealed before the test labels were opened; test labels opened once"
    assert opened(log, A, P, S) == log  # a rerun
    log = opened(log, A, Q, T)
    assert log[-1] == Entry(2, A, Q, T, "params changed and test images changed")
    with pytest.raises(PipelineError, match=r"not sealed as it stands.*no test label was opened"):
        opened(log, B, Q, T)
    with pytest.raises(PipelineError, match=r"opened before \(2 times\): say with --reason"):
        seal(log, B, Q, T, None)
    log = opened(seal(log, B, Q, T, "the margin was mistyped"), B, Q, T)
    assert [entry.opening for entry in log] == [0, 1, 2, 0, 3]
    assert log[-2].reason == "the margin was mistyped"
    assert statement(log, B, Q) == (
        "protocol sealed after opening 2 of the test labels; test labels opened 3 times; "
        "params changed and test images changed after opening 1; protocol changed after opening 2"
    )
    assert "params changed since" in statement(log, B, P)
    assert opened(log, A, P, S) == log  # back at what was opened first


def test_without_a_protocol_openings_count_and_a_late_one_is_seen():
    log = opened([], NO, P, S)
    assert statement(log, NO, P) == f"{UNDECLARED}; test labels opened once"
    log = opened(seal(log, A, P, S, "now we know"), A, P, S)
    assert statement(log, A, P).startswith("protocol sealed after opening 1")
    assert statement(log, A, P).endswith("; protocol declared after opening 1")
    assert opened(log, NO, Q, S)[-1].reason == "protocol withdrawn and params changed"


def test_sealing_again_adds_a_line_only_for_other_params():
    log = seal([], A, P, "", None)
    assert seal(log, A, P, S, None) == log
    assert len(seal(log, A, Q, S, None)) == 2


@pytest.mark.parametrize("reason", ["one, two", 'a "word"', "two\nlines", "x" * 201])
def test_a_reason_that_would_break_the_log_is_refused(reason):
    with pytest.raises(PipelineError, match="--reason: up to 200 characters"):
        seal([], A, P, S, reason)


EVENT = st.tuples(st.booleans(), st.sampled_from([NO, A, B]), st.sampled_from([P, Q]), st.sampled_from([S, T]))


@settings(max_examples=30, deadline=None)
@given(st.lists(EVENT, max_size=8))
def test_the_log_only_grows_and_is_read_as_written(tmp_path_factory, events):
    path, log = tmp_path_factory.getbasetemp() / "openings.csv", []
    for is_seal, declared, params, splits in events:
        before = list(log)
        log = seal(log, declared or A, params, splits, "why") if is_seal or declared else log
        if not is_seal:
            log = opened(log, declared, params, splits)
            assert opened(log, declared, params, splits) == log
        assert log[: len(before)] == before
    write_log(path, log)
    assert read_log(path) == log
    assert [e.opening for e in log if e.opening] == list(range(1, 1 + len({hashes(e) for e in log if e.opening})))
    assert openings_table(log)["opening"].tolist() == [entry.opening for entry in log]


def hashes(entry):
    return entry.protocol_sha256, entry.params_sha256, entry.splits_sha256


@pytest.fixture
def log_file(tmp_path):
    write_log(tmp_path / "openings.csv", opened(seal([], A, P, "", None), A, P, S))
    return tmp_path / "openings.csv"


def test_the_file_is_plain_text(log_file):
    assert log_file.read_text() == (
        f"opening,protocol_sha256,params_sha256,splits_sha256,reason\n0,{A},{P},,sealed\n1,{A},{P},{S},first opening\n"
    )
    assert [path.name for path in log_file.parent.iterdir()] == ["openings.csv"]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("opening,", "opened,", "line 1: expected 'opening,protocol"),
        (f"0,{A}", f"0,{A[:-1]}", "line 2: expected opening,protocol"),
        ("1,a", "2,a", r"line 3: expected opening 1 .or 0, a seal., got 2. No line is ever taken out"),
        ("first opening", "", "line 3"),
        ("sealed", "<<<<<<< HEAD\n=======", "line 3"),
    ],
)
def test_a_damaged_log_is_refused(log_file, old, new, text):
    log_file.write_text(log_file.read_text().replace(old, new, 1))
    with pytest.raises(PipelineError, match=text):
        read_log(log_file)


def test_a_log_with_an_opening_taken_out_is_refused(log_file):
    write_log(log_file, opened(read_log(log_file), A, Q, S))
    lines = log_file.read_text().splitlines(keepends=True)
    log_file.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(PipelineError, match="line 3: expected opening 1"):
        read_log(log_file)


def test_recording_writes_once(tmp_path, monkeypatch):
    path = tmp_path / "openings.csv"
    declared = load_protocol(write(tmp_path, DECLARED), PARAMS)
    with pytest.raises(PipelineError, match="not sealed"):
        record_opening(path, declared, PARAMS, ["i1", "i2"])
    assert not path.exists()
    write_log(path, seal([], protocol_digest(declared), params_digest(PARAMS), "", None))
    log = record_opening(path, declared, PARAMS, ["i1", "i2"])
    assert log[-1].splits_sha256 == splits_digest(["i1", "i2"])
    assert read_log(path) == log
    monkeypatch.setattr(protocol, "write_log", None)  # a rerun does not even touch the file
    assert record_opening(path, declared, PARAMS, ["i2", "i1"]) == log


def test_tables_for_the_report(tmp_path):
    declared = load_protocol(write(tmp_path, DECLARED), PARAMS)
    write_table(Openings, openings_table(opened([], NO, P, S)), tmp_path / "openings.parquet")
    for row in (protocol_table(declared, "text"), protocol_table(None, UNDECLARED)):
        write_table(Protocols, row, tmp_path / "x.parquet")
    row = protocol_table(declared, "text").iloc[0]
    assert (row["run"], row["against"], row["group"], row["margin"]) == ("resnet18-lp_ft", "scratch", "target", 0.05)
    assert protocol_table(None, UNDECLARED).iloc[0].drop("statement").isna().all()
