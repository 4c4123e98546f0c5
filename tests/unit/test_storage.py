"""Files appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus import storage
from isthmus.errors import SourceError, StorageError


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_json_round_trip(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "deep" / "x.json", {"b": 1, "ä": [None, 2.5]})
    assert storage.read_json(tmp_path / "deep" / "x.json") == {"b": 1, "ä": [None, 2.5]}
    assert left(tmp_path / "deep") == ["x.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def interrupted() -> None:
        with storage.whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert left(tmp_path) == ["x.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> None:
        with storage.whole_folder(tmp_path / "data") as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert left(tmp_path) == []


def test_a_folder_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    for text, overwrite in (("one", False), ("two", True)):
        with storage.whole_folder(tmp_path / "data", overwrite=overwrite) as temporary:
            (temporary / "a").write_text(text)
        assert (tmp_path / "data" / "a").read_text() == text
    with pytest.raises(StorageError, match="exists already"), storage.whole_folder(tmp_path / "data"):
        pass
    assert left(tmp_path) == ["data"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The system itself refuses: a device that is always full."""
    code = """
import os, sys
from isthmus import storage
from isthmus.errors import StorageError
try:
    with storage.whole_file(sys.argv[1]) as temporary:
        full = os.open("/dev/full", os.O_WRONLY)
        os.write(full, b"x" * 10_000)
except StorageError as error:
    print("refused:", error.came)
"""
    target = tmp_path / "big.bin"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: the disk is full")
    assert left(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_json(tmp_path / "x.json", 1)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, FileExistsError)):
        storage.write_json(tmp_path / "file" / "x.json", 1)


@pytest.mark.parametrize("text", ["", "{", "not json"])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match="cannot be read"):
        storage.read_json(tmp_path / "x.json")
    with pytest.raises(SourceError, match="missing"):
        storage.read_json(tmp_path / "y.json")


def test_a_claim_is_one_s_own_until_it_ends(tmp_path: Path) -> None:
    place = tmp_path / "parts" / "a"
    with storage.claim(place) as mine, storage.claim(place) as theirs, storage.claim(place.with_name("b")) as other:
        assert (mine, theirs, other) == (True, False, True)
    with storage.claim(place) as mine:
        assert mine
    assert not place.exists()


def test_a_killed_process_holds_no_claim(tmp_path: Path) -> None:
    code = f"""
import sys, time
from isthmus import storage
with storage.claim({str(tmp_path / "a")!r}) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with storage.claim(tmp_path / "a") as mine:
            assert not mine
        process.kill()
    with storage.claim(tmp_path / "a", wait=True) as mine:
        assert mine
