"""The key: made once, for its owner alone, checked against what is committed."""

import pytest

from pipeline.errors import PipelineError
from pipeline.key import KEY_FILE, KEY_VARIABLE, PUBLIC_KEY, ensure_private_key, fingerprint, load_key


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)

    def write(kind, mark=None):
        mark = f", key_fingerprint: '{mark}'" if mark else ""
        (tmp_path / "params.yaml").write_text(f"privacy: {{key: {kind}{mark}}}")
        return tmp_path / "params.yaml"

    return write


def test_public_key(study):
    assert load_key(study("public", fingerprint(PUBLIC_KEY))) == PUBLIC_KEY


def test_private_key_is_made_once_for_its_owner(study, tmp_path):
    assert ensure_private_key(tmp_path)
    text = (tmp_path / KEY_FILE).read_text()
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert not ensure_private_key(tmp_path)
    assert (tmp_path / KEY_FILE).read_text() == text
    key = bytes.fromhex(text)
    assert len(key) == 32
    assert load_key(study("private", fingerprint(key))) == key


def test_the_environment_comes_first(study, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "ab" * 16)
    assert not ensure_private_key(tmp_path)
    assert load_key(study("private", fingerprint(b"\xab" * 16))) == b"\xab" * 16


@pytest.mark.parametrize("text", ["", "xyz", "ab" * 15, "not hexadecimal at all, but long enough to be"])
def test_bad_keys_are_refused_and_not_quoted(study, tmp_path, text):
    (tmp_path / KEY_FILE).write_text(text)
    (tmp_path / KEY_FILE).chmod(0o600)
    with pytest.raises(PipelineError, match="32 hexadecimal digits") as raised:
        load_key(study("private", "0" * 16))
    assert not text or text not in str(raised.value)


def test_missing_readable_and_other_keys(study, tmp_path):
    path = study("private", "0" * 16)
    with pytest.raises(PipelineError, match="no key"):
        load_key(path)
    ensure_private_key(tmp_path)
    with pytest.raises(PipelineError, match="own key in place") as raised:
        load_key(path)
    assert (tmp_path / KEY_FILE).read_text().strip() not in str(raised.value)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(PipelineError, match="chmod 600"):
        load_key(path)


def test_missing_fingerprint_is_told_with_its_value(study):
    with pytest.raises(PipelineError, match=f"key_fingerprint: {fingerprint(PUBLIC_KEY)}"):
        load_key(study("public"))
