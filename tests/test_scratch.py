"""The scratch store: exact, safe from kill -9, from damage and from a second process, and able to forget."""

import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import scratch as scratch_module
from pipeline.errors import PipelineError
from pipeline.scratch import Scratch, decode, encode, forget
from pipeline.work import code_fingerprint

ROOT = Path(__file__).parents[1]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
OUTCOME = "an outcome of a patient who withdrew"


def typed(value):
    """The value with the type of each part, and floats by their bits: 1 == 1.0 == True, and 0.0 == -0.0."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [typed(item) for item in value]
    return (type(value), value.hex() if isinstance(value, float) else value)


def opened(folder, context="context", name="north"):
    return Scratch(folder, name, context)


def database(folder):
    (path,) = folder.glob("*.sqlite")
    return path


def filled(folder, count=600):
    """A scratch file with outcomes 0, 1, ... of s0, s1, ..."""
    with opened(folder) as made:
        for index in range(count):
            made.put(f"s{index}", "stamp", {"number": index})
    return database(folder)


def kept(folder, count=600, context="context"):
    with opened(folder, context) as made:
        return dict(made.get_many((f"s{index}", "stamp") for index in range(count)))


def expected(count):
    return {(f"s{index}", "stamp"): {"number": index} for index in range(count)}


class TestEncoding:
    @given(PLAIN)
    def test_gives_back_exactly_what_went_in(self, value):
        assert typed(decode(encode(value))) == typed(value)

    def test_keeps_the_order_of_keys(self):
        assert list(decode(encode({"b": 1, "a": 2}))) == ["b", "a"]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
    def test_refuses_floats_that_json_has_not(self, value):
        with pytest.raises(ValueError):
            encode(value)

    @pytest.mark.parametrize("value", [b"x", {"a": {1}}, [{"a": 1j}]])
    def test_refuses_types_that_json_has_not(self, value):
        with pytest.raises(TypeError):
            encode(value)

    def test_refuses_two_surrogates_that_json_would_join(self):
        with pytest.raises(ValueError):
            encode("\ud83d\ude00")


class TestStore:
    @settings(deadline=None, max_examples=25)  # the disk decides how long
    @given(st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), PLAIN, max_size=8))
    def test_round_trip_through_the_file(self, tmp_path_factory, outcomes):
        folder = tmp_path_factory.mktemp("scratch")
        with opened(folder) as made:
            for source_id, outcome in outcomes.items():
                made.put(source_id, "stamp", outcome)
        with opened(folder) as made:
            keys = [(source_id, "stamp") for source_id in outcomes]
            found = list(made.get_many(keys))
            single = [made.get(*key) for key in keys]
        assert [key for key, _ in found] == keys
        assert typed([outcome for _, outcome in found]) == typed(list(outcomes.values())) == typed(single)

    def test_another_stamp_is_another_file(self, tmp_path):
        with opened(tmp_path) as made:
            made.put("a", "old", 1)
            assert made.get("a", "old") == 1
            assert made.get("a", "new") is None
            made.put("a", "new", 2)
            assert list(made.get_many([("a", "old"), ("a", "new"), ("b", "new")])) == [(("a", "new"), 2)]
            made.commit()
            assert made.get("a", "old") is None

    def test_many_keys_are_taken_a_batch_at_a_time(self, tmp_path):
        filled(tmp_path)
        taken = 0

        def keys():
            nonlocal taken
            for index in range(600):
                taken += 1
                yield f"s{index}", "stamp"

        with opened(tmp_path) as made:
            next(made.get_many(keys()))
        assert taken == 256

    def test_another_context_has_nothing_and_deletes_the_old_one(self, tmp_path):
        before = filled(tmp_path)
        with opened(tmp_path, "context", "north_east") as other:
            other.put("x", "stamp", 1)
        assert kept(tmp_path, context={"other": 1}) == {}
        assert not before.exists()
        assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*.sqlite")) == ["north", "north_east"]

    def test_the_order_of_the_context_does_not_matter(self, tmp_path):
        opened(tmp_path, {"a": 1, "b": [2]}).close()
        before = database(tmp_path)
        opened(tmp_path, {"b": [2], "a": 1}).close()
        assert database(tmp_path) == before

    def test_only_its_owner_can_read(self, tmp_path):
        folder = tmp_path / "new" / "ingest"
        mask = os.umask(0)
        try:
            filled(folder)
        finally:
            os.umask(mask)
        assert {path.suffix for path in folder.iterdir()} == {".sqlite", ".lock"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_a_name_that_is_a_path_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="identifier"):
            opened(tmp_path, name="../north")


class TestForgetting:
    def test_leaves_no_byte(self, tmp_path, monkeypatch):
        monkeypatch.setattr(scratch_module, "encode", lambda outcome: outcome.encode())  # to be found as it is
        monkeypatch.setattr(scratch_module, "decode", bytes.decode)
        with opened(tmp_path) as made:
            for index in range(500):
                made.put(f"s{index}", "stamp", f"{OUTCOME} {index}" if index % 7 == 0 else f"stays {index}")
            made.commit()
            assert OUTCOME.encode() in database(tmp_path).read_bytes()
            made.forget(f"s{index}" for index in range(0, 500, 7))
            assert made.get("s7", "stamp") is None
            assert made.get("s8", "stamp") == "stays 8"
        content = database(tmp_path).read_bytes()
        assert OUTCOME.encode() not in content
        assert b"stays 8" in content
        assert not list(tmp_path.glob("*-journal"))

    def test_what_is_still_pending_goes_too(self, tmp_path):
        with opened(tmp_path) as made:
            made.put("a", "stamp", 1)
            made.forget(["a"])
            assert made.get("a", "stamp") is None

    def test_in_all_files_of_a_folder_whatever_their_context(self, tmp_path):
        for name in ("north", "south"):
            with opened(tmp_path, name, name) as made:
                made.put("a", "stamp", 1)
                made.put("b", "stamp", 2)
        damaged = tmp_path / f"east-{'0' * 32}.sqlite"
        damaged.write_bytes(b"no database" * 100)
        forget(tmp_path, ["a"])
        for name in ("north", "south"):
            with opened(tmp_path, name, name) as made:
                assert dict(made.get_many([("a", "stamp"), ("b", "stamp")])) == {("b", "stamp"): 2}
        assert not damaged.exists()

    def test_without_a_folder_there_is_nothing_to_forget(self, tmp_path):
        forget(tmp_path / "none", ["a"])

    def test_files_that_are_gone_are_pruned(self, tmp_path):
        filled(tmp_path)
        with opened(tmp_path) as made:
            made.prune(f"s{index}" for index in range(0, 2000, 2))
            made.prune(f"s{index}" for index in range(500))
        assert kept(tmp_path) == {key: value for key, value in expected(500).items() if value["number"] % 2 == 0}


class TestDurability:
    CODE = """
        import sys, time
        from pathlib import Path
        from pipeline.scratch import Scratch

        with Scratch(Path(sys.argv[1]), "north", "context") as made:
            for index in range(10**9):
                made.put(f"s{index}", "stamp", {"number": index})
                if index % 256 == 255:
                    print(index + 1, flush=True)  # so many are committed
    """

    @pytest.mark.parametrize("lines", [1, 3, 40])
    def test_a_killed_writer_loses_nothing_that_was_committed(self, tmp_path, lines, capsys):
        command = [sys.executable, "-c", textwrap.dedent(self.CODE), str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
            committed = 256 * (lines + len(process.stdout.readlines()))
        found = kept(tmp_path, committed + 600)
        assert found == expected(len(found))
        assert len(found) >= committed
        assert capsys.readouterr().err == ""

    def test_a_journal_left_by_a_killed_writer_is_rolled_back(self, tmp_path):
        path = filled(tmp_path)
        # A transaction whose pages went to the file (the cache holds one) and that never ended.
        code = """
            import os, signal, sqlite3, sys
            connection = sqlite3.connect(sys.argv[1])
            connection.execute("PRAGMA cache_size = 1")
            connection.execute("UPDATE outcome SET value = zeroblob(2000)")
            os.kill(os.getpid(), signal.SIGKILL)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
        assert path.with_name(path.name + "-journal").exists()
        assert kept(tmp_path) == expected(600)

    def test_commits_after_256_outcomes(self, tmp_path):
        with opened(tmp_path) as made:
            for index in range(300):
                made.put(f"s{index}", "stamp", {"number": index})
            assert len(made._pending) == 300 - 256

    def test_commits_once_a_second_has_passed(self, tmp_path, monkeypatch):
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        with opened(tmp_path) as made:
            made.put("a", "stamp", 1)
            assert made._pending
            now += 1.0
            made.put("b", "stamp", 2)
            assert not made._pending


