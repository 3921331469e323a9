"""What is known of a named set of images: where it comes from, and what its file must look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from difftilt.errors import DataError

from .images import ImageSet
from .record import Origin


@dataclass(frozen=True)
class ImageRecord:
    """A named set of images of one size.

    Its file is the ``.npz`` that this project was built with, or the origin's own files, byte for byte.

    Attributes:
        name: what the user types.
        title: one line on what it shows.
        file: the images, relative to a data root.
        sha256: checksum of that file.
        shape: of all images together, uint8.
        label_names: of its classes; none without labels.
        beside: further files of the set, relative to a data root, by their checksums.
        origins: public files that ``file`` and ``beside`` are, in that order; none where the set was put together from
            thousands of files, which is then said in ``source``.
        source: where the images come from, in words.
        licence: as found.
        citation: what to cite.
    """

    name: str
    title: str
    file: str
    sha256: str
    shape: tuple[int, ...]
    source: str
    licence: str
    citation: str
    label_names: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    origins: tuple[Origin, ...] = ()

    @property
    def files(self) -> dict[str, str]:
        """All files of the set, relative to a data root, with their checksums."""
        return {self.file: self.sha256, **self.beside}


def check_images(record: ImageRecord, images: ImageSet) -> None:
    """Are ``images`` the set that ``record`` describes?

    Raises:
        DataError: they are not; says in what.
    """
    came, labels = images.images.shape, images.label_names
    if came != record.shape or labels != record.label_names:
        raise DataError(
            f"{images.path}: expected {record.name}, {record.shape} with {len(record.label_names)} labels; got {came} "
            f"with {len(labels)}; put the file of {record.name} there"
        )
