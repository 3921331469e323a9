"""Images from folders, .npz and IDX files: what is read, what is refused and with which remedy; named sets."""

from __future__ import annotations

import gzip
import hashlib
import struct
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import difftilt.data as data
from difftilt.data import group_split, read_images, registry, save_images
from difftilt.data.images import read_idx
from difftilt.data.record import Origin
from difftilt.errors import ConfigError, DataError

pytest.importorskip("PIL")

from PIL import Image

RED, GREY = (200, 10, 10), 90


def put(folder: Path, name: str, colour=RED, size=(6, 4), mode="RGB", **options) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(folder / name, **options)
    return folder / name


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    put(tmp_path, "b.png", (1, 2, 3))
    put(tmp_path, "a.PNG", (4, 5, 6))
    put(tmp_path, "deep/c.jpg")
    (tmp_path / "notes.txt").write_text("not looked at")
    images = read_images(tmp_path)
    assert images.names == ("a.PNG", "b.png", "deep/c.jpg")
    assert images.images.shape == (3, 4, 6, 3)
    assert images.images[0, 0, 0].tolist() == [4, 5, 6]
    assert images.labels is None
    assert images.size == (4, 6)


def test_subfolders_are_labels(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "cat/2.png"):
        put(tmp_path, name)
    images = read_images(tmp_path)
    assert images.label_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1]


def test_modes_become_one(tmp_path: Path) -> None:
    put(tmp_path, "1.png", GREY, mode="L")
    assert read_images(tmp_path).images.shape == (1, 4, 6)  # grey alone has one channel
    put(tmp_path, "2.png", (9, 9, 9, 0), mode="RGBA")
    put(tmp_path, "3.png", 3, mode="P")
    put(tmp_path, "4.jpg", (0, 0, 0, 0), mode="CMYK")
    images = read_images(tmp_path)
    assert images.images.shape == (4, 4, 6, 3)
    assert images.images[0, 0, 0].tolist() == [GREY] * 3
    assert images.images[1, 0, 0].tolist() == [255] * 3  # transparent: white


def test_cameras_orientation_is_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    put(tmp_path, "1.jpg", size=(6, 4), exif=exif)
    assert read_images(tmp_path).size == (6, 4)


def test_mixed_sizes_are_an_error_that_names_both_and_the_remedy_works(tmp_path: Path) -> None:
    put(tmp_path, "1.png", size=(8, 8))
    put(tmp_path, "2.png", size=(12, 8))
    put(tmp_path, "3.png", size=(8, 8))
    with pytest.raises(DataError, match=r"2 of 8 x 8 pixels, and 1 of others: 2\.png \(12 x 8\).*size=32"):
        read_images(tmp_path)
    assert read_images(tmp_path, size=4).images.shape == (3, 4, 4, 3)
    most = read_images(tmp_path, skip_invalid=True)
    assert most.names == ("1.png", "3.png")
    assert "12 x 8" in most.unread[0]


def test_a_middle_square_is_kept(tmp_path: Path) -> None:
    picture = np.zeros((10, 30, 3), dtype=np.uint8)
    picture[:, 10:20] = 255
    Image.fromarray(picture).save(tmp_path / "1.png")
    assert (read_images(tmp_path, size=5).images == 255).all()


def test_an_empty_folder_and_a_missing_path_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected PNG or JPEG files in .*; got none; put them there"):
        read_images(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder"):
        read_images(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [b"", b"no image at all", "cut"])
def test_an_unreadable_file_is_named_or_left_out(tmp_path: Path, damage: bytes | str) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "1.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage)
    with pytest.raises(DataError, match=r"1 of 2 that are not: .*2\.png.*or --skip-invalid"):
        read_images(tmp_path)
    images = read_images(tmp_path, skip_invalid=True)
    assert len(images) == 1
    assert images.skipped == 1
    assert images.unread[0].startswith("2.png")


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match="8 bits per channel"):
        read_images(tmp_path)


# --- .npz and IDX ---------------------------------------------------------------------------------------------------


