"""Images of one size from a folder of PNG and JPEG files, an ``.npz`` file, or the IDX files of MNIST.

Nothing is unpickled: an ``.npz`` with object arrays is refused. What a folder may hold, and what is made of it:

- PNG and JPEG files, below it at any depth, in the order of their paths; other files are not looked at. If every image
  is in a subfolder of its own kind, the names of these subfolders are the labels.
- Cameras' orientation marks are obeyed. Transparent pixels are put on white. Palettes and CMYK become RGB. If all
  images are grey they have one channel; grey ones among colour ones become RGB.
- All must have one size, unless ``size`` says which: then each is cropped to the middle square and resized to it.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from difftilt.errors import ConfigError, DataError
from difftilt.types import Int

from .files import read_bytes, read_unzipped, replacing
from .table import NAMED

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 1024
"""Pixels of a side beyond which an image is refused: a diffusion model of pixels would not run."""
IDX_UINT8 = 8


@dataclass(frozen=True)
class ImageSet:
    """Images of one size and mode."""

    path: Path
    images: np.ndarray
    """uint8, ``[N, H, W]`` (grey) or ``[N, H, W, 3]`` (RGB)."""
    names: tuple[str, ...] | None = None
    """A name for each: the file's path in its folder, or code points."""
    labels: Int[np.ndarray, " N"] | None = None
    """Numbers into ``label_names``."""
    label_names: tuple[str, ...] = ()
    split: Int[np.ndarray, " N"] | None = None
    """The source's own: 0 train, 1 validation, 2 test."""
    unread: tuple[str, ...] = ()
    """Files that could not be read and why, where that was allowed."""

    @property
    def skipped(self) -> int:
        """How many files could not be read and were left out."""
        return len(self.unread)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.images.ndim == 3 else self.images.shape[3]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.images.shape[1], self.images.shape[2]


def read_images(path: str | PathLike[str], *, size: int | None = None, skip_invalid: bool = False) -> ImageSet:
    """One's own images: a folder, an ``.npz`` file, or an IDX file (``.gz`` or not); see the module.

    Args:
        path: an ``.npz`` holds ``images`` (uint8, ``[N, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W, 3]``), and may hold
            ``labels`` with ``label_names``, ``split`` with ``split_names``, and ``names`` or ``codepoints``.
        size: height and width to bring the images of a folder to, pixels; they must have one size when not given.
        skip_invalid: leave out files of a folder that cannot be read, or have another size than most, and name them in
            ``unread``.

    Raises:
        DataError: nothing is there, no image is, or one is unreadable, of another size, or not 8 bits.
        ConfigError: a folder, and Pillow is not installed; ``size`` with a file.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"expected images at '{path}'; got no such file or folder; check the path")
    if path.is_dir():
        return _read_folder(path, size, skip_invalid)
    if size is not None:
        raise ConfigError(f"expected size with a folder of images; got the file {path}; leave size out")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.name.removesuffix(".gz").endswith("-ubyte"):
        return _read_idx_pair(path)
    raise DataError(f"expected a folder of PNG or JPEG files, an .npz or an IDX file; got '{path}'; convert it to one")


def save_images(images: ImageSet, path: str | PathLike[str]) -> Path:
    """Write an ``.npz`` that :func:`read_images` reads back; whole or not at all."""
    own = images
    arrays: dict[str, np.ndarray] = {"images": own.images}
    if own.names is not None:
        arrays["names"] = np.array(own.names)
    if own.labels is not None:
        arrays |= {"labels": own.labels, "label_names": np.array(own.label_names)}
    if own.split is not None:
        arrays |= {"split": own.split, "split_names": np.array(["train", "validation", "test"])}
    path = Path(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # ty: ignore[invalid-argument-type]
    return path


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes, ``.gz`` or not.

    Raises:
        DataError: it is missing, damaged, not IDX, not of bytes, or shorter or longer than it says.
    """
    data = read_unzipped(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != IDX_UINT8 or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path}: expected an IDX file of bytes; got another kind; check the path")
    shape = tuple(np.frombuffer(data, dtype=">u4", count=data[3], offset=4).tolist())
    start = 4 + 4 * data[3]
    if len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path}: expected {shape} bytes, as its head says; got {len(data) - start}; copy it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _read_idx_pair(path: Path) -> ImageSet:
    """Images of an IDX file, with the labels of the file beside it, ``images-idx3`` read as ``labels-idx1``."""
    images = read_idx(path)
    if images.ndim != 3:
        raise DataError(f"{path}: expected images of one channel; got shape {images.shape}; name the images' file")
    made = ImageSet(path, _checked(images, path))
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if beside == path or not beside.is_file():
        return made
    labels = read_idx(beside)
    if labels.shape != (len(images),):
        raise DataError(f"{beside}: expected {len(images)} labels; got shape {labels.shape}; put the right file there")
    names = tuple(map(str, range(int(labels.max()) + 1)))
    return replace(made, labels=labels.astype(np.int64), label_names=names)


def pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            "expected Pillow for images; it is not installed; run: pip install 'difftilt[image]'"
        ) from None
    return Image


