"""A streamed mini run in an interpreter of its own, which writes down per process which rows it prepared.

torchrun --nproc_per_node 2 streamed_run.py WORK_DIR         # then WORK_DIR/process-<rank>.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from table_data import mini_recipe
from tiny_runs import Witness

from gen_vla.training.mixing import prepared_rows
from gen_vla.training.run import run_recipe


def main(work_dir: str) -> None:
    """See the docstring of this file."""
    torch.set_num_threads(1)
    rows: list[str] = []
    plain = prepared_rows.RowPreparer.__call__

    def prepare(preparer: Any, row: dict[str, Any], source: str, place: int) -> dict[str, Any]:
        rows.append(f"{source} {row['identity']}")
        return plain(preparer, row, source, place)

    prepared_rows.RowPreparer.__call__ = prepare  # type: ignore[method-assign]
    witness = Witness().watch()
    recipe = mini_recipe("openvla_plus_bridge", training__steps=3)
    run_recipe(recipe, work_dir, callbacks=[witness], progress=False)
    rank = torch.distributed.get_rank()
    seen = {"processes": torch.distributed.get_world_size(), "batches": witness.batches, "hash": witness.hash}
    (Path(work_dir) / f"process-{rank}.json").write_text(json.dumps({**seen, "rows": rows}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
