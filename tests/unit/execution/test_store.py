import errno
from pathlib import Path

import pytest

from doublebind.execution.store import Store, write_atomic
from doublebind.schema.errors import StoreError


def fill(store: Store, key: str = "ab12", text: str = "hello") -> Path:
    with store.publish("kind", key) as out:
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)
    return store.path("kind", key)


def test_a_published_artefact_is_whole_and_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = fill(store)
    assert store.has("kind", "ab12")
    assert (folder / "sub" / "file.txt").read_text() == "hello"
    assert set(store.read_seal("kind", "ab12")["files"]) == {"sub/file.txt"}
    assert store.find_problems("kind", "ab12") == []


def test_an_exception_publishes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail_half_way() -> None:
        with store.publish("kind", "ab12") as out:
            (out / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not store.has("kind", "ab12")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.publish("kind", "ab12") as out:
        (out / "file").write_text("late")
        fill(store, text="early")
    assert (store.path("kind", "ab12") / "sub" / "file.txt").read_text() == "early"


@pytest.mark.parametrize("damage", ["alter", "remove", "seal", "all"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    folder = fill(store)
    match damage:
        case "alter":
            (folder / "sub" / "file.txt").write_text("hellp")
        case "remove":
            (folder / "sub" / "file.txt").unlink()
        case "seal":
            (folder / "artefact.json").write_text("{")
        case _:
            store = Store(tmp_path / "other")
    assert len(store.find_problems("kind", "ab12")) == 1


def test_what_a_dead_writer_left_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.publish("kind", "ab12") as mine:
        (mine / "file").touch()
        dead = mine.with_name(f"999999999-x@{mine.name.rpartition('@')[2]}")
        dead.mkdir()
        elsewhere = tmp_path / "tmp" / "999999999-x@another-node"
        elsewhere.mkdir()
        Store(store.root)
        assert not dead.exists()
        assert mine.exists()
    assert elsewhere.exists(), "its writer may be alive on the other node"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="disk full; free space"), store.publish("kind", "ab"):
        raise OSError(errno.ENOSPC, "No space left on device")
    # Libraries that wrap the error keep only its words.
    with pytest.raises(StoreError, match="disk full"), store.publish("kind", "ab"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match=str(file)):
        Store(file)
    with pytest.raises(StoreError, match=str(file)):
        write_atomic(file / "under", "x")