def test_an_npz_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        put(tmp_path / "in", f"{kind}/1.png")
    images = replace(read_images(tmp_path / "in"), split=np.array([0, 2]))
    read = read_images(save_images(images, tmp_path / "out.npz"))
    assert np.array_equal(read.images, images.images)
    assert (read.names, read.label_names) == (images.names, images.label_names)
    assert read.labels.tolist() == [0, 1]
    assert read.split.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3))}, r"uint8.*255 \* images"),
        ({"images": np.zeros((2, 4, 4, 4), dtype=np.uint8)}, "on white"),
        ({"images": np.zeros((0, 4, 4), dtype=np.uint8)}, "got an array of none"),
        ({"pictures": np.zeros((2, 4, 4), dtype=np.uint8), "more": np.zeros(2)}, "an array 'images'"),
        ({"images": np.zeros((2, 4, 4), dtype=np.uint8), "labels": np.zeros(3, dtype=int)}, "2 labels"),
        ({"images": np.array([None, "pickled"], dtype=object)}, "plain arrays"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 7]), "label_names": np.array(["a"])}, "to 0"),
    ],
)  # fmt: skip
def test_a_wrong_npz_is_refused_with_what_to_do(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "x.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "x.npz", images=np.array([Trap()], dtype=object))
    with pytest.raises(DataError):
        read_images(tmp_path / "x.npz")
    assert not (tmp_path / "sprung").exists()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_files_are_read_with_the_labels_beside_them(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([0, 2, 1, 2, 0], dtype=np.uint8))))
    read = read_images(tmp_path / "t-images-idx3-ubyte.gz")
    assert np.array_equal(read.images, images)
    assert read.labels.tolist() == [0, 2, 1, 2, 0]
    assert read.label_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "data_", [b"", b"\0\0\x0d\1\0\0\0\1\0", idx(np.zeros(4, np.uint8))[:-1], idx(np.zeros(4, np.uint8)) + b"x"]
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, data_: bytes) -> None:
    (tmp_path / "x-ubyte").write_bytes(data_)
    with pytest.raises(DataError, match=r"IDX|as its head says"):
        read_idx(tmp_path / "x-ubyte")


# --- named sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", data.image_names())
def test_a_shared_set_is_the_one_on_record(name: str) -> None:
    path, record = data.find(name), data.record_of(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    images = data.load_images(name)
    assert images.images.shape == record.shape
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
    assert (images.labels is not None) == bool(record.label_names)
    assert data.prepare(name) == path


def test_the_two_kinds_of_sets_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="'emoji'"):
        data.load_images("emojis")
    with pytest.raises(ConfigError, match="data set"):
        data.load("emoji")
    assert data.record_of("tfbind8") is data.dataset("tfbind8")


def test_a_set_of_thousands_of_files_says_that_it_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3,583 files .*copy it .*--data"):
        data.prepare("emoji", root=tmp_path)


def test_digits_are_fetched_byte_for_byte_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = data.record_of("digits")
    contents = [gzip.compress(idx(np.zeros((2, 3, 3), np.uint8))), gzip.compress(idx(np.zeros(2, np.uint8)))]
    sums = [hashlib.sha256(content).hexdigest() for content in contents]
    origins = []
    for origin, content, digest in zip(record.origins, contents, sums, strict=True):
        place = tmp_path / "mirror" / origin.repository / origin.commit / origin.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        origins.append(Origin(origin.repository, origin.commit, origin.path, digest))
    fake = replace(record, sha256=sums[0], beside={next(iter(record.beside)): sums[1]}, origins=tuple(origins))
    monkeypatch.setitem(registry.IMAGES, "digits", fake)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    mirror = f"http://127.0.0.1:{server.server_port}"
    try:
        path = data.prepare("digits", origin=mirror, root=tmp_path / "root")
        assert read_images(path).labels.tolist() == [0, 0]
        place.write_bytes(b"something else")
        path.unlink()
        with pytest.raises(DataError, match="expected to download"):
            data.prepare("digits", origin=mirror, root=tmp_path / "root")
    finally:
        server.shutdown()
        server.server_close()


# --- splits ---------------------------------------------------------------------------------------------------------


def test_groups_are_never_split_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 60, 400)]
    parts = group_split(groups, (0.8, 0.1, 0.1), seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    named = [{groups[i] for i in part} for part in parts]
    assert len(named[0] | named[1] | named[2]) == sum(map(len, named))
    assert abs(len(parts[0]) - 320) < 25
    order = rng.permutation(400)
    again = group_split([groups[i] for i in order], (0.8, 0.1, 0.1), seed=3)
    assert {groups[order[i]] for i in again[1]} == named[1]
    assert {groups[i] for i in group_split(groups, (0.8, 0.1, 0.1), seed=4)[1]} != named[1]
    with pytest.raises(DataError, match="groups enough"):
        group_split(["a", "a", "b"], (0.4, 0.3, 0.3), seed=0)
