import errno
import os
import shutil
import unicodedata
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from onecycle.data import decoded, pictures
from onecycle.data.dataset import HELD_OUT
from onecycle.data.folder import load_folder, load_test_folder
from onecycle.errors import DataError, UsageError

ANIMALS = ("cat", "dog", "emu")


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def same_images(one, other):
    return np.array_equal(one.data, other.data) and np.array_equal(one.targets, other.targets)


def no_decoding(monkeypatch):
    def fail(file, *_, **__):
        raise AssertionError(f"{file} is decoded")

    monkeypatch.setattr(decoded, "read_quietly", fail)


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


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of the decoded pictures of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path / ".cache" / "onecycle"


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


def test_hidden_files_are_passed_over_and_others_are_counted(tmp_path):
    pixels = write_folder(tmp_path)
    for name in (".DS_Store", "._000.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no picture")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("cat, dog, emu")
    train, test = load_folder(tmp_path)
    assert train.classes == test.classes == ANIMALS
    assert np.array_equal(train.data, pixels["train"])
    assert np.array_equal(test.data, pixels["test"])
    (note,) = train.notes
    assert note.startswith("3 files are no pictures")
    assert all(name in note for name in ("Thumbs.db", "notes.txt", "labels.csv"))


def test_progress_counts_the_pictures_of_both_parts(tmp_path):
    write_folder(tmp_path)
    seen = []
    load_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_second_load_decodes_nothing(folder, kept, monkeypatch):
    no_decoding(monkeypatch)
    for part, again in zip(folder.loaded, load_folder(folder.root), strict=True):
        assert same_images(part, again)
        assert part.classes == again.classes
    for file in kept.iterdir():
        file.unlink()
    with pytest.raises(AssertionError, match="is decoded"):
        load_folder(folder.root)


def test_decoded_images_are_mapped_and_not_in_memory(folder):
    for part in folder.loaded:
        assert isinstance(part.data.base, np.memmap) or isinstance(part.data, np.memmap)


def test_decoded_images_are_kept_where_it_is_said_for_each_size(tmp_path, kept, monkeypatch):
    write_folder(tmp_path / "pictures")
    here = {"cache_dir": tmp_path / "here"}
    small, large = (load_folder(tmp_path / "pictures", image_size=s, **here) for s in (32, 48))
    assert small[0].size_px == 32 and large[0].size_px == 48
    assert not kept.exists()
    no_decoding(monkeypatch)
    assert same_images(load_folder(tmp_path / "pictures", image_size=48, **here)[1], large[1])


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
def test_a_change_in_the_folder_is_noticed(folder, kept, split, change):
    cat, _, dog, *_ = sorted((folder.root / split).glob("*/*.png"))
    change(cat, dog)
    if not cat.parent.exists():
        other = folder.root / {"train": "test", "test": "train"}[split]
        (other / "cat").rename(other / "tiger")
    seen = load_folder(folder.root)
    shutil.rmtree(kept)
    for part, fresh in zip(seen, load_folder(folder.root), strict=True):
        assert same_images(part, fresh)
        assert part.classes == fresh.classes
    changed = seen[split == "test"]
    before = folder.loaded[split == "test"]
    assert not same_images(changed, before) or changed.classes != before.classes


def flip(place):
    def flipped(good):
        damaged = bytearray(good)
        damaged[place] ^= 16
        return bytes(damaged)

    return flipped


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: bytes(len(good)),
        lambda good: good.replace(b"32, 32, 3)", b"32, 22, 3)"),
        flip(9),
        flip(-1),
        flip(5000),
    ],
    ids=["empty", "half", "last byte missing", "zeros", "other shape", "header", "last", "middle"],
)
@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_damaged_kept_images_are_decoded_anew_and_kept_again(
    folder, kept, monkeypatch, suffix, damage
):
    (file,) = kept.glob(f"*.{suffix}")
    good = file.read_bytes() * (100 if suffix == "json" else 1)
    file.write_bytes(damage(good))
    for part, again in zip(folder.loaded, load_folder(folder.root), strict=True):
        assert np.array_equal(
            again.data, folder.pixels["train" if part is folder.loaded[0] else "test"]
        )
    no_decoding(monkeypatch)
    assert np.array_equal(load_folder(folder.root)[0].data, folder.pixels["train"])


def refuse_replacing(kept, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.os, "replace", fail)


def put_a_file_in_its_place(kept, monkeypatch):
    kept.parent.mkdir()
    kept.touch()


@pytest.mark.parametrize("prevent", [refuse_replacing, put_a_file_in_its_place])
def test_where_images_cannot_be_kept_only_a_warning_comes(tmp_path, kept, monkeypatch, prevent):
    pixels = write_folder(tmp_path / "pictures")
    prevent(kept, monkeypatch)
    with pytest.warns(UserWarning, match="not kept.*--cache-dir") as warned:
        train, test = load_folder(tmp_path / "pictures")
    assert str(kept) in str(warned[0].message)
    assert np.array_equal(train.data, pixels["train"])
    assert np.array_equal(test.data, pixels["test"])
    assert not list(tmp_path.rglob("*.part"))


