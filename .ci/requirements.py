"""Writes build/requirements.txt and build/requirements-dev.txt from setup.cfg, for deptry, which does not read it."""

import configparser
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = dict(setup["options.extras_require"])
    develop = extras.pop("dev") + extras.pop("docs", "")
    needed = "".join([setup["options"]["install_requires"], *extras.values()])
    (ROOT / "build").mkdir(exist_ok=True)
    for name, text in (("requirements.txt", needed), ("requirements-dev.txt", develop)):
        lines = [line for line in text.split("\n") if line and not line.startswith((".", "#", "gen-vla"))]
        (ROOT / "build" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
