"""The manifest: no name in it, and it must agree with what lies there."""

import pytest

from pipeline.datasets import dicom_folder as adapter
from pipeline.datasets.inventory import identify, locate, take_inventory
from pipeline.errors import PipelineError
from pipeline.params import parse
from pipeline.tables import Manifest, write_table

KEY = b"k" * 32
NAME = "ZEBRAFELD_QUINTESSA_19401103"


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "raw" / NAME
    folder.mkdir(parents=True)
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(name.encode())
    labels = {"file": "l.csv", "key": "file", "key_column": "file", "columns": {}}
    return parse(adapter.Params, {"adapter": "dicom_folder", "root": "raw", "labels": labels}, "sites.north")


def sources_of(site, tmp_path, name="north"):
    return identify(adapter, site, name, tmp_path, KEY)


@pytest.mark.parametrize("hash_content", [True, False])
def test_manifest_names_nobody(site, tmp_path, hash_content):
    manifest = take_inventory(sources_of(site, tmp_path), KEY, hash_content=hash_content)
    write_table(Manifest, manifest, tmp_path / "m.parquet")
    assert len(manifest) == 2
    assert manifest["source_hmac"].isna().all() != hash_content
    for secret in (b"ZEBRAFELD", b"QUINTESSA", b"a.dcm"):
        assert secret not in (tmp_path / "m.parquet").read_bytes()
    assert set(locate(manifest, sources_of(site, tmp_path), "north")) == set(manifest["source_id"])


def test_pseudonyms_hang_on_the_site(site, tmp_path):
    assert not set(sources_of(site, tmp_path)) & set(sources_of(site, tmp_path, "south"))


def test_content_hash_sees_a_change_of_the_same_size(site, tmp_path):
    before = take_inventory(sources_of(site, tmp_path), KEY, hash_content=True)
    (tmp_path / "raw" / NAME / "a.dcm").write_bytes(b"A.dcm")
    after = take_inventory(sources_of(site, tmp_path), KEY, hash_content=True)
    assert (before["source_hmac"] != after["source_hmac"]).sum() == 1


def test_files_come_and_go(site, tmp_path):
    manifest = take_inventory(sources_of(site, tmp_path), KEY, hash_content=False)
    (tmp_path / "raw" / NAME / "a.dcm").rename(tmp_path / "raw" / "new.dcm")
    with pytest.raises(PipelineError, match="1 files are not in the manifest, 1 of the manifest are gone") as raised:
        locate(manifest, sources_of(site, tmp_path), "north")
    assert "ZEBRAFELD" not in str(raised.value)


def test_empty_folder(site, tmp_path):
    for path in (tmp_path / "raw" / NAME).iterdir():
        path.unlink()
    with pytest.raises(PipelineError, match="north: no file below raw"):
        sources_of(site, tmp_path)


def test_a_listed_file_that_is_not_there_stays_listed(site, tmp_path):
    sources = sources_of(site, tmp_path)
    (tmp_path / "raw" / NAME / "a.dcm").unlink()
    assert sorted(take_inventory(sources, KEY, hash_content=True)["size_bytes"]) == [-1, 5]
