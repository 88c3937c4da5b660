"""How many rows each loader process holds of each streamed data set, so that all of a GPU's stay within a budget.

    data.shuffle_memory   2 GB per GPU process, whatever the number of loaders and data sets
    a loader's share      2 GB / 8 = 250 MB, divided among the data sets as the rows are
    rows held             its share / bytes of a row, at most data.shuffle_buffer
    shards open           as many as the source asks for (`lanes`), while the episodes they hold fit into half of it

Bytes of a row are measured on some of its rows, held as the buffer will hold them.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gen_vla.training.mixing.data_source import DataSource, sample_shards
from gen_vla.training.mixing.encoded_pictures import row_bytes
from gen_vla.training.mixing.mixture import Turns
from gen_vla.training.mixing.row_stream import BufferSize, Hold, load_frames
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.video_frames import VideoPicture


GIGA = 1e9
MEASURED_SHARDS, MEASURED_ROWS = 4, 32
LONGEST_EPISODE = 10_000  # steps that are counted of one
DECODER_BYTES = 1.5e6  # of an open video of 640 x 480 pixels, H.264 or AV1, with a key frame every two frames
FEWEST_ROWS = 16


@dataclass(frozen=True)
class HeldRows:
    """What rows of one data set take in memory, in the mean of some."""

    row: float  # bytes of a row in a buffer
    lane: float  # bytes of an open shard: an episode's encoded pictures, or the decoders of its videos


def measure(source: DataSource, hold: Hold | None) -> HeldRows:
    """Reads some rows, from a copy of the source, so that its counts stay as they are."""
    source = copy.deepcopy(source)
    source.problems = RowProblems(limit_share=1.0, name=source.name)
    samples, rows, lanes = sample_shards(source, MEASURED_SHARDS), [], [0.0]
    each = MEASURED_ROWS // len(samples)
    for sample in samples:
        some = list(islice(sample, each if source.lanes < 2 else LONGEST_EPISODE))
        if source.lanes > 1:
            episode = [row for row in some if row["episode_index"] == some[0]["episode_index"]]
            some = episode[:: max(len(episode) // each, 1)][:each]
            videos = sum(isinstance(picture, VideoPicture) for row in some[:1] for picture in row["images"])
            encoded = float(np.mean([row_bytes(row) for row in some])) * len(episode) if some else 0.0
            lanes.append(videos * DECODER_BYTES if videos else encoded)
        rows += [row_bytes((hold or load_frames)(dict(row))) for row in some]
    return HeldRows(float(np.mean(rows)) if rows else 1.0, max(lanes))


def buffer_sizes(
    sources: Mapping[str, DataSource], turns: Turns, holds: Mapping[str, Hold], memory: float, loaders: int, most: int
) -> dict[str, BufferSize]:
    """The buffers, of at most `most` rows, of one of the loaders that share a GPU process's bytes of memory."""
    sizes = {}
    for (name, source), share in zip(sources.items(), turns.shares(), strict=True):
        held, own = measure(source, holds.get(name)), memory * share / max(loaders, 1)
        lanes = 1
        if source.lanes > 1:
            fitting = int(own / 2 / held.lane) if held.lane else source.lanes
            lanes = max(min(source.lanes, fitting), 2)
        rows = int((own - lanes * held.lane) / held.row)
        sizes[name] = BufferSize(max(min(rows, most), min(FEWEST_ROWS, most)), lanes)
    return sizes
