"""The rules of the house: arrows, budgets, launch configs, and that documents name only what exists."""

import ast
import graphlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from fourstage.stages import RECIPES

ROOT = Path(__file__).parents[1]
PACKAGE = sorted(ROOT.glob("fourstage/**/*.py"))
SOURCES = [*PACKAGE, *sorted(ROOT.glob("recipes/**/*.py"))]
CONFIGS = sorted(ROOT.glob("accelerate_configs/*.yaml"))


def name(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """Every module a file imports, each imported name joined to its module: `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: import by the full name, not with dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Floors: a room may import the rooms that stand beside it here, and no others. `ppo` and `grpo` do not know each other.

MAY_IMPORT = {
    "stages": "",
    "signals": "",
    "errors": "disk printing signals",
    "children": "signals",
    "atomic": "",
    "printing": "",
    "disk": "",
    "shipped": "",
    "verifiers": "",
    "confined": "verifiers",
    "launch": "",
    "memory": "",
    "report": "atomic stages",
    "parent": "stages",
    "chain": "children parent stages",
    "ranges": "",
    "settings_file": "errors ranges",
    "imports": "",
    "arguments": "chain imports ranges settings_file",
    "optim": "arguments",
    "models": "arguments disk errors parent",
    "data": "arguments disk errors models verifiers",
    "evaluation": "errors models stages verifiers",
    "artifact": "arguments atomic data errors memory models parent ranges signals stages",
    "pretraining": "arguments data evaluation models optim",
    "rl": "confined data evaluation models parent verifiers",
    "instruction": "models",
    "ppo": "arguments data evaluation models parent ranges rl verifiers",
    "grpo": "arguments evaluation models ranges rl",
    "speed": "arguments",
    "resolve": "arguments data grpo models optim ppo pretraining speed",
    "plan": "arguments data errors grpo imports instruction models optim parent ppo pretraining resolve rl "
    "settings_file shipped speed",
    "speaking": "errors models parent printing",
    "chat": "data errors evaluation models parent prefer signals speaking stages web",
    "demo": "arguments artifact atomic data evaluation imports models parent ranges rl signals stages verifiers",
    "web": "signals",
    "prefer": "arguments atomic data errors evaluation models parent rl speaking web",
    "doctor": "arguments artifact data errors evaluation imports instruction models parent plan ppo pretraining "
    "printing resolve rl shipped verifiers",
    "cli": "artifact chat disk doctor imports plan prefer printing ranges report shipped signals",
}
# All that these may import beside the standard library and themselves.
KNOWS_ONLY = {
    "fourstage/confined": set(),
    "fourstage/ppo/functional.py": {"torch"},
    "fourstage/report": {"jinja2", "matplotlib"},
    "fourstage/verifiers": {"math_verify", "sympy"},
}


def room(module):
    """The folder or file right below fourstage/, or None: `fourstage.rl.forward.positions` -> `rl`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fourstage" and len(parts) > 1 and parts[1] != "__version__" else None


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_a_room_imports_only_what_the_table_names(path):
    own = path.relative_to(ROOT / "fourstage").with_suffix("").parts[0]
    if own == "__init__":
        return  # lazily, whatever it offers
    allowed = {own, *MAY_IMPORT[own].split()}
    above = sorted(module for module in imports(path) if room(module) and room(module) not in allowed)
    assert not above, f"{own} may not import {above}; see MAY_IMPORT"


def test_every_room_stands_in_the_table_and_no_arrow_is_left_over():
    found = {own: set() for own in MAY_IMPORT}
    for path in PACKAGE:
        own = path.relative_to(ROOT / "fourstage").with_suffix("").parts[0]
        if own != "__init__":
            found[own] |= {room(module) for module in imports(path)} - {None, own}
    assert found == {own: set(below.split()) for own, below in MAY_IMPORT.items()}


def test_no_arrow_leads_back():
    graph = {own: below.split() for own, below in MAY_IMPORT.items()}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(MAY_IMPORT)


@pytest.mark.parametrize("place", KNOWS_ONLY)
def test_some_rooms_know_few_libraries(place):
    folder = ROOT / place
    for path in folder.glob("*.py") if folder.is_dir() else [folder]:
        libraries = {module.split(".")[0] for module in imports(path)} - sys.stdlib_module_names - {"fourstage"}
        assert libraries <= KNOWS_ONLY[place], name(path)


# Arrows: recipes -> fourstage -> libraries


def test_nothing_imports_recipes():
    for path in SOURCES:
        assert "recipes" not in {module.split(".")[0] for module in imports(path)}, name(path)


def test_libraries_are_used_through_their_public_names():
    libraries = ("trl", "transformers", "peft", "accelerate", "datasets")
    for path in SOURCES:
        for module in imports(path):
            private = any(part.startswith("_") for part in module.split("."))
            assert not (private and module.split(".")[0] in libraries), f"{name(path)} imports {module}"


# Budgets


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_budgets(path):
    source = path.read_text()
    lines = source.count("\n")
    assert lines <= (120 if path.parent.name == "recipes" and path.stem in RECIPES else 400), f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            most = 80 if path.parent.name == "recipes" and node.name == "main" else 60
            assert length <= most, f"{node.name}: {length} lines; split it by meaning"


def test_readme_fits():
    readme = ROOT / "README.md"
    assert readme.read_text().count("\n") <= 130


# Launch configs


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_accelerate_config(path):
    config = load_config_from_file(str(path))  # accelerate's own: refuses unknown keys
    assert config.mixed_precision is None, "precision belongs to the stage"
    assert path.read_text().startswith(f"# accelerate launch --config_file accelerate_configs/{path.name} ")


# What is committed


def tracked_and_new_files():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / file for file in listed.stdout.split("\0") if file and (ROOT / file).is_file()]