class TestDamage:
    def check_all_is_right_or_gone(self, folder, capsys):
        found = kept(folder)
        assert found.items() <= expected(600).items()
        with opened(folder) as made:  # and it is in use again
            made.put("s0", "stamp", {"number": 0})
        assert kept(folder)[("s0", "stamp")] == {"number": 0}
        return found, capsys.readouterr().err

    @pytest.mark.parametrize("content", [b"", b"not a database at all " * 300, b"SQLite format 3\0" + bytes(5000)])
    def test_something_else_in_its_place(self, tmp_path, capsys, content):
        path = filled(tmp_path)
        path.write_bytes(content)
        found, said = self.check_all_is_right_or_gone(tmp_path, capsys)
        assert found == {}
        assert said.count("\n") == (1 if content else 0)  # an empty file is a new one

    def test_another_programs_database(self, tmp_path, capsys):
        path = filled(tmp_path)
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE outcome (source_id, stamp, digest, value)")
        connection.close()
        _, said = self.check_all_is_right_or_gone(tmp_path, capsys)
        assert "thrown away" in said
        assert str(tmp_path) not in said

    def test_its_table_in_another_layout(self, tmp_path, capsys):
        path = filled(tmp_path)
        connection = sqlite3.connect(path)
        connection.execute("DROP TABLE outcome")
        connection.execute("CREATE TABLE outcome (something)")
        connection.close()
        _, said = self.check_all_is_right_or_gone(tmp_path, capsys)
        assert said.count("\n") == 1

    def test_cut_off(self, tmp_path, capsys):
        path = filled(tmp_path)
        os.truncate(path, path.stat().st_size // 2)
        self.check_all_is_right_or_gone(tmp_path, capsys)

    @settings(deadline=None, max_examples=50)  # the disk decides how long
    @given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=40))
    def test_flipped_bytes_never_give_wrong_data(self, tmp_path_factory, changes):
        folder = tmp_path_factory.mktemp("scratch")
        path = filled(folder)
        content = bytearray(path.read_bytes())
        for place, value in changes:
            content[int(place * len(content))] = value
        path.write_bytes(content)
        assert kept(folder).items() <= expected(600).items()

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE outcome SET value = zeroblob(30) WHERE source_id = 's3'",
            "UPDATE outcome SET value = 'text' WHERE source_id = 's3'",
            "UPDATE outcome SET stamp = 'stamp' || 'x' WHERE source_id = 's3'",
            "UPDATE outcome SET digest = (SELECT digest FROM outcome WHERE source_id = 's4'), "
            "value = (SELECT value FROM outcome WHERE source_id = 's4') WHERE source_id = 's3'",
        ],
    )
    def test_one_value_that_does_not_fit_its_digest(self, tmp_path, capsys, statement):
        path = filled(tmp_path)
        connection = sqlite3.connect(path)
        with connection:
            assert connection.execute(statement).rowcount == 1
        connection.close()
        found = kept(tmp_path)
        assert found == {key: value for key, value in expected(600).items() if key[0] != "s3"}
        assert capsys.readouterr().err.count("\n") == 1

    def test_damage_under_an_open_file_loses_nothing_that_comes_after(self, tmp_path):
        path = filled(tmp_path)
        with opened(tmp_path) as made:
            path.write_bytes(b"overwritten" * 1000)
            for index in range(600):
                made.put(f"s{index}", "new", {"number": index})
            assert dict(made.get_many((f"s{index}", "new") for index in range(400, 600)))

    def test_a_full_disk_is_told_and_nothing_thrown_away(self, tmp_path):
        filled(tmp_path)
        texts = ["".join(map(chr, range(32 + index, 2000 + 7 * index))) for index in range(400)]

        def fill():
            with opened(tmp_path) as made:
                made._connection.execute("PRAGMA max_page_count = 1")
                for index, text in enumerate(texts):
                    made.put(f"t{index}", "stamp", {"text": text})

        with pytest.raises(PipelineError, match="is the disk full"):
            fill()
        assert kept(tmp_path) == expected(600)

    def test_errors_that_quote_damaged_text_are_damage_too(self, tmp_path, capsys):
        path = filled(tmp_path)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"CREATE TABLE outcome (source_id", b"CREATE TABLE outcome \x89\x89source_id"))
        found, said = self.check_all_is_right_or_gone(tmp_path, capsys)
        assert found == {}
        assert said.count("\n") == 1


