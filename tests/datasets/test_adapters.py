"""What holds for every adapter: it offers what stages call, says its terms and layout, and has its page."""

import inspect
from pathlib import Path

import closure
import pytest
from ruamel.yaml import YAML

from pipeline.datasets.common import FolderParams, SiteParams
from pipeline.datasets.registry import Adapter, adapter_names, load_adapter
from pipeline.params import parse

HOWTO = Path(__file__).parents[2] / "docs/howto/datasets"


@pytest.fixture(params=adapter_names())
def name(request):
    return request.param


def test_there_are_as_many_as_the_pages_say():
    assert adapter_names() == sorted(path.stem for path in HOWTO.glob("*.md") if path.stem != "README")


def test_it_offers_what_stages_call(name):
    adapter = load_adapter(name)
    for function in (member for member in vars(Adapter) if not member.startswith("_") and member != "Params"):
        wanted = inspect.signature(getattr(Adapter, function))
        offered = inspect.signature(getattr(adapter, function))
        assert list(offered.parameters)[: len(wanted.parameters) - 1] == list(wanted.parameters)[1:], function
        assert inspect.getdoc(getattr(adapter, function)), function
    assert issubclass(adapter.Params, SiteParams)


def test_it_says_layout_patients_licence_and_source(name):
    text = inspect.getdoc(load_adapter(name))
    assert "Layout:" in text
    assert "icence" in text
    own = issubclass(load_adapter(name).Params, FolderParams)
    if not own:
        assert "Licence:" in text
        assert "Citation:" in text
        terms = load_adapter(name).TERMS
        assert all((terms.origin, terms.licence, terms.citation))
        # the table of all sets says the same
        (row,) = [line for line in (HOWTO / "README.md").read_text().splitlines() if f"({name}.md)" in line]
        assert f"`{terms.origin}`" in row
        assert ("| yes" in row) == terms.redistribution


def test_its_page_has_an_entry_that_its_params_take(name):
    page = (HOWTO / f"{name}.md").read_text()
    sites = YAML(typ="safe").load(page.split("```yaml\n")[1].split("```")[0])["sites"]
    for site, entry in sites.items():
        assert entry["adapter"] == name
        parse(load_adapter(name).Params, entry, f"sites.{site}")


def test_an_empty_folder_is_nobodys(name, tmp_path):
    assert load_adapter(name).recognise(tmp_path) is None


@pytest.mark.parametrize("stage", ["ingest", "labels", "preprocess"])
def test_stages_of_all_sites_depend_on_the_same_files_but_the_adapters_own(name, stage):
    """dvc.yaml can name one adapter's file a site, and no more that hangs on it."""

    def files(adapter):
        own = f"pipeline/datasets/{adapter}.py"
        return closure.closure(Path(f"pipeline/stages/{stage}.py"), {"pipeline/datasets": adapter})[0] - {own}

    assert files(name) == files("dicom_folder")
