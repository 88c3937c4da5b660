"""A hook of MkDocs that writes two parts of the reference: the commands, and the settings of a recipe.

A page says where with `<!-- generated: commands -->` or `<!-- generated: settings -->`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.main import get_command

from gen_vla.commands.main import app


SCHEMA = Path(__file__).resolve().parents[1] / "training" / "recipes" / "recipe.schema.json"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its generated part."""
    for name, write in (("commands", commands), ("settings", settings)):
        marker = f"<!-- generated: {name} -->"
        markdown = markdown.replace(marker, "\n".join(write())) if marker in markdown else markdown
    return markdown


def commands() -> Iterator[str]:
    """Every command with its options."""
    yield from command("gen-vla", get_command(app))


def command(name: str, found: Any) -> Iterator[str]:
    """A heading, the help text and a table of parameters; a group is the commands in it."""
    if getattr(found, "hidden", False):
        return
    for inner, member in getattr(found, "commands", {}).items():
        yield from command(f"{name} {inner}", member)
    if not hasattr(found, "commands"):
        yield from (f"## `{name}`", "", (found.help or "").replace("\b\n", "\n").strip(), "")
        shown = [param for param in found.params if not getattr(param, "hidden", False)]
        hints = get_type_hints(found.callback)
        rows = [row(param, hints[param.name]) for param in shown if param.name in hints]
        yield from (["| | | default |", "| --- | --- | --- |", *rows, ""] if rows else [])


def row(param: Any, hint: Any) -> str:
    """A table's row: the names of a parameter, what it is for, its default."""
    argument = param.param_type_name == "argument"
    names = (param.metavar or param.name.upper(),) if argument else (*param.opts, *param.secondary_opts)
    default = "" if param.default in (None, False, (), []) or callable(param.default) else f"`{param.default}`"
    text = " ".join((getattr(param, "help", None) or "").split())
    literals = [hint, *get_args(hint)]  # Literal["a", "b"], also in `list[...]` or with None
    if choices := [value for one in literals if get_origin(one) is Literal for value in get_args(one)]:
        text = f"{text} One of {', '.join(f'`{choice}`' for choice in choices)}.".strip()
    return cells(", ".join(f"`{name}`" for name in names), text, default or ("required" if param.required else ""))


def settings() -> Iterator[str]:
    """Every section of a recipe with its settings, from the JSON Schema."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    sections, shown = [("", "a-recipe", schema)], set()
    for path, anchor, section in sections:  # grows while it is read: what a section refers to comes behind it
        title = f"`{path}`" if path else "A recipe"
        yield from (f"## {title} {{: #{anchor} }}", "", " ".join(section.get("description", "").split()), "")
        yield from ("| setting | type | default | |", "| --- | --- | --- | --- |")
        for key, found in section["properties"].items():
            default = f"`{json.dumps(found['default'], ensure_ascii=False)}`" if "default" in found else ""
            default = default or ("" if "$ref" in found or key == "extends" else "required")
            yield cells(f"`{key}`", kind(found), default, " ".join(found.get("description", "").split()))
            for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(found)):
                if name not in shown and "properties" in schema["$defs"][name]:
                    shown.add(name)
                    sections.append((f"{path}.{key}".strip("."), name.lower(), schema["$defs"][name]))
        yield ""


def kind(found: dict[str, Any]) -> str:
    """The type of a value, with links to the sections that it may be."""
    if "$ref" in found:
        return f"[settings](#{found['$ref'].rpartition('/')[2].lower()})"
    if alternatives := found.get("anyOf") or found.get("oneOf"):
        return " or ".join(kind(one) for one in alternatives)
    if values := found.get("enum") or ([found["const"]] if "const" in found else []):
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if found.get("type") == "array":
        return f"list of {kind(found.get('items', {}))}"
    return str(found.get("type", "any"))


def cells(*texts: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
