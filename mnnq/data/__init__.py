"""Data to calibrate, quantize and compare on: images, arrays, MNN's sequence folders, anything iterable.

A dataset is a sized collection that can be iterated any number of times, always in the same order; each item is one
run of the model: a mapping from input name to array, complete with the batch axis.
"""

from __future__ import annotations

from mnnq.data.arrays import ArrayDataset, RandomDataset
from mnnq.data.dataset import Dataset, Feeds
from mnnq.data.images import ImageFolder, image_values
from mnnq.data.inputs import InputSpec, check_feeds, input_specs
from mnnq.data.opening import open_dataset
from mnnq.data.preprocess import PRESETS, ImageProcess
from mnnq.data.preview import Preview, preview
from mnnq.data.ranges import range_warnings
from mnnq.data.sequence import SequenceFolder

__all__ = [
    "PRESETS",
    "ArrayDataset",
    "Dataset",
    "Feeds",
    "ImageFolder",
    "ImageProcess",
    "InputSpec",
    "Preview",
    "RandomDataset",
    "SequenceFolder",
    "check_feeds",
    "image_values",
    "input_specs",
    "open_dataset",
    "preview",
    "range_warnings",
]
