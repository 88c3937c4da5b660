"""Tables of results for the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table


def results_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    left: int = 1,
    no_wrap: bool = False,
    **options: Any,
) -> Table:
    """Words in the first `left` columns, numbers on the right in the others, folded on a narrow screen unless
    `no_wrap`; options are those of `rich.Table`."""
    table = Table(title=title, **options)
    for place, column in enumerate(columns):
        words = place < left
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=no_wrap and not words)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def percent(share: float | None, digits: int = 0, missing: str = "") -> str:
    """`0.84` as `84`."""
    return missing if share is None else f"{100 * share:.{digits}f}"


def percent_range(bounds: Sequence[float], digits: int = 0) -> str:
    """`(0.7, 0.84)` as `70-84`."""
    return "-".join(percent(bound, digits) for bound in bounds)