def _read_folder(folder: Path, size: int | None, skip_invalid: bool) -> ImageSet:
    image = pillow()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"expected PNG or JPEG files in {folder}; got none; put them there, or correct the path")
    read: dict[Path, np.ndarray] = {}
    faults: dict[Path, str] = {}
    for file in files:
        try:
            read[file] = _pixels(image, file, size)
        except DataError as error:
            faults[file] = str(error)
    if not read:
        first = next(iter(faults.values()))
        raise DataError(f"expected images in {folder}; got {len(files)} files, none of them readable: {first}")
    if faults and not skip_invalid:
        raise DataError(
            f"expected readable images in {folder}; got {len(faults)} of {len(files)} that are not: "
            f"{_first(list(faults.values()))}; remove them or save them again, or --skip-invalid"
        )
    usual = Counter(_size(array) for array in read.values()).most_common(1)[0][0]
    odd = {file: _size(array) for file, array in read.items() if _size(array) != usual}
    if odd and not skip_invalid:
        raise DataError(
            f"expected images of one size in {folder}; got {len(read) - len(odd)} of {usual} pixels, and {len(odd)} of "
            f"others: {_first([f'{file.relative_to(folder)} ({came})' for file, came in odd.items()])}; resize them, "
            "or --skip-invalid; to bring all to one size: difftilt.data.read_images(folder, size=32) and save_images"
        )
    faults |= {file: f"expected {usual} pixels as most have; got {came}" for file, came in odd.items()}
    skipped = [f"{file.relative_to(folder)}: {fault}" for file, fault in faults.items()]
    kept = [file for file in read if file not in odd]
    arrays = [read[file] for file in kept]
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    names = [file.relative_to(folder) for file in kept]
    made = ImageSet(folder, _checked(np.stack(arrays), folder), tuple(map(str, names)), unread=tuple(skipped))
    kinds = sorted({name.parts[0] for name in names})
    if all(len(name.parts) > 1 for name in names) and len(kinds) > 1:
        labels = np.array([kinds.index(name.parts[0]) for name in names])
        made = replace(made, labels=labels, label_names=tuple(kinds))
    return made


def _pixels(image: Any, file: Path, size: int | None) -> np.ndarray:
    """An upright image, ``[H, W]`` or ``[H, W, 3]``.

    Raises:
        DataError: it is not an image, cut short, too large, or has more than 8 bits.
    """
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):
                raise DataError(f"{file}: expected 8 bits per channel; got mode {picture.mode}; convert it")
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = image.new("RGBA", picture.size, "white")
                picture = image.alpha_composite(white, picture).convert("RGB")
            grey = picture.mode in ("L", "1")
            picture = picture.convert("L" if grey else "RGB")
    except (OSError, UnidentifiedImageError, image.DecompressionBombError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"expected a readable image; got {file}: {reason}") from None
    if size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), image.Resampling.LANCZOS)
    return np.asarray(picture)


def _read_npz(path: Path) -> ImageSet:
    read_bytes(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: expected a whole .npz file of plain arrays; got '{reason}'; save it again with "
            "numpy.savez_compressed(path, images=array of uint8)"
        ) from None
    if "images" not in arrays and len(arrays) == 1:
        arrays = {"images": next(iter(arrays.values()))}
    if "images" not in arrays:
        raise DataError(f"{path}: expected an array 'images'; got {', '.join(arrays) or 'none'}; rename it")
    images = _checked(arrays["images"], path)
    names = next((arrays[key] for key in ("names", "codepoints") if key in arrays), None)
    split = arrays.get("split")
    own = [*arrays.get("split_names", [])]
    if split is not None and own != ["train", "validation", "test"]:
        raise DataError(f"{path}: expected split_names train, validation, test; got {own}; leave split out, or rename")
    for name, array in (("labels", arrays.get("labels")), ("split", split), ("names", names)):
        if array is not None and array.shape != (len(images),):
            raise DataError(f"{path}: expected {len(images)} {name}, one per image; got {array.shape}; correct it")
    labels = arrays.get("labels")
    known = tuple(map(str, arrays.get("label_names", [])))
    if labels is not None:
        labels = labels.astype(np.int64)
        known = known or tuple(map(str, range(int(labels.max(initial=-1)) + 1)))
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(known):
            raise DataError(f"{path}: expected labels 0 to {len(known) - 1}; got {labels.min()} to {labels.max()}")
    return ImageSet(
        path,
        images,
        None if names is None else tuple(map(str, names)),
        labels,
        known if labels is not None else (),
        None if split is None else split.astype(np.int64),
    )


def _checked(images: np.ndarray, path: Path) -> np.ndarray:
    """``[N, H, W]`` or ``[N, H, W, 3]``, uint8, one image at least.

    Raises:
        DataError: it is not; says in what.
    """
    if images.ndim and not len(images):
        raise DataError(f"{path}: expected images; got an array of none; check how it was written")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(
            f"{path}: expected images [N, H, W] or [N, H, W, 3]; got shape {images.shape}; put the channels last, "
            "and transparent pixels on white"
        )
    if images.dtype != np.uint8:
        raise DataError(
            f"{path}: expected images of 8 bits (uint8, 0 to 255); got {images.dtype}; convert, e.g. "
            "(255 * images).round().astype('uint8')"
        )
    if min(images.shape[1:3]) < 1 or max(images.shape[1:3]) > LARGEST:
        raise DataError(f"{path}: expected images of 1 to {LARGEST} pixels a side; got {images.shape}; resize them")
    return images


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _first(said: Sequence[str]) -> str:
    """The first few of many."""
    return "; ".join(said[:NAMED]) + (f"; and {len(said) - NAMED:,} more" if len(said) > NAMED else "")