def test_nothing_is_written_into_the_folder_of_the_pictures(tmp_path):
    write_folder(tmp_path / "pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_folder(tmp_path / "pictures")
    assert {entry.name for entry in (tmp_path / "pictures").iterdir()} == {"train", "test"}


def remove_class(root, split, name):
    for file in (root / split / name).iterdir():
        file.unlink()
    (root / split / name).rmdir()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_only_one_part_has_is_refused_by_name(tmp_path, split):
    write_folder(tmp_path)
    remove_class(tmp_path, split, "dog")
    with pytest.raises(DataError, match=f"{split} has no pictures of dog") as caught:
        load_folder(tmp_path)
    assert "cat" not in str(caught.value)


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "VAL"])
def test_a_folder_of_validation_pictures_does_for_test(tmp_path, name):
    pixels = write_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / name)
    (tmp_path / "train").rename(tmp_path / "Train")
    train, test = load_folder(tmp_path)
    assert np.array_equal(train.data, pixels["train"]) and np.array_equal(test.data, pixels["test"])
    assert test.name == "validation images"
    assert np.array_equal(load_test_folder(tmp_path).data, pixels["test"])


def whole_folder(root, classes=ANIMALS, per_class=10):
    for name in classes:
        (root / name).mkdir(parents=True)
        for index, image in enumerate(noise(per_class, seed=len(name))):
            Image.fromarray(image).save(root / name / f"{index}.png")


@pytest.mark.parametrize("below", [".", "train"])
def test_class_folders_alone_are_split_and_always_alike(tmp_path, below):
    root = tmp_path / "pictures"
    whole_folder(root / below)
    train, test = load_folder(root)
    assert (len(train), len(test)) == (24, 6)
    assert np.array_equal(np.bincount(test.targets), [2, 2, 2])
    assert not set(train.files) & set(test.files)
    assert test.name == HELD_OUT and "6 of 30" in train.notes[0]
    assert load_folder(root)[1].files == test.files == load_test_folder(root).files
    # A picture that is added moves few others: those of other classes none.
    Image.fromarray(noise(1)[0]).save(root / below / "cat" / "new.png")
    again = load_folder(root)[1].files
    others = [[f for f in files if "/cat/" not in f"/{f}"] for files in (test.files, again)]
    assert others[0] == others[1]
    assert len(load_folder(root, val_share=0.5)[1]) == 16  # of 31


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(tmp_path, share):
    whole_folder(tmp_path)
    with pytest.raises(UsageError, match="val_share"):
        load_folder(tmp_path, val_share=share)


def test_a_class_called_train_is_a_class(tmp_path):
    whole_folder(tmp_path, classes=("bus", "train", "tram"))
    assert load_folder(tmp_path)[0].classes == ("bus", "train", "tram")


def test_pictures_in_sub_folders_of_a_class_belong_to_it(tmp_path):
    whole_folder(tmp_path / "pictures")
    (tmp_path / "pictures" / "cat" / "2024" / "May").mkdir(parents=True)
    for name in ("a.jfif", "b.avif"):
        Image.new("RGB", (50, 40), "teal").save(
            tmp_path / "pictures" / "cat" / "2024" / "May" / name, name[2:].replace("jfif", "jpeg")
        )
    (tmp_path / "pictures" / "cat" / "again").symlink_to(tmp_path / "pictures" / "cat")
    train, test = load_folder(tmp_path / "pictures")
    assert len(train) + len(test) == 32
    assert {"cat/2024/May/a.jfif", "cat/2024/May/b.avif"} <= {*train.files, *test.files}


