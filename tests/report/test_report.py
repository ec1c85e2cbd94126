"""The report: hostile text stays text, numbers are those of the files, partial and broken folders are told apart."""

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest
from helpers import ROOT

from fourstage.cli import main
from fourstage.report import write_report
from fourstage.report.load import read_stage_run
from fourstage.report.prose import limits

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> ' onclick='alert(1)",
    "</svg></style></title><svg onload=alert(1)>",
    "nul \x00 bell \x07 escape \x1b[31m, lone \ud800 surrogate, not a character \ufffe, right to left \u202e",
    "{{ 7 * 7 }} {% raw %} &lt; &amp; ]]> <!-- --> <plaintext>",
    "long " * 5_000,
]
VOID = {"meta", "br", "img", "link", "input", "hr", "path", "rect", "circle", "use"}


class Page(HTMLParser):
    """Counts tags with the names of their attributes, checks that they are balanced, keeps the text of cells."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.links, self.headings, self.ids = Counter(), [], [], [], []
        self.text, self.rows = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags[tag, tuple(name for name, _ in attributes)] += 1
        values = dict(attributes)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [values["id"]] if "id" in values else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def metric(mean, stderr=0.0123, n=1000):
    return {"mean": mean, "stderr": stderr, "n": n, "values": [mean]}


def answer(text, right=None):
    return {"prompt": "What is an LLM?", "kind": "glossary", "completion": text, "reference": "It is.", "right": right}


def row(stage, parent, metrics, text="An LLM.", right=None):
    cost = {"parameters": 1_043_200, "tokens": 410_000, "seconds": 131.2, "flops": 2.6e12}
    about = {"stage": stage, "title": f"the {stage}", "parent": parent}
    return about | cost | {"metrics": metrics, "answers": [answer(text, right)]}


COLUMNS = [
    {"key": "bits_per_byte", "title": "bits per byte", "percent": False, "better": "lower", "what": "Cost."},
    {"key": "reading", "title": "reading", "percent": True, "better": "higher", "what": "Questions on stories."},
    {"key": "glossary", "title": "glossary", "percent": True, "better": "higher", "what": "Definitions."},
    {"key": "reasoning_greedy", "title": "reasoning", "percent": True, "better": "higher", "what": "Sums."},
    {"key": "derivations", "title": "derivations", "percent": True, "better": "higher", "what": "Every step."},
    {"key": "never_heard_of", "title": "unknown", "percent": False, "better": None, "what": "Something new."},
]


def table(text="An LLM."):
    """A stages.json. `text` stands wherever a model or a person could have written something."""
    rows = [
        row("random", None, {"bits_per_byte": metric(2.51344, 0.05), "reading": metric(0.0, 0.0)}, text, False),
        row("pretrain", "random", {"bits_per_byte": metric(0.4124, 0.0351), "reading": metric(0.021)}, text, False),
        row("sft", "pretrain", {"reading": metric(0.8837, 0.0101), "never_heard_of": metric(84.21, 1.684)}, text, True),
        row("grpo", "sft", {"reasoning_greedy": metric(0.955, 0.006)}, text),
    ]
    return {
        "model": "demo",
        "seeds": [0],
        "folders": ["."],
        "fast": False,
        "machine": {"cpu": text, "cores": 2, "memory_gb": 23.5, "git_sha": text, "date": "2026-11-24"},
        "seconds": 540.0,
        "columns": [*COLUMNS, {"key": "x", "title": text, "percent": True, "better": "higher", "what": text}],
        "rows": rows,
        "reward_model": {"title": text, "parent": "sft", "metrics": {"accuracy": metric(0.93), text: metric(0.8)}},
        "checks": [
            {"name": text, "figure": 0.884, "lower": 0.864, "want": text, "passed": True},
            {"name": "stage 4 keeps reading", "figure": -0.06, "lower": -0.09, "want": "above -0.05", "passed": False},
        ],
    }


def write_stage(folder, stage, text="An LLM.", **record):
    folder.mkdir(parents=True)
    whole = {
        "status": "finished",
        "stage": stage,
        "command": f"accelerate launch recipes/{stage}.py --output_dir {text}",
        "seed": 0,
        "versions": {"torch": "2.13.0", text: text},
        "parent": {"path": text, "sha256": "ab" * 32},
        "data": {"train": text},
        "parameters": 1_043_200,
        "tokens": 306_176,
        "arguments": {
            "data": {"dataset_name": text},
            "training": {"max_steps": 150, "learning_rate": 0.01},
            "model": {},
        },
        "metrics": {"train_runtime": 49.8},
    }
    (folder / "run.json").write_text(json.dumps(whole | record))
    keys = ("loss", "eval_loss", "eval_bits_per_byte", "accuracy", "reward", "objective/kl", "entropy")
    if stage not in ("pretrain", "ppo"):  # curves take their time: two kinds are enough for most tests
        keys = ()
    history = [{"step": step, **{key: 2.0 / (step + 1) for key in keys}} for step in range(20)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*history, {"step": 20, "loss": text}]}))
    sample = {"prompt": [{"role": "user", "content": text}], "completion": text, "score": 1.0, "rejected": text}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")


def pipeline(folder, text="An LLM.", stages=("pretrain", "sft", "reward", "ppo", "grpo", "control")):
    for stage in stages:
        write_stage(folder / stage, "grpo" if stage == "control" else stage, text)
    (folder / "stages.json").write_text(json.dumps(table(text)))
    return folder


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def words_of(page):
    return " ".join(" ".join(page.text).split())


# Hostile text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_changes_no_tag(tmp_path, text):
    calm = read(write_report(pipeline(tmp_path / "calm", "harmless " * 10)))
    output = write_report(pipeline(tmp_path / "hostile", text))
    hostile = read(output)
    assert hostile.tags.keys() - calm.tags.keys() == set() and hostile.tags["script", ()] == 0
    assert not any({"onerror", "onclick", "onload"} & set(attributes) for _, attributes in hostile.tags)
    if len(text) < 1_000:  # a longer one is cut
        same = [{tag: n for tag, n in page.tags.items() if tag[0] != "div"} for page in (hostile, calm)]
        assert same[0] == same[1]
    assert output.stat().st_size < 1_000_000


def test_hostile_text_is_shown_as_it_is(tmp_path):
    assert HOSTILE[0] in words_of(read(write_report(pipeline(tmp_path / "run", HOSTILE[0]))))


def test_characters_that_html_forbids_are_replaced(tmp_path):
    html = write_report(pipeline(tmp_path / "run", HOSTILE[3])).read_text(encoding="utf-8")
    assert "nul \ufffd bell \ufffd escape \ufffd[31m, lone \ufffd surrogate" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\u202e]", html)


def test_long_answers_are_cut_with_a_mark(tmp_path):
    write_stage(tmp_path / "run" / "sft", "sft")
    sample = {"prompt": "Why?", "completion": "a" * 900}
    (tmp_path / "run" / "sft" / "samples.jsonl").write_text(json.dumps(sample))
    page = words_of(read(write_report(tmp_path / "run")))
    assert "a" * 600 + " … [600 of 900 characters shown]" in page and "a" * 601 not in page


# The page


def test_every_section_is_there_and_nothing_is_loaded(tmp_path):
    output = write_report(pipeline(tmp_path / "run"))
    page = read(output)
    sections = {"answered", "stages", "compared", "measured", "limits", "checks", "lineage", "onwards"}
    assert sections <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    html = output.read_text(encoding="utf-8")
    assert "@import" not in html and "<script" not in html and "http:" not in html and "https:" not in html
    assert all(reference in page.ids for reference in re.findall(r"url\(#([^)]*)\)", html))
    steps = [after - before for before, after in zip(page.headings, page.headings[1:], strict=False)]
    assert page.headings[0] == 1 and page.headings.count(1) == 1 and max(steps) == 1
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert svgs and all({"aria-label", "aria-labelledby"} & set(attributes) for attributes in svgs)
    assert {attributes for tag, attributes in page.tags if tag == "th" and "scope" not in attributes} == set()


def test_numbers_are_those_of_the_table(tmp_path):
    page = read(write_report(pipeline(tmp_path / "run")))
    rows = {cells[0].strip(): cells[1:] for cells in page.rows if cells}
    assert rows["bits per byte n = 1,000"] == ["2.513 ± 0.050", "0.412 ± 0.035", "–", "–"]
    assert rows["reading n = 1,000"] == ["0.0 % ± 0.0", "2.1 % ± 1.2", "88.4 % ± 1.0", "–"]
    assert rows["unknown n = 1,000"] == ["–", "–", "84.21 ± 1.68", "–"]
    assert rows["parameters"] == ["1.04M"] * 4 and rows["training time"] == ["2.2 min"] * 4
    assert rows["all kinds"] == ["93.0 % ± 1.2", "1,000"]
    assert rows["stage 4 keeps reading"][:3] == ["FAILED", "−0.060", "−0.090"]
    text = words_of(page)
    assert "1 of 2 checks passed" in text and "9.0 min in all" in text


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = pipeline(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder, tmp_path / "there" / "page.html").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["report.html", "stages.json"]


def test_several_seeds(tmp_path):
    folder = tmp_path / "run"
    for seed in (0, 1, 10):
        write_stage(folder / f"seed-{seed}" / "pretrain", "pretrain")
    page = words_of(read(write_report(folder)))
    assert "3 seeds" in page and "(means of 3 seeds)" in page
    assert page.index("pretrain, seed-1 ") < page.index("pretrain, seed-10 ")
    many = table() | {"seeds": [0, 1, 10], "folders": ["seed-0", "seed-1", "seed-10"]}
    (folder / "stages.json").write_text(json.dumps(many))
    assert "over 3 seeds, each measured on n items" in words_of(read(write_report(folder)))


def test_charts_say_where_they_begin_and_end(tmp_path):
    write_stage(tmp_path / "pretrain", "pretrain")
    rows = [{"step": 0, "eval_loss": 6.4618}, {"step": 5, "eval_loss": float("nan")}, {"step": 9, "eval_loss": 0.5358}]
    (tmp_path / "pretrain" / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    assert "held out 6.462 to 0.536" in words_of(read(write_report(tmp_path)))


# Folders that are not whole


def test_some_stages_without_a_table(tmp_path):
    for stage in ("pretrain", "sft"):
        write_stage(tmp_path / stage, stage)
    page = words_of(read(write_report(tmp_path)))
    assert "No stage table here" in page and page.count("This stage has not been run here yet.") == 3


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "grpo"])
def test_one_stage(tmp_path, stage):
    write_stage(tmp_path / "mine", stage)
    page = read(write_report(tmp_path / "mine"))
    drawings = [name for name in page.ids if re.fullmatch("draw-.*-t", name)]
    assert drawings == [f"draw-{stage}-t"] and "An LLM." in words_of(page)


@pytest.mark.parametrize("text", ['{"status": "fin', "[1, 2]", "{}", "[" * 100_000, '{"status": "finished"}'])
def test_a_broken_run_is_told_in_its_place(tmp_path, text):
    write_stage(tmp_path / "pretrain", "pretrain")
    write_stage(tmp_path / "sft", "sft")
    (tmp_path / "sft" / "run.json").write_text(text)
    page = words_of(read(write_report(tmp_path)))
    assert ("sft: run.json cannot be read" in page) == ("finished" not in text)


def test_an_unfinished_run_and_missing_files_are_told(tmp_path):
    write_stage(tmp_path / "sft", "sft", status="running", command="accelerate launch recipes/sft.py --seed 7")
    (tmp_path / "sft" / "trainer_state.json").unlink()
    (tmp_path / "sft" / "samples.jsonl").write_text('{"prompt": "Hi", "completion": "Hello there"}\n{"prom')
    page = words_of(read(write_report(tmp_path)))
    assert re.search("not finished.*: accelerate launch recipes/sft.py --seed 7", page)
    assert "trainer_state.json is missing" in page and "1 lines of samples.jsonl could not be read" in page
    assert "Hello there" in page


def test_rows_that_ppo_goes_on_learning_are_told_where_there_are_any(tmp_path):
    for name, ptx in (("with", "chats.jsonl"), ("without", None)):
        training = {"max_steps": 96, "ptx_dataset_name": ptx, "ptx_coef": 0.25}
        write_stage(tmp_path / name, "ppo", arguments={"data": {}, "training": training, "model": {}})
    told, not_told = (words_of(read(write_report(tmp_path / name))) for name in ("with", "without"))
    for words in ("PPO-ptx", "ptx_dataset_name chats.jsonl", "ptx_coef 0.25"):
        assert words in told and words not in not_told


def test_what_a_run_was_warned_of_is_told(tmp_path):
    warned = [{"kind": "loss_spike", "step": 30, "message": "the loss jumped to <b>9</b>"}, "not one", {}]
    write_stage(tmp_path / "sft", "sft", warnings=warned)
    write_stage(tmp_path / "pretrain", "pretrain", warnings="none")
    page = words_of(read(write_report(tmp_path)))
    assert "sft: Warned at step 30: the loss jumped to <b>9</b>." in page and page.count("Warned at") == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"rows": [', "JSON"),
        ("[]", "list"),
        ('{"rows": []}', "no 'columns'"),
        ('{"columns": [], "rows": [{"stage": "sft"}]}', "no 'title'"),
        ('{"columns": [], "rows": [{"stage": "sft", "title": "2", "metrics": []}]}', "'metrics'"),
    ],
)
def test_a_broken_table_is_an_error_with_its_fix(tmp_path, text, named):
    folder = pipeline(tmp_path / "run")
    (folder / "stages.json").write_text(text)
    with pytest.raises(ValueError, match="stages.json.*run the pipeline again") as caught:
        write_report(folder)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_a_run_are_errors(tmp_path):
    (tmp_path / "sft").mkdir()
    with pytest.raises(ValueError, match=f"{tmp_path} .*stages.json.*pretrain, sft.*make demo"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a folder.*such as runs/demo"):
        write_report(tmp_path / "nowhere")
    write_stage(tmp_path / "odd", "no_stage")
    with pytest.raises(ValueError, match="run.json.*'no_stage'.*pretrain, sft.*run the stage again"):
        write_report(tmp_path / "odd")


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e308", "-1e308", "NaN", "Infinity", "1e400"])
def test_numbers_that_measure_nothing_are_dashes(tmp_path, number):
    """Wherever a file has a number: integers of 400 digits are no floats, and axes overflow at their ends."""
    folder = pipeline(tmp_path / "run")
    for path in (*folder.rglob("run.json"), *folder.rglob("trainer_state.json"), folder / "stages.json"):
        written = re.sub(r"(?<=: )-?\d+(\.\d+)?(?=[,}\]])", number, path.read_text())
        assert number in written
        path.write_text(written)
    page = read(write_report(folder))
    assert "–" in words_of(page) and "9999999" not in words_of(page)


@pytest.mark.parametrize("name", ["../../..", "/etc", "a/../../b", "x" * 5_000])
def test_a_table_names_folders_below_it_alone(tmp_path, name):
    folder = pipeline(tmp_path / "run")
    (folder / "stages.json").write_text(json.dumps(table() | {"folders": [name]}))
    with pytest.raises(ValueError, match="stages.json: 'folders' must name folders below it; delete it"):
        write_report(folder)


def test_names_that_no_folder_can_have_and_places_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        write_report(tmp_path / ("x" * 5_000))
    folder = pipeline(tmp_path / "run")
    with pytest.raises(ValueError, match="cannot be written .*; name another file with --output"):
        write_report(folder, tmp_path / "run" / "stages.json" / "page.html")  # a file is in the way


# What the numbers do not show


def found(sentences, *parts):
    return any(all(part in sentence for part in parts) for sentence in sentences)


def stages(**metrics):
    """A table of the rows named, each with its metrics; parents as in the chain."""
    parents = {"pretrain": "random", "sft": "pretrain", "ppo": "sft", "grpo": "ppo", "control": "ppo"}
    rows = [row(s, parents.get(s), {k: metric(v) for k, v in values.items()}) for s, values in metrics.items()]
    return {"model": "own", "seeds": [0, 1, 2, 3, 4], "columns": COLUMNS, "rows": rows}


def test_limits_of_a_good_run_are_few():
    assert limits(stages(sft={"reading": 0.8}, ppo={"reading": 0.78})) == [
        "The model has 1.04M parameters. Nothing here shows how a large model would behave."
    ]
    assert limits({"columns": COLUMNS, "rows": []}) == []


def test_limits_name_drops_with_their_size():
    said = limits(stages(sft={"reading": 0.884, "glossary": 0.9}, ppo={"reading": 0.8, "glossary": 0.88}))
    assert found(said, "Lost from “the sft” to “the ppo”: reading 8.4 points (88.4 % ± 1.2 to 80.0 % ± 1.2).")
    assert found(said, "glossary are memorised")
    assert not found(limits(stages(sft={"reading": 0.83}, ppo={"reading": 0.81})), "Lost")


def test_limits_of_reasoning():
    shares = {"reasoning_greedy": 0.955, "derivations": 0.9}
    rows = stages(ppo={"reasoning_greedy": 0.47}, grpo=shares, control={"reasoning_greedy": 0.007})
    said = limits(rows)
    assert found(said, "already right in 47.0 %", "ended at 95.5 %", "48.5 points")
    assert found(said, "coin flips", "from 47.0 % to 0.7 %", "harm")
    assert found(said, "right in 95.5 %", "only 90.0 %")
    assert found(limits(stages(ppo={"reasoning_greedy": 0.4}, grpo={"reasoning_greedy": 0.9})), "no control")
    risen = stages(**{stage: {"reasoning_greedy": v} for stage, v in (("ppo", 0.4), ("grpo", 0.9), ("control", 0.5))})
    assert found(limits(risen), "drift alone explains 10.0 points")


def test_limits_of_preferences():
    rows = stages(sft={"reward_score": -0.2, "preferred": 0.4}, ppo={"reward_score": 1.8, "preferred": 0.3})
    rows["reward_model"] = {"metrics": {"accuracy": metric(0.85), "off_topic": metric(0.6), "rude": metric(0.99)}}
    said = limits(rows)
    assert found(said, "off topic 60.0 %") and not found(said, "rude")
    assert found(said, "rose from −0.200 to 1.800", "40.0 % to 30.0 %", "gamed")


def test_limits_of_the_run():
    rows = table() | {"fast": True}
    said = limits(rows)
    assert found(said, "fast run") and found(said, "One seed") and found(said, "templates")
    assert found(said, "checks failed: stage 4 keeps reading.")
    two = limits(rows | {"seeds": [0, 1]})
    assert found(two, "2 seeds") and not found(two, "One seed")


# The command, and what it stands on


def test_command(tmp_path, capsys):
    write_stage(tmp_path / "run", "sft")
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html") and (tmp_path / "page.html").is_file()
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_report_imports_no_torch():
    code = "import sys, fourstage.report, fourstage.cli; assert not {'torch', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_on_the_page_are_documented():
    """tests/test_house.py checks the commands of the documents against the recipes' --help."""
    template = (ROOT / "fourstage" / "report" / "page.html.jinja").read_text()
    commands = re.findall(r"^(?:<pre[^>]*><code>)?((?:accelerate|python) .*?)(?:</code>.*)?$", template, re.M)
    assert len(commands) == 9
    documents = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"))]
    documented = [line for text in documents for line in text.replace("\\\n", " ").splitlines()]
    for command in commands:
        words = command.split()
        files = [word for word in words if word.startswith(("recipes/", "accelerate_configs/"))]
        assert all((ROOT / file).is_file() for file in files), command
        same_recipe = {word for line in documented if files[-1] in line for word in line.split()}
        unknown = {word for word in words if word.startswith("--")} - same_recipe
        assert not unknown, f"no document has {files[-1]} with {sorted(unknown)}"


def test_the_pipeline_is_drawn_on_the_page_of_a_pipeline_alone(tmp_path):
    assert "draw-pipeline-t" in read(write_report(pipeline(tmp_path / "all"))).ids
    assert "draw-pipeline-t" not in read(write_report(tmp_path / "all" / "sft")).ids


def test_a_control_shows_what_its_answers_would_have_earned(tmp_path):
    """Its own reward is a coin flip, one half whatever it learns."""
    row = {"step": 1, "reward": 0.5, "rewards/number/mean": 0.1, "rewards/random_reward/mean": 0.5}
    held_out = {"step": 1, "eval_reward": 0.5, "eval_rewards/number/mean": 0.2, "eval_rewards/random_reward/mean": 0.5}
    record = {"status": "finished", "arguments": {"training": {"control": "random_reward"}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [row, held_out]}))
    history = read_stage_run("control", tmp_path).history
    assert (history[0]["reward"], history[1]["eval_reward"]) == (0.1, 0.2)