class TestLock:
    def test_a_second_process_is_told(self, tmp_path):
        code = """
            import sys
            from pathlib import Path
            from pipeline.errors import PipelineError
            from pipeline.scratch import Scratch, forget

            folder = Path(sys.argv[1])
            for work in (lambda: Scratch(folder, "north", "other"), lambda: forget(folder, ["a"])):
                try:
                    work()
                except PipelineError as error:
                    print(error)
            Scratch(folder, "south", "context").close()
        """
        with opened(tmp_path) as made:
            made.put("a", "stamp", 1)
            command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            assert said.count("another process is at work on north") == 2
            assert made.get("a", "stamp") == 1

    def test_is_free_after_closing_twice_and_after_an_error(self, tmp_path):
        made = opened(tmp_path)
        made.close()
        made.close()
        with pytest.raises(ZeroDivisionError), opened(tmp_path) as again:
            again.put("a", "stamp", 1) or 1 / 0
        with opened(tmp_path) as again:
            assert again.get("a", "stamp") == 1


class TestCodeFingerprint:
    @pytest.fixture
    def code(self, tmp_path):
        package = tmp_path / "package"
        (package / "inner").mkdir(parents=True)
        (package / "one.py").write_text("1")
        (package / "inner" / "words.txt").write_text("words")
        return package

    def test_changes_with_a_byte_and_with_a_name(self, code):
        seen = {code_fingerprint([code])}
        (code / "inner" / "words.txt").write_text("wordz")
        seen.add(code_fingerprint([code]))
        (code / "one.py").rename(code / "two.py")
        seen.add(code_fingerprint([code]))
        (code / "inner" / "more.csv").write_text("")
        seen.add(code_fingerprint([code]))
        assert len(seen) == 4

    def test_does_not_change_with_place_or_other_files(self, code, tmp_path):
        before = code_fingerprint([code])
        (code / "inner" / "one.pyc").write_bytes(b"compiled")
        (tmp_path / "elsewhere").mkdir()
        code = code.rename(tmp_path / "elsewhere" / "package")
        assert code_fingerprint([code]) == before

    def test_of_single_files(self, code):
        before = code_fingerprint([code / "one.py"])
        (code / "inner" / "words.txt").write_text("wordz")
        assert code_fingerprint([code / "one.py"]) == before
        (code / "one.py").write_text("2")
        assert code_fingerprint([code / "one.py"]) != before

    def test_of_nothing_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            code_fingerprint([tmp_path])
        with pytest.raises(FileNotFoundError):
            code_fingerprint([tmp_path / "none.py"])
