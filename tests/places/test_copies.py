import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.places import copies
from agenet.places.copies import Copy
from agenet.places.fetching import fetch, fetch_files, fetch_folder
from agenet.places.stores import parse_address
from tests.places.stores import use_memory

AT = "memory://bucket/runs/a"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(copies, "cache_dir", lambda: tmp_path / "cache")
    return use_memory(monkeypatch)


def put(store: Any, **files: bytes) -> None:
    for name, content in files.items():
        store.pipe_file(f"/bucket/runs/a/{name.replace('__', '/')}", content)


def names(store: Any) -> list[str]:
    return sorted(name.removeprefix("/bucket/runs/a/") for name in store.find("/bucket/runs/a"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def count_gets(store: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    got: list[str] = []
    get = type(store).get_file

    def counted(self: Any, name: str, path: str) -> None:
        got.append(name.rpartition("/")[2])
        get(self, name, path)

    monkeypatch.setattr(type(store), "get_file", counted)
    return got


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_changed_is_fetched(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a=b"1", b__c=b"2", d=b"3")
    got = count_gets(store, monkeypatch)
    folder = fetch(AT)
    assert folder.name == "a"
    assert contents(folder) == {"a": b"1", "b/c": b"2", "d": b"3"}
    assert fetch(f"{AT}/") == folder and sorted(got) == ["a", "c", "d"]
    put(store, a=b"4")
    store.rm_file("/bucket/runs/a/d")
    (folder / "b/c").write_bytes(b"damaged")
    fetch(Path(AT))
    assert contents(folder) == {"a": b"4", "b/c": b"2"}
    assert sorted(got) == ["a", "a", "c", "c", "d"]


def test_one_file(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, t__csv=b"1", other=b"2")
    got = count_gets(store, monkeypatch)
    assert fetch(f"{AT}/t/csv").read_bytes() == b"1"
    fetch(f"{AT}/t/csv")
    put(store, t__csv=b"23")
    assert fetch(f"{AT}/t/csv").read_bytes() == b"23"
    assert got == ["csv", "csv"]


def test_some_files(store: Any) -> None:
    put(store, a=b"1", b__c=b"2", d=b"3")
    address = parse_address(AT)
    assert set(contents(fetch_files(address, ["b/c", "missing"]))) == {"b/c"}
    assert set(contents(fetch_files(address, ["d"]))) == {"b/c", "d"}
    assert set(contents(fetch_folder(address))) == {"a", "b/c", "d"}


def test_what_is_missing_is_named(store: Any) -> None:
    with pytest.raises(UserError, match=f"{AT}/x: there is no such bucket, folder or file"):
        fetch(f"{AT}/x")
    with pytest.raises(UserError, match=f"{AT}: there is nothing there"):
        fetch_folder(parse_address(AT))
    assert contents(fetch_folder(parse_address(AT), may_be_missing=True)) == {}
    with pytest.raises(UserError, match="memory://other/a: there is no such bucket"):
        fetch_folder(parse_address("memory://other/a"), may_be_missing=True)


def test_names_of_strangers_stay_inside(store: Any, tmp_path: Path) -> None:
    store.store.update({})
    for name in ("../out", "a/../../out", ".hidden", "a//b", "fine"):
        store.pipe_file(f"/bucket/runs/a/{name}", b"1")
    assert contents(fetch_folder(parse_address(AT))) == {"fine": b"1"}
    assert not list(tmp_path.rglob("out"))


def test_a_file_in_the_place_of_a_folder(store: Any) -> None:
    put(store, a=b"1")
    folder = fetch(AT)
    store.rm_file("/bucket/runs/a/a")
    put(store, a__b=b"2")
    fetch(AT)
    assert contents(folder) == {"a/b": b"2"}


def test_offline(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a=b"1")
    file, folder = fetch(f"{AT}/a"), fetch(AT)
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    assert fetch(f"{AT}/a") == file and fetch(AT) == folder
    assert fetch_folder(parse_address(AT)) == folder
    for missing in (f"{AT}/b", "memory://bucket/other"):
        with pytest.raises(UserError, match=f"{missing} is not in the cache"):
            fetch(missing)
    with pytest.raises(UserError, match="is not in the cache, and AGENET_OFFLINE is set"):
        fetch_folder(parse_address("memory://bucket/other"))


def test_a_full_disk(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a=b"1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(UserError, match=r"needs 1 bytes in .*, which has 9 free: free some"):
        fetch(AT)


def test_what_changes_while_it_is_fetched(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a=b"1", b=b"2")
    get = type(store).get_file

    def meanwhile(self: Any, name: str, path: str) -> None:
        if name.endswith("/b"):  # Replaced by c.
            put(store, c=b"3")
            self.store.pop("/bucket/runs/a/b", None)
        get(self, name, path)

    monkeypatch.setattr(type(store), "get_file", meanwhile)
    assert contents(fetch(AT)) == {"a": b"1", "c": b"3"}

    def cut_off(self: Any, name: str, path: str) -> None:
        Path(path).write_bytes(b"")

    monkeypatch.setattr(type(store), "get_file", cut_off)
    put(store, a=b"12")
    with pytest.raises(UserError, match=f"{AT}/a changed while it was fetched: try again"):
        fetch(AT)
    assert contents(Copy(parse_address(AT)).folder) == {"a": b"1", "c": b"3"}


def test_an_interrupted_fetch_resumes(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a=b"1", b=b"2")
    with monkeypatch.context() as patch:
        get = type(store).get_file

        def fail(self: Any, name: str, path: str) -> None:
            if name.endswith("/b"):
                raise OSError(5, "no connection")
            get(self, name, path)

        patch.setattr(type(store), "get_file", fail)
        with pytest.raises(UserError, match=f"{AT}: no answer to use: .*no connection"):
            Copy(parse_address(AT), "work").fetch(keep_changes=True)
    got = count_gets(store, monkeypatch)
    copy = Copy(parse_address(AT), "work")
    assert copy.fetch(keep_changes=True)
    assert contents(copy.folder) == {"a": b"1", "b": b"2"}
    assert got == ["b"]


CHECKPOINT = "checkpoints__latest__5__"


def test_what_changed_is_sent(store: Any) -> None:
    copy = Copy(parse_address(AT), "work")
    assert not copy.fetch()
    write(copy.folder, a="1", b__c="2", **{f"{CHECKPOINT}d__x": "3", f"{CHECKPOINT}y": "4"})
    write(copy.folder, **{".lock": "", "sub__.hidden": ""})
    (copy.folder / "link").symlink_to("a")
    sent: list[int] = []
    copy.send(before=lambda: sent.append(1))
    assert names(store) == ["a", "b/c", "checkpoints/latest/5.zip"]
    assert len(sent) == 3
    copy.send(before=lambda: sent.append(1))
    assert len(sent) == 3
    write(copy.folder, a="12", **{f"{CHECKPOINT}y": "45"})
    (copy.folder / "b/c").unlink()
    copy.send(before=lambda: sent.append(1))
    assert names(store) == ["a", "checkpoints/latest/5.zip"] and len(sent) == 6
    there = Copy(parse_address(AT))
    there.fetch()
    assert contents(there.folder) == {
        "a": b"12",
        "checkpoints/latest/5/d/x": b"3",
        "checkpoints/latest/5/y": b"45",
    }


def test_files_of_others_stay(store: Any) -> None:
    copy = Copy(parse_address(AT), "work")
    copy.fetch()
    put(store, notes=b"1")
    write(copy.folder, a="1")
    copy.send()
    assert names(store) == ["a", "notes"]


def test_the_last_file_says_that_all_is_there(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("put_file", "rm_file"):
        of_store = getattr(type(store), name)

        def noted(self: Any, *args: str, of_store: Any = of_store, name: str = name) -> None:
            done.append(f"{name[:3]} {args[-1].rpartition('/')[2]}")
            of_store(self, *args)

        monkeypatch.setattr(type(store), name, noted)
    put(store, **{"v__info.json": b"old", "v__shard_of_3": b"old", "v__z": b"old"})
    copy = Copy(parse_address(AT), "work")
    copy.fetch(lambda name: name.endswith(".json"))
    copy.send("info.json")
    assert not done  # Nothing was done here, so nothing there is removed.
    write(copy.folder, **{"v__info.json": "new!", "v__z": "new!", f"{CHECKPOINT}y": "4"})
    copy.send("info.json")
    assert done == ["rm_ info.json", "put z", "put 5.zip", "put info.json", "rm_ shard_of_3"]


def test_an_older_version_is_not_sent(store: Any) -> None:
    put(store, **{"info.json": b"1", "shard": b"1"})
    copy = Copy(parse_address(AT))
    copy.fetch()
    put(store, **{"info.json": b"22", "shard": b"22"})  # By another machine.
    copy.fetch(lambda name: name.endswith(".json"))
    assert contents(copy.folder) == {"info.json": b"22"}
    copy.send("info.json")
    assert store.cat_file("/bucket/runs/a/shard") == b"22"


def test_the_newer_one_counts(store: Any) -> None:
    here = Copy(parse_address(AT), "work")
    write(here.folder, a="1")
    assert not here.fetch(keep_changes=True)
    assert contents(here.folder) == {"a": b"1"}
    here.send()
    # Something that could not be sent, and nobody else has sent anything.
    write(here.folder, a="12")
    again = Copy(parse_address(AT), "work")
    assert again.id == here.id
    again.fetch(keep_changes=True)
    assert contents(again.folder) == {"a": b"12"}
    # Somebody has.
    put(store, a=b"other")
    again.fetch(keep_changes=True)
    assert contents(again.folder) == {"a": b"other"}


def test_a_damaged_note(store: Any) -> None:
    put(store, a=b"1")
    copy = Copy(parse_address(AT))
    copy.fetch()
    for text in ("", "[]", '{"id": "", "objects": {"a": 1}}'):
        (copy.entry / "copy.json").write_text(text)
        Copy(parse_address(AT)).fetch()
        assert contents(copy.folder) == {"a": b"1"}


@pytest.mark.parametrize("kind", ["none", "cut", "names", "bomb", "link", "damaged"])
def test_archives_of_strangers(store: Any, tmp_path: Path, kind: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        if kind == "names":
            file.writestr("../../out", "1")
        elif kind == "bomb":
            file.writestr("a", bytes(10_000_000))
        else:
            file.writestr("a", "some text that is stored" * 10, zipfile.ZIP_STORED)
    data = content.getvalue()
    data = {"none": b"1", "cut": data[:50], "damaged": data.replace(b"text", b"texx")}.get(
        kind, data
    )
    if kind == "link":
        link = zipfile.ZipInfo("a")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(content := io.BytesIO(), "w") as file:
            file.writestr(link, "/etc/passwd")
        data = content.getvalue()
    put(store, **{"checkpoints__best__3.zip": data})
    if kind == "link":  # A file with that text.
        path = fetch(AT) / "checkpoints/best/3/a"
        assert not path.is_symlink() and path.read_text() == "/etc/passwd"
        return
    with pytest.raises(UserError, match=r"a/checkpoints/best/3.zip is damaged: "):
        fetch(AT)
    assert not list(tmp_path.rglob("out"))
    assert not list(tmp_path.rglob(".part*"))


def test_copies_that_are_not_used_are_removed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a=b"1")
    store.pipe_file("/bucket/b/c", b"2")
    old, work = Copy(parse_address(AT)), Copy(parse_address(AT), "work")
    old.fetch()
    work.fetch()
    (work.entry / copies.UNSENT).touch()
    fetch("memory://bucket/b")
    assert old.entry.exists()
    monkeypatch.setattr(copies, "_UNUSED_DAYS", -1.0)
    fetch("memory://bucket/b")
    assert not old.entry.exists()
    assert work.entry.exists()


def test_a_cache_that_cannot_be_written(store: Any, tmp_path: Path) -> None:
    put(store, a=b"1")
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the cache .*; set AGENET_CACHE"):
        fetch(AT)