def test_no_file_names_a_path_of_one_machine():
    folders = "|".join(["work", "root", "home"])
    machine_path = re.compile(rf"(?<![\w.~$}}\])-])/({folders})/".encode())
    for path in tracked_and_new_files():
        found = machine_path.search(path.read_bytes())
        assert not found, f"{name(path)} names {found.group().decode()}..."


# Commands in documents


def shell_lines():
    """(where, line) for the ```bash blocks of documents, the first line of configs, the examples of docstrings."""
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/**/*.md"),
    ]:
        for block in re.findall(r"^```bash\n(.*?)^```", path.read_text() if path.exists() else "", re.M | re.S):
            yield from ((name(path), line) for line in block.replace("\\\n", " ").splitlines())
    for path in [*CONFIGS, *ROOT.glob("recipes/configs/**/*.yaml")]:
        yield name(path), path.read_text().splitlines()[0].removeprefix("#")
    for path in ROOT.glob("recipes/*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        yield from ((name(path), line) for line in docstring.replace("\\\n", " ").splitlines() if line[:4] == "    ")


def split_command(line):
    """A shell line as (launcher words, script, script's words), or None if it runs no Python script.

    NAME=value accelerate launch --cpu x.py --seed 1 -> (["accelerate", "launch", "--cpu"], "x.py", ["--seed", "1"])
    """
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if not words or words[0] not in ("accelerate", "python", "torchrun"):
        return None
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    return (words[: scripts[0]], words[scripts[0]], words[scripts[0] + 1 :]) if scripts else None


def documented_commands():
    split = ((where, split_command(line)) for where, line in shell_lines())
    return [(where, *command) for where, command in split if command]


def test_split_command():
    assert split_command("A=1 accelerate launch --cpu x.py --seed 1  # why") == (
        ["accelerate", "launch", "--cpu"],
        "x.py",
        ["--seed", "1"],
    )
    assert split_command("make test") is None and split_command("# a remark") is None
    assert split_command("python -m pip install x") is None


@pytest.mark.parametrize("script", sorted({script for _, _, script, _ in documented_commands()}))
def test_documented_flags_exist(script):
    commands = [command for command in documented_commands() if command[2] == script]
    assert (ROOT / script).is_file(), f"{commands[0][0]} names {script}, which does not exist"
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"--[\w-]+", done.stdout))
    for where, _, _, words in commands:
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert flags <= known, f"{where}: {script} --help knows no {sorted(flags - known)}"


@pytest.mark.parametrize(
    ("where", "launcher", "script", "words"), documented_commands(), ids=[c[0] for c in documented_commands()]
)
def test_documented_launchers_and_files_exist(where, launcher, script, words):
    files = [after for word, after in zip(words, words[1:], strict=False) if word == "--config"]
    if launcher[0] == "accelerate":
        args = launch_command_parser().parse_args([*launcher[2:], script])  # exits on an unknown flag
        files += [args.config_file] if args.config_file else []
    for file in files:
        placeholder = Path(file).stem.isupper()
        assert placeholder or (ROOT / file).is_file(), f"{where} names {file}, which does not exist"


def test_documented_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for where, line in shell_lines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "make":
            asked = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert asked <= targets, f"{where}: no make target {sorted(asked - targets)}"
