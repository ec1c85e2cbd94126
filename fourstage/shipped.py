"""The recipes and launch configs that come with the package: `fourstage recipes DIR` copies them to where one works."""

import shutil
from pathlib import Path

_NAMES = ("recipes", "accelerate_configs", "constraints.txt")


def copy_recipes(folder: Path) -> None:
    """Copies recipes/, accelerate_configs/ and constraints.txt into `folder`, which is made where it is missing.

    Raises:
        ValueError: if one of them is there already; nothing is overwritten.
    """
    there = [folder / name for name in _NAMES if (folder / name).exists()]
    if there:
        raise ValueError(f"{there[0]} is there already, and nothing is overwritten; choose another folder, or move it")
    source = shipped_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source / name, folder / name)


def shipped_folder() -> Path:
    """Where they lie: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "shipped" if (package / "shipped").is_dir() else package.parent
