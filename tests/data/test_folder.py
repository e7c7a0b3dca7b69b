import io
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from onecycle.data import folder as pictures
from onecycle.data.folder import CACHE_FILE, load_folder
from onecycle.errors import DataError

ANIMALS = ("cat", "dog", "emu")


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def same_images(one, other):
    return np.array_equal(one.data, other.data) and np.array_equal(one.targets, other.targets)


def no_decoding(monkeypatch):
    def fail(file, *_, **__):
        raise AssertionError(f"{file} is decoded")

    monkeypatch.setattr(pictures, "read_picture", fail)


def write_folder(root, classes=ANIMALS, per_class=2, suffix=".png"):
    """An image folder of noise; returns the pixels by split, in the order of class and name."""
    pixels = {}
    for seed, split in enumerate(("train", "test")):
        pixels[split] = noise(len(classes) * per_class, seed)
        for index, image in enumerate(pixels[split]):
            file = root / split / classes[index // per_class] / f"{index:03}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """A small image folder, loaded once, so that the decoded images are kept."""
    pixels = write_folder(tmp_path)
    return SimpleNamespace(root=tmp_path, pixels=pixels, loaded=load_folder(tmp_path))


def test_folder_gives_exact_pixels_and_labels_in_the_order_of_sorted_names(tmp_path):
    pixels = write_folder(tmp_path, classes=("zebra", "Ant", "bee"))
    # Ant, bee, zebra: the first written comes last.
    order = [2, 3, 4, 5, 0, 1]
    for split, part in zip(("train", "test"), load_folder(tmp_path), strict=True):
        assert part.classes == ("Ant", "bee", "zebra")
        assert np.array_equal(part.targets, [0, 0, 1, 1, 2, 2])
        assert np.array_equal(part.data, pixels[split][order])


def test_names_with_spaces_and_foreign_letters_work_and_are_kept(tmp_path, monkeypatch):
    classes = ("große Katze", "犬 (いぬ)")
    pixels = write_folder(tmp_path / "mes données", classes, suffix=" été 1.png")
    train, test = load_folder(tmp_path / "mes données")
    assert train.classes == test.classes == classes
    assert np.array_equal(train.data, pixels["train"])
    no_decoding(monkeypatch)
    assert same_images(load_folder(tmp_path / "mes données")[0], train)


def test_a_name_that_no_results_file_can_hold_is_refused(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "cat").rename(os.fsdecode(os.fsencode(tmp_path / split) + b"/c\xe9t"))
    with pytest.raises(DataError, match="not UTF-8; rename it"):
        load_folder(tmp_path)


def test_hidden_and_other_files_are_ignored(tmp_path):
    pixels = write_folder(tmp_path)
    for name in (".DS_Store", "._000.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no picture")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("cat, dog, emu")
    train, test = load_folder(tmp_path)
    assert train.classes == test.classes == ANIMALS
    assert np.array_equal(train.data, pixels["train"])
    assert np.array_equal(test.data, pixels["test"])


def test_progress_counts_the_pictures_of_both_parts(tmp_path):
    write_folder(tmp_path)
    seen = []
    load_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_second_load_decodes_nothing(folder, monkeypatch):
    no_decoding(monkeypatch)
    for part, again in zip(folder.loaded, load_folder(folder.root), strict=True):
        assert same_images(part, again)
        assert part.classes == again.classes
    (folder.root / CACHE_FILE).unlink()
    with pytest.raises(AssertionError, match="is decoded"):
        load_folder(folder.root)


def test_folder_can_be_moved_with_its_decoded_images(folder, tmp_path_factory, monkeypatch):
    moved = tmp_path_factory.mktemp("elsewhere") / "pictures"
    folder.root.rename(moved)
    no_decoding(monkeypatch)
    assert same_images(load_folder(moved)[0], folder.loaded[0])


def change_pixels(cat, dog):
    time_ns = cat.stat().st_mtime_ns
    Image.fromarray(noise(1, seed=7)[0]).save(cat)
    # Two seconds on: some file systems keep no finer time.
    os.utime(cat, ns=(time_ns, time_ns + 2_000_000_000))


def change_size_alone(cat, dog):
    time_ns = cat.stat().st_mtime_ns
    Image.new("RGB", (32, 32), "teal").save(cat)
    os.utime(cat, ns=(time_ns, time_ns))


@pytest.mark.parametrize(
    "change",
    [
        change_pixels,
        change_size_alone,
        lambda cat, dog: Image.new("RGB", (32, 32), "teal").save(cat.with_name("new.png")),
        lambda cat, dog: cat.unlink(),
        lambda cat, dog: cat.rename(cat.with_name("zzz.png")),
        lambda cat, dog: cat.with_name("001.png").rename(dog.with_name("001.png")),
        lambda cat, dog: cat.parent.rename(cat.parent.with_name("tiger")),
    ],
    ids=["pixels", "size", "added", "removed", "renamed", "other class", "class renamed"],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_change_in_the_folder_is_noticed(folder, split, change):
    cat, _, dog, *_ = sorted((folder.root / split).glob("*/*.png"))
    change(cat, dog)
    if not cat.parent.exists():
        other = folder.root / {"train": "test", "test": "train"}[split]
        (other / "cat").rename(other / "tiger")
    seen = load_folder(folder.root)
    (folder.root / CACHE_FILE).unlink()
    for part, fresh in zip(seen, load_folder(folder.root), strict=True):
        assert same_images(part, fresh)
        assert part.classes == fresh.classes
    changed = seen[split == "test"]
    before = folder.loaded[split == "test"]
    assert not same_images(changed, before) or changed.classes != before.classes


def other_archive(good):
    stream = io.BytesIO()
    np.savez(stream, something=np.zeros(3))
    return stream.getvalue()


def bare_array(good):
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: b"no archive " * 1000,
        lambda good: bytes(len(good)),
        other_archive,
        bare_array,
        lambda good: good.replace(b"32, 32, 3)", b"32, 22, 3)"),
        lambda good: good.replace(b"train.npy", b"trail.npy"),
    ],
    ids=[
        "empty", "half", "last byte missing", "junk", "zeros", "other arrays",
        "bare array", "other shapes", "other name",
    ],
)  # fmt: skip
def test_damaged_kept_images_are_decoded_anew_and_kept_again(folder, monkeypatch, damage):
    kept = folder.root / CACHE_FILE
    kept.write_bytes(damage(kept.read_bytes()))
    for part, again in zip(folder.loaded, load_folder(folder.root), strict=True):
        assert same_images(part, again)
    no_decoding(monkeypatch)
    assert same_images(load_folder(folder.root)[0], folder.loaded[0])


