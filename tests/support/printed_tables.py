"""What a table looks like on a screen."""

from typing import Any

from rich.console import Console


def printed(*tables: Any, width: int = 160) -> str:
    """The text of tables on a screen of so many characters."""
    console = Console(width=width)
    with console.capture() as shown:
        for table in tables:
            console.print(table)
    return shown.get()