def test_a_csv_names_files_and_classes(tmp_path):
    whole_folder(tmp_path / "pictures")
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    lines = [f"pictures/{f.parent.name}/{f.name};{f.parent.name.title()}" for f in files]
    (tmp_path / "labels.csv").write_text("Filename;Label\n" + "\n".join(lines) + "\n", "utf-8")
    train, test = load_folder(tmp_path / "labels.csv")
    assert train.classes == ("Cat", "Dog", "Emu") and len(train) == 24 and len(test) == 6
    split = ["train" if number % 3 else "test" for number in range(30)]
    rows = [f"{line.replace(';', ',')},{part}" for line, part in zip(lines, split, strict=True)]
    (tmp_path / "labels.csv").write_text("file,class,split\n" + "\n".join(rows), "utf-8")
    train, test = load_folder(tmp_path / "labels.csv")
    assert (len(train), len(test)) == (20, 10)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "none"),
        ("name,kind\na.png,cat\n", "name, kind"),
        ("file,class\na.png,\n", "line 2"),
        ("file,class,split\na.png,cat,train\nb.png,dog,somewhere\n", "line 3"),
        ("file,class\n", "names no picture"),
        ("file,class\ngone.png,cat\ngone2.png,cat\ngone3.png,dog\nd.png,dog\n", "gone.png"),
    ],
)
def test_a_csv_that_will_not_do_says_what_is_wrong(tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text, "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load_folder(tmp_path / "labels.csv")
    assert "\n" not in str(caught.value)


def test_a_single_class_is_refused(tmp_path):
    write_folder(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match="one class, cat"):
        load_folder(tmp_path)


def test_a_class_of_one_picture_is_refused_where_it_would_be_split(tmp_path):
    whole_folder(tmp_path)
    whole_folder(tmp_path, classes=("yak",), per_class=1)
    with pytest.raises(DataError, match="yak: one picture"):
        load_folder(tmp_path)


def test_names_that_look_the_same_are_shown_apart(tmp_path):
    for form in ("NFC", "NFD"):
        whole_folder(tmp_path, classes=(unicodedata.normalize(form, "père"), f"other {form}"))
    with pytest.raises(DataError, match="look the same") as caught:
        load_folder(tmp_path)
    assert r"p\xe8re" in str(caught.value) and r"e\u0300" in str(caught.value)


def test_test_pictures_alone_can_be_evaluated_and_not_trained_on(tmp_path, monkeypatch):
    pixels = write_folder(tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures" / "train")
    with pytest.raises(DataError, match="none to train on"):
        load_folder(tmp_path / "pictures")
    assert np.array_equal(load_test_folder(tmp_path / "pictures").data, pixels["test"])


def test_what_is_no_folder_of_classes_says_what_is_expected(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"2 lie directly in it, such as a.png.*one folder per"):
        load_folder(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_folder(tmp_path / "missing")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_refused_by_name(tmp_path, split):
    write_folder(tmp_path)
    remove_class(tmp_path, split, "dog")
    (tmp_path / split / "dog").mkdir()
    (tmp_path / split / "dog" / ".hidden.png").touch()
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path)
    assert str(tmp_path / split / "dog") in str(caught.value)


def replace_by_dangling_link(file):
    file.unlink()
    file.symlink_to(file.with_name("gone"))


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "junk": lambda file: file.write_bytes(b"<html>not found</html>"),
    "half": lambda file: file.write_bytes(file.read_bytes()[:1500]),
    "header alone": lambda file: file.write_bytes(file.read_bytes()[:60]),
    "dangling link": replace_by_dangling_link,
}


def test_all_unreadable_pictures_are_named_at_once_and_can_be_left_out(tmp_path):
    root = tmp_path / "pictures"
    whole_folder(root)
    damaged = []
    for number, damage in enumerate(DAMAGES.values()):
        for name in ANIMALS:
            damaged.append(f"{name}/{number}.png")
            damage(root / damaged[-1])
    with pytest.raises(DataError) as caught:
        load_folder(root)
    said = str(caught.value)
    assert sum(f"{name} " in said for name in damaged) == 10 and "and 5 more" in said
    assert "15 of 30" in said and "--skip-unreadable" in said and "\n" not in said
    for _ in range(2):  # the second time from what was kept
        train, test = load_folder(root, skip_unreadable=True)
        assert len(train) + len(test) == 15 and not set(damaged) & {*train.files, *test.files}
        assert len(train.skipped) == 15
        assert {line.partition(" ")[0] for line in train.skipped} == set(damaged)


def test_what_the_disk_refuses_once_is_read_at_the_next_start(tmp_path, monkeypatch):
    write_folder(tmp_path)
    real, refused = pictures._open, []

    def fails_once(file, formats):
        if str(file).endswith("train/cat/000.png") and not refused:
            refused.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, formats)

    monkeypatch.setattr(pictures, "_open", fails_once)
    with pytest.raises(DataError, match=r"cat/000\.png .*Input/output error"):
        load_folder(tmp_path)
    train, test = load_folder(tmp_path)
    assert refused and len(train) == len(test) == 6


def test_a_class_without_a_readable_picture_is_refused(tmp_path):
    write_folder(tmp_path)
    for file in (tmp_path / "test" / "dog").iterdir():
        file.write_bytes(b"junk")
    with pytest.raises(DataError, match="test has no pictures of dog"):
        load_folder(tmp_path, skip_unreadable=True)


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path):
    whole_folder(tmp_path / "pictures")
    os.mkfifo(tmp_path / "pictures" / "cat" / "pipe.png")
    train, _ = load_folder(tmp_path / "pictures")
    assert "pipe.png" in train.notes[1]


def test_a_mended_folder_loads_after_an_error(folder):
    file = folder.root / "train" / "cat" / "000.png"
    good = file.read_bytes()
    file.write_bytes(b"junk")
    with pytest.raises(DataError):
        load_folder(folder.root)
    file.write_bytes(good)
    assert np.array_equal(load_folder(folder.root)[0].data, folder.pixels["train"])


def test_reading_in_several_threads_leaves_the_filters_of_warnings_as_they_were(tmp_path):
    whole_folder(tmp_path / "pictures", per_class=100)
    before = list(warnings.filters)
    load_folder(tmp_path / "pictures")
    assert warnings.filters == before