def test_no_flipped_byte_in_the_kept_images_does_harm(tmp_path):
    write_folder(tmp_path, classes=("cat", "dog"), per_class=1)
    loaded = load_folder(tmp_path)
    kept = tmp_path / CACHE_FILE
    good = kept.read_bytes()
    # Every fifth byte of the first headers and of the table at the end, a few in between.
    table = good.index(b"PK\x01\x02")
    places = [*range(0, 250, 5), *range(250, table, 1997), *range(table, len(good), 5)]
    harm = {}
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        kept.write_bytes(damaged)
        try:
            again = load_folder(tmp_path)
            if not all(map(same_images, loaded, again)):
                harm[place] = "other images"
        except Exception as error:  # noqa: BLE001 - of any kind, it must not reach the user
            harm[place] = repr(error)
    assert not harm


def refuse_replacing(root, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.os, "replace", fail)


def put_a_folder_in_its_place(root, monkeypatch):
    (root / CACHE_FILE).mkdir()


@pytest.mark.parametrize("prevent", [refuse_replacing, put_a_folder_in_its_place])
def test_where_images_cannot_be_kept_only_a_warning_comes(tmp_path, monkeypatch, prevent):
    pixels = write_folder(tmp_path)
    prevent(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="not kept") as warned:
        train, test = load_folder(tmp_path)
    assert str(tmp_path / CACHE_FILE) in str(warned[0].message)
    assert np.array_equal(train.data, pixels["train"])
    assert np.array_equal(test.data, pixels["test"])
    assert {entry.name for entry in tmp_path.iterdir()} <= {"train", "test", CACHE_FILE}
    assert not (tmp_path / CACHE_FILE).is_file()


def test_nothing_but_the_kept_images_is_written(tmp_path):
    write_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_folder(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"train", "test", CACHE_FILE}


def remove_class(root, split, name):
    for file in (root / split / name).iterdir():
        file.unlink()
    (root / split / name).rmdir()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_only_one_part_has_is_refused_by_name(tmp_path, split):
    write_folder(tmp_path)
    remove_class(tmp_path, split, "dog")
    with pytest.raises(DataError, match="dog") as caught:
        load_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "cat" not in str(caught.value).replace(str(tmp_path), "")


def test_class_folders_in_the_wrong_place_are_named_with_the_layout_that_is_expected(tmp_path):
    write_folder(tmp_path / "pictures", classes=(*ANIMALS, "fox"))
    (tmp_path / "pictures" / "train" / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path / "pictures" / "train")
    assert str(caught.value) == (
        f"{tmp_path / 'pictures' / 'train'} has no folder train/: pictures are expected in "
        "train/CLASS/ and test/CLASS/; move cat/, dog/, emu/, ... into train/ and then some "
        "pictures of each into test/CLASS/"
    )
    for other in ("", "missing"):
        with pytest.raises(DataError, match="no folder train/: .*test/CLASS/$"):
            load_folder(tmp_path / other)


def test_a_single_class_is_refused(tmp_path):
    write_folder(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match="train/ has 1 classes"):
        load_folder(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_part_is_refused(tmp_path, split):
    write_folder(tmp_path / "pictures")
    (tmp_path / "pictures" / split).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"no folder {split}/") as raised:
        load_folder(tmp_path / "pictures")
    assert ("move some pictures of every class there" in str(raised.value)) == (split == "test")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_refused_by_name(tmp_path, split):
    write_folder(tmp_path)
    remove_class(tmp_path, split, "dog")
    (tmp_path / split / "dog").mkdir()
    (tmp_path / split / "dog" / ".hidden.png").touch()
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path)
    assert str(tmp_path / split / "dog") in str(caught.value)


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


def replace_by_dangling_link(file):
    file.unlink()
    file.symlink_to(file.with_name("gone"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"<html>not found</html>"),
        lambda file: file.write_bytes(file.read_bytes()[:1500]),
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        replace_by_folder,
        replace_by_dangling_link,
    ],
    ids=["empty", "junk", "half", "header alone", "folder", "dangling link"],
)
def test_an_unreadable_picture_is_refused_by_name(folder, damage):
    file = folder.root / "test" / "dog" / "003.png"
    damage(file)
    with pytest.raises(DataError) as caught:
        load_folder(folder.root)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mended_folder_loads_after_an_error(folder):
    file = folder.root / "train" / "cat" / "000.png"
    good = file.read_bytes()
    file.write_bytes(b"junk")
    with pytest.raises(DataError):
        load_folder(folder.root)
    file.write_bytes(good)
    assert same_images(load_folder(folder.root)[0], folder.loaded[0])
