"""Data: named sets from public origins, one's own files, and splits that do not leak.

- Named sets: :func:`names`, :func:`dataset`, :func:`load`, :func:`locate`, :func:`find`, :func:`prepare`,
  :func:`check`.
- Images: :func:`image_names`, :func:`load_images`, :func:`read_images`, :func:`save_images`; :func:`record_of` has the
  record of a set of either kind.
- One's own CSV, FASTA, Parquet: :func:`read_designs`, :func:`validate`, :func:`valid`, :func:`merge_repeats`,
  :func:`write_designs`.
- Splits: :func:`cluster_split`, :func:`group_split`, :func:`random_split`, :func:`hamming_clusters`.
"""

from .image_record import ImageRecord
from .images import ImageSet, read_images, save_images
from .letters import valid, validate
from .places import cache_root, data_roots, find, load, load_images, locate
from .preparing import check, prepare
from .readers import read_designs
from .record import DataSet, Origin
from .registry import dataset, image_names, names, record_of
from .split import cluster_split, group_split, hamming_clusters, random_split
from .table import Table, merge_repeats
from .writers import write_designs

__all__ = [
    "DataSet",
    "ImageRecord",
    "ImageSet",
    "Origin",
    "Table",
    "cache_root",
    "check",
    "cluster_split",
    "data_roots",
    "dataset",
    "find",
    "group_split",
    "hamming_clusters",
    "image_names",
    "load",
    "load_images",
    "locate",
    "merge_repeats",
    "names",
    "prepare",
    "random_split",
    "read_designs",
    "read_images",
    "record_of",
    "save_images",
    "valid",
    "validate",
    "write_designs",
]
