"""Models whose files are broken or mean harm: `fourstage chat` ends with one line, whatever they hold, and soon."""

import json
import shutil
import threading

import pytest

from fourstage.models import deadline
from fourstage.models.opening import open_tokenizer
from fourstage.models.turns import written

DEEP = "[" * 100_000 + "]" * 100_000


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def changed(name, **fields):
    def write(folder):
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(held | fields))

    return write


def index(content):
    def write(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return write


def merged(folder):
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    held["model"]["merges"].insert(0, ["zzzz", "qqqq"])
    path.write_text(json.dumps(held))


def moved(folder):
    """Every token has an id that no embedding has."""
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    held["model"]["vocab"] = {name: i + 100_000 for name, i in held["model"]["vocab"].items()}
    path.write_text(json.dumps(held))


def template(content):
    return text("chat_template.jinja", content)


REGEX = {"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False}
RUN = {"status": "running", "stage": "sft", "seed": 0, "arguments": {}, "versions": {}}
DOUBLED = "{% set n = namespace(x='a') %}{% for i in range(45) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
CASES = {
    "tokenizer {}": (text("tokenizer.json", "{}"), "a file of it does not hold what it should"),
    "tokenizer []": (text("tokenizer.json", "[]"), "a file of it does not hold what it should"),
    "tokenizer nested": (text("tokenizer.json", DEEP), "RecursionError"),
    "tokenizer merge": (merged, "out of vocabulary"),
    "tokenizer regex": (changed("tokenizer.json", pre_tokenizer=REGEX), "unmatched parenthesis"),
    "tokenizer ids": (moved, "and the model embeds "),
    "tokenizer config": (text("tokenizer_config.json", "[]"), "a file of it does not hold what it should"),
    "tokenizer class": (changed("tokenizer_config.json", tokenizer_class=5), "a file of it does not hold"),
    "template raises": (template("{{ 1//0 }}"), "refuses this conversation: ZeroDivisionError"),
    "template adds": (template("{{ messages + 5 }}"), "refuses this conversation: TypeError"),
    "template recursion": (template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), "RecursionError"),
    "template attribute": (template("{{ ''.__class__.__mro__ }}"), "is unsafe"),
    "template import": (template("{% import 'os' as os %}"), "refuses this conversation: TypeError"),
    "template escape": (template("{{ raise_exception('\x1b[2J') }}"), r"\x1b[2J"),
    "template surrogate": (template("{{ '\\ud800' }}"), "refuses this conversation"),
    "template nothing": (template("{% if false %}{% endif %}"), "writes nothing"),
    "template long": (template("{{ 'a b ' * 300000 }}"), "more than a million characters"),
    "template doubles": (template(DOUBLED), "more than a million characters"),
    "config size": (changed("config.json", hidden_size=17), "hidden size (17) is not a multiple"),
    "config type": (changed("config.json", hidden_size="big"), "hidden_size"),
    "config zero": (changed("config.json", num_attention_heads=0), "ZeroDivisionError"),
    "config huge": (changed("config.json", hidden_size=10**12), "memory"),
    "config architectures": (changed("config.json", architectures=5), "architectures=5 in its config.json"),
    "config activation": (changed("config.json", hidden_act="evil"), "KeyError: 'evil'"),
    "config nested": (text("config.json", DEEP), "RecursionError"),
    "config null": (text("config.json", "null"), "a file of it does not hold"),
    "index elsewhere": (index('{"weight_map": {"lm_head.weight": "../../../etc/passwd"}}'), "do not lie beside it"),
    "index of none": (index('{"weight_map": {}}'), "names no weights"),
    "index list": (index("[]"), "names no weights"),
    "index numbers": (index('{"weight_map": {"a": 5}}'), "do not lie beside it"),
    "generation list": (text("generation_config.json", "[]"), "a file of it does not hold"),
    "generation end": (text("generation_config.json", '{"eos_token_id": "x"}'), "eos_token_id"),
    "adapter list": (text("adapter_config.json", "[]"), "a file of it does not hold"),
    "run nested": (text("run.json", DEEP), "run.json is broken"),
    "run without a command": (text("run.json", json.dumps(RUN)), "finish it with the command that began it"),
    "run of harm": (text("run.json", json.dumps(RUN | {"command": "rm -rf ~ \x1b[2J"})), "the command that began it"),
    "run of two": (text("run.json", json.dumps(RUN | {"command": "accelerate launch a; b"})), "command that began it"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_takes_one_line(folders, cli, tmp_path, monkeypatch, case):
    spoil, words = CASES[case]
    shutil.copytree(folders / "answers", tmp_path / "model")
    spoil(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    status, said, errors = cli("chat", "model", "--prompt", "hi")
    lines = [line for line in errors.splitlines() if not line.startswith("model: llama")]
    assert status == 1 and not said.strip() and len(lines) == 1, errors
    assert lines[0].startswith("fourstage: ") and words in lines[0] and "\x1b" not in errors


FOREIGN = [
    {"name": "x"},
    {"status": "finished"},
    {"status": "running", "stage": ["x"]},
    {"status": 5, "stage": "sft"},
    [],
]


@pytest.mark.parametrize("record", FOREIGN, ids=str)
def test_run_json_of_another_program_does_not_count(folders, cli, tmp_path, record):
    shutil.copytree(folders / "answers", tmp_path / "model")
    (tmp_path / "model" / "run.json").write_text(json.dumps(record))
    status, said, _ = cli("chat", tmp_path / "model", "--prompt", "hi", "--temperature", "0")
    assert status == 0 and said.strip()


def test_an_unfinished_run_of_ours_shows_its_command(folders, cli, tmp_path):
    shutil.copytree(folders / "answers", tmp_path / "model")
    command = "accelerate launch recipes/sft.py --run_name 'two words' --token hf_***"
    (tmp_path / "model" / "run.json").write_text(json.dumps(RUN | {"command": command}))
    assert cli("chat", tmp_path / "model", "--prompt", "hi")[2].rstrip().endswith(f"finish it with: {command}")


def test_an_empty_template_is_none(folders, cli, tmp_path):
    shutil.copytree(folders / "answers", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("\n")
    status, said, errors = cli("chat", tmp_path / "model", "--prompt", "hi")
    assert status == 0 and "it continues text" in errors


# Templates without an end

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
WHEN_ASKED = "{{ messages[0].content }}{% if messages[0].content != 'a' %}" + LOOPS + "{% endif %}"


@pytest.mark.parametrize("content", [LOOPS, WHEN_ASKED], ids=["always", "when asked"])
def test_an_endless_template_is_stopped(folders, cli, tmp_path, monkeypatch, content):
    """By CPU time, so that a busy machine changes nothing."""
    monkeypatch.setattr(deadline, "LONGEST", 0.3)
    shutil.copytree(folders / "answers", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(content)
    status, _, errors = cli("chat", tmp_path / "model", "--prompt", "hi")
    assert status == 1 and "the chat template has not ended after 0.3 seconds" in errors.splitlines()[-1]


def test_the_deadline_leaves_no_timer_behind(folders, monkeypatch):
    import signal

    tokenizer = open_tokenizer(folders / "answers")
    assert written(tokenizer, tokenizer.chat_template, [{"role": "user", "content": "hi"}])
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def in_a_thread(work):
    """What `work` returns or raises in a thread that is not the main one, as in a web page's."""
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_an_endless_template_is_stopped_in_any_thread(folders, monkeypatch):
    """The thread goes on afterwards, and its next template has the whole time."""
    monkeypatch.setattr(deadline, "LONGEST", 0.3)
    tokenizer = open_tokenizer(folders / "answers")
    turns = [{"role": "user", "content": "hi"}]

    def both():
        with pytest.raises(deadline.TemplateTimeoutError, match="has not ended after 0.3 seconds; correct its loops"):
            written(tokenizer, LOOPS, turns)
        return written(tokenizer, tokenizer.chat_template, turns)

    assert in_a_thread(both) == written(tokenizer, tokenizer.chat_template, turns) is not None


def test_a_thread_that_waits_is_not_stopped_and_an_inner_deadline_does_not_end_an_outer_one(monkeypatch):
    monkeypatch.setattr(deadline, "LONGEST", 0.3)
    monkeypatch.setattr(deadline, "_LOOK", 0.01)

    def waits():
        with deadline.deadline(), deadline.deadline():
            threading.Event().wait(0.8)  # no CPU time
        return "ended"

    def loops():
        with deadline.deadline():
            with deadline.deadline():
                pass
            while True:
                pass

    assert in_a_thread(waits) == "ended"
    assert isinstance(in_a_thread(loops), deadline.TemplateTimeoutError)
    with pytest.raises(deadline.TemplateTimeoutError):
        loops()
