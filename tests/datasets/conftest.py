import pytest
from stages.study import Study


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    return Study(tmp_path, monkeypatch, capsys)
