"""Parameters: what a person mistypes is told with key, constraint and what came."""

import pytest
from pydantic import Field

from pipeline.params import Name, ParamsError, StrictParams, check_versions, load_names, load_params, read_params_file


class Inner(StrictParams):
    size_px: int = Field(ge=16)


class Outer(StrictParams):
    learning_rate: float = 0.1
    site: Name = "north"
    inner: Inner | None = None


@pytest.fixture
def params(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


def test_exponents_are_numbers(params):
    """PyYAML would read text."""
    assert load_params(Outer, "s", params("s: {learning_rate: 1e-3}")).learning_rate == 0.001


def test_empty_section_is_all_defaults(params):
    assert load_params(Outer, "s", params("s:\n")) == Outer()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s: {learning_rte: 1}", "s.learning_rte: unknown key; did you mean 'learning_rate'?"),
        ("s: {xyzzy: 1}", "s.xyzzy: unknown key; known: inner, learning_rate, site"),
        ("s: {learning_rate: fast}", "s.learning_rate: .*number.*; got 'fast'"),
        ("s: {learning_rate: '1e-3'}", "s.learning_rate: .*number.*; got '1e-3'"),
        ("s: {site: 5}", "s.site: .*string; got 5"),
        ("s: {site: North}", "s.site: .*got 'North'"),
        ("s: {site: a-b}", "s.site: .*got 'a-b'"),
        ("s: {inner: {size_px: 8}}", "s.inner.size_px: .*greater than or equal to 16; got 8"),
        ("s: {inner: {}}", "s.inner.size_px: required, but missing"),
        ("s: [1]", "s: .*got \\[1\\]"),
        ("t: {}", "no 's'"),
        ("ss: {}", "no 's'; did you mean 'ss'"),
        ("- 1", "expected sections"),
        ("s: {", "not valid YAML"),
        ("s: {}\ns: {}", "not valid YAML"),
        ("s: \x01", "not valid YAML"),
    ],
)
def test_errors(params, text, expected):
    with pytest.raises(ParamsError, match=expected):
        load_params(Outer, "s", params(text))


def test_missing_and_unreadable_file(tmp_path):
    with pytest.raises(ParamsError, match="not there"):
        read_params_file(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"s: \xff\xfe\xfa")
    with pytest.raises(ParamsError, match="UTF-8"):
        read_params_file(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ["5", "2020_site", "North", "a-b", "a.b", "null", "true", "1e3"])
def test_names_that_dvc_would_drop_or_join(params, name):
    with pytest.raises(ParamsError, match=r"the name .* must match"):
        load_names("sites", params(f"sites: {{{name}: {{}}}}"))


@pytest.mark.parametrize("text", ["sites:", "sites: {}", "sites: [a]"])
def test_no_names(params, text):
    with pytest.raises(ParamsError, match="at least one"):
        load_names("sites", params(text))


def test_names_keep_the_order_of_the_file(params):
    assert load_names("sites", params("sites: {b: {}, a: {}}")) == ["b", "a"]


def test_version_that_differs_is_named(params):
    with pytest.raises(ParamsError, match=r"versions.numpy is 1.0 in .*, but 2"):
        check_versions("numpy", path=params("versions: {numpy: '1.0'}"))
    with pytest.raises(ParamsError, match="no 'numpy'"):
        check_versions("numpy", path=params("versions: {}"))
