"""chat and compare: what is said is the model's greedy text, no terminal obeys it, and a real terminal stays usable."""

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time

import datasets
import pytest
import torch
from chat_helpers import HOSTILE
from helpers import ROOT, environment, run_program
from transformers import (
    LlamaForSequenceClassification,
)
from trl import apply_chat_template, is_conversational

from fourstage.chat.compare import Answer, layout
from fourstage.chat.terminal import Chat, ask, command
from fourstage.speaking import Sampling, Stream, chat_ids, open_speaker, speak, text_ids, visible

CLI = [sys.executable, "-m", "fourstage.cli"]
SHOWN = r"a\x1b[31mb\x07c\x9bd\u202ee\rf\x00g\x7fh"
GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}


# What is said


def test_stream_is_what_generate_says(model, tokenizer, tmp_path):
    """With the model's own sampling settings in the way, which have to be ignored."""
    reference = model.generate(
        torch.tensor([tokenizer("bab gef")["input_ids"]]), do_sample=False, max_new_tokens=60, use_cache=False
    )
    model.generation_config.update(do_sample=True, temperature=9.0, top_k=3, repetition_penalty=5.0, min_new_tokens=9)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    speaker = open_speaker(str(tmp_path), continues=True)
    pieces = []
    stream = speak(speaker, text_ids(speaker, "bab gef"), Sampling(**GREEDY, max_new_tokens=60), pieces.append)
    ids = tokenizer("bab gef")["input_ids"]
    new = reference[0, len(ids) :]
    assert stream.text == "".join(pieces) == tokenizer.decode(new, skip_special_tokens=True)
    assert stream.tokens == len(new) == 60 and not stream.stopped and len([p for p in pieces if p]) > 20


def test_sampled_tokens_follow_the_flags(model, tokenizer, tmp_path):
    """At temperature 100 and top_k 2 either of the two likeliest tokens comes, at top_p 0.01 only the likeliest."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    speaker = open_speaker(str(tmp_path))
    ids = chat_ids(speaker, [{"role": "user", "content": "dim"}])
    likeliest = model(torch.tensor([ids])).logits[0, -1].topk(2).indices.tolist()
    two = [tokenizer.decode([i]) for i in likeliest]
    torch.manual_seed(0)
    assert {speak(speaker, ids, Sampling(100.0, 1.0, 2, 1)).text for _ in range(30)} == {*two}
    assert {speak(speaker, ids, Sampling(1.0, 0.01, 0, 1)).text for _ in range(5)} == {two[0]}
    all_of_them = {speak(speaker, ids, Sampling(100.0, 1.0, 0, 1)).text for _ in range(150)}
    assert len(all_of_them) > 60  # of 512: more than transformers' own default, top_k 50, lets through


@pytest.mark.parametrize("text", ["naïve 日本語 🙂🏽 done\n\n  x", "a  b\tc", "é\ufffdx"])
def test_no_text_is_late(tokenizer, text):
    """After every token all is written that is a whole character by then."""
    speaker = argparse.Namespace(tokenizer=tokenizer, stops=[tokenizer.eos_token_id])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = Stream(speaker, lambda piece: None)
    stream.put(torch.tensor([[7, 8, 9]]))  # the prompt
    for count in range(1, len(ids) + 1):
        stream.put(torch.tensor(ids[count - 1 : count]))
        so_far = tokenizer.backend_tokenizer.decode(ids[:count])
        assert stream.text == so_far or so_far.endswith("\ufffd")
    stream.put(torch.tensor([tokenizer.eos_token_id]))
    stream.end()
    assert stream.text == text and stream.stopped


# The conversation


def test_memory_reset_and_full_context(folders, capsys):
    speaker = open_speaker(str(folders / "narrow"))
    chat = Chat(speaker, Sampling(**GREEDY, max_new_tokens=8))
    ask(chat, "bab")
    ask(chat, "gef")
    said = [("user", "bab"), ("assistant", "bab, gef!"), ("user", "gef"), ("assistant", "bab, gef!")]
    assert [(turn["role"], turn["content"]) for turn in chat.turns] == said and chat.since == 0
    assert "context" not in capsys.readouterr().err
    while chat.since == 0:
        ask(chat, "hub")
    assert f"context of 32 tokens is full: it no longer sees the first {chat.since} messages" in capsys.readouterr().err
    rest = [*chat.turns[chat.since :]]
    assert rest[0]["role"] == "user" and len(chat_ids(speaker, rest[:-1])) <= 32 - 8 < len(chat_ids(speaker, rest)) + 8
    with pytest.raises(ValueError, match=r"tokens do not fit into the context of 32; shorten the text"):
        ask(chat, "bab " * 40)
    command(chat, "/reset")
    assert chat.turns == [] and chat.since == 0


def test_saved_file_is_messages(folders, tmp_path, tokenizer, cli):
    file = tmp_path / "said.jsonl"
    lines = f"/save {file}\n/system gef\ndim\nhub \u202e dim\n/save {file}\n/save {file}\n/reset\n/save {file}\n"
    status, _, err = cli("chat", folders / "hostile", "--temperature", 0, stdin=lines)
    assert status == 1 and err.count("nothing was said yet") == 2 and err.count("exists already") == 1
    raw = file.read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", raw)  # harmless to `cat`
    (row,) = datasets.load_dataset("json", data_files=str(file), split="train")
    assert is_conversational(row) and [m["role"] for m in row["messages"]] == [
        "system",
        *["user", "assistant"] * 2,
    ]
    assert row["messages"][2]["content"] == HOSTILE and row["messages"][3]["content"] == "hub \u202e dim"
    text = apply_chat_template({"messages": row["messages"]}, tokenizer)["text"]
    assert text.startswith("<|bos|><|system|>gef<|user|>dim<|assistant|>a\x1b[31m")


def test_base_model_continues(folders, tmp_path, cli):
    file = tmp_path / "texts.jsonl"
    status, out, err = cli(
        "chat", folders / "base", "--temperature", 0, stdin=f"the dim\ndim\n/save {file}\n/reset\n/system x\n"
    )
    assert out == "> the dim\n fut.\n\n> dim\n fut.\n\n" and "continues text" in err
    assert status == 1 and "has no system prompt" in err
    rows = datasets.load_dataset("json", data_files=str(file), split="train").to_list()
    assert rows == [{"prompt": "the dim", "completion": " fut."}, {"prompt": "dim", "completion": " fut."}]
    status, out, err = cli("chat", folders / "answers", "--continue", "--prompt", "dim", "--max_new_tokens", 3)
    assert status == 0 and "continues text" in err and "cut off after max_new_tokens=3" in err


def test_hostile_text_is_written_out(folders, cli):
    status, out, _ = cli("chat", folders / "hostile", "--temperature", 0, "--prompt", "dim")
    assert status == 0 and out == SHOWN + "\n"
    status, out, _ = cli("chat", folders / "hostile", "--temperature", 0, stdin="gef \x1b]0;x\x07\n")
    assert out == r"> gef \x1b]0;x\x07" + f"\n{SHOWN}\n\n"
    status, out, _ = cli("compare", folders / "hostile", "--prompt", "dim \x9b")
    assert SHOWN in out and r"> dim \x9b" in out and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


def test_every_control_character_is_replaced_and_no_other():
    """Against the Unicode categories: Cc and Cs, and the directions of Cf; letters and joiners stay."""
    import unicodedata

    for code in range(0x110000):
        char = chr(code)
        turns = unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "B")
        if char not in "\n\t" and (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or turns):
            assert visible(char).isascii() and visible(char).startswith("\\"), hex(code)
        elif unicodedata.category(char)[0] in "LMNPS" or char in "\n\t \u200c\u200d\u00ad":
            assert visible(char) == char, hex(code)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature=-1"], "temperature=-1.0 must be 0 (the likeliest token), or 0.01 to 100"),
        (["--temperature=nan"], "temperature=nan must be 0"),
        (["--top_p=0"], "top_p=0.0 must be above 0, at most 1"),
        (["--top_k=-2"], "top_k=-2 must be 0 (all tokens) or more"),
        (["--max_new_tokens=0"], "max_new_tokens=0 must be 1 or more"),
    ],
)
@pytest.mark.parametrize("name", ["chat", "compare"])
def test_wrong_settings(cli, folders, name, flags, message):
    status, out, err = cli(name, folders / "answers", *flags)
    assert status == 1 and out == "" and message in err and err.count("\n") == 1


def test_what_cannot_be_opened(cli, folders, tmp_path):
    (tmp_path / "cut").mkdir()
    unfinished = {"status": "running", "stage": "sft", "command": "accelerate launch x"}
    (tmp_path / "cut" / "run.json").write_text(json.dumps(unfinished))
    (tmp_path / "empty").mkdir()
    cases = {
        folders / "reward": "is a reward model: it scores answers and writes none",
        tmp_path / "cut": "is not finished; finish it with: accelerate launch x",
        tmp_path / "sft": "does not exist; make it with: accelerate launch recipes/sft.py",
        tmp_path / "no.gguf": "no such GGUF file",
    }
    for model, message in cases.items():
        status, out, err = cli("chat", model)
        assert status == 1 and out == "" and message in err and err.count("\n") == 1
    assert cli("chat", tmp_path / "empty")[0] == 1
    status, _, err = cli("compare", folders / "reward")
    assert status == 1 and "reward models only score" in err


def test_commands_that_cannot_be_obeyed(cli, folders):
    lines = "/nope\n/set temperature hot\n/set colour 3\n/set temperature\n/save\n/help\n /dim\n/exit\nnever\n"
    status, out, err = cli("chat", folders / "answers", "--temperature", 0, stdin=lines)
    assert status == 1 and out == "> \u0020/dim\nbab, gef!\n\n"
    for part in (
        "/nope is not a command",
        "temperature=hot must be",
        "'colour' is not a sampling",
        "give a name",
        "name a",
    ):
        assert part in err
    for name in ("/reset", "/system", "/set", "/save", "/help", "/exit"):
        assert f"\n{name} " in err or f" {name} " in err


# Compare


def test_compare_columns_and_scores(cli, folders, tokenizer):
    names = [folders / name for name in ("base", "answers", "reward")]
    status, out, err = cli("compare", *names, "--prompt", "dim", "--prompt", "gef hub")
    assert status == 0 and out.count("> dim") == 1 and out.index("> dim") < out.index("> gef hub")
    first = out[: out.index("> gef hub")]
    assert first.index("base (pretrain,") < first.index("continues the text") < first.index("fut.")
    assert first.index("fut.") < first.index("answers (llama,") < first.index("bab, gef!")
    reward = LlamaForSequenceClassification.from_pretrained(folders / "reward")
    turns = [{"role": "user", "content": "dim"}, {"role": "assistant", "content": "bab, gef!"}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
    score = reward(**ids).logits.item()
    assert f"bab, gef!\n  score {score:+.2f} (" in first


def test_layout():
    left, right = Answer("one two three four five six seven", False), Answer("日本語" * 8 + "\nx", True)
    lines = layout([("runs/a", "sft", left), ("runs/b", "ppo", right)], 43)
    assert lines[0] == "runs/a               | runs/b" and lines[2] == "-" * 20 + "-+-" + "-" * 20
    assert lines[3] == "one two three four   | " + "日本語" * 3 + "日" and lines[4].startswith(
        "five six seven       | "
    )
    assert "x" in lines[6] and lines[7].endswith("(cut off)")
    assert layout([("runs/a", "sft", left), ("runs/b", "ppo", right)], 42)[0] == "runs/a (sft)"
    assert layout([("a", "b", Answer(" ", False))], 0) == ["a (b)", "  (nothing)"]


# Real processes


def test_piped(folders):
    """Questions in, answers out: nothing else on stdout; and a reader that goes away is no traceback."""
    command = [*CLI, "chat", str(folders / "answers"), "--temperature", "0"]
    lines = b"dim\r\n\n/set top_k 5\ngef \xff hub\n"
    done = subprocess.run(command, cwd=ROOT, env=environment(), input=lines, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "> dim\nbab, gef!\n\n> gef \ufffd hub\nbab, gef!\n\n"
    assert b"it chats" in done.stderr and b"top_k 5" in done.stderr and b"\x1b" not in done.stdout + done.stderr
    pipe = f"yes dim | {' '.join(command)} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", pipe], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "> dim\n" and "Traceback" not in done.stderr


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, *command):
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, b"\x28\x00\x78\x00" + bytes(4))  # 40 lines of 120
        self.before = termios.tcgetattr(self.slave)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        self.process = subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env=environment(TERM="xterm"),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
            **streams,
        )
        os.set_blocking(self.master, False)
        self.text = ""

    def until(self, wanted, seconds=100):
        """What comes until `wanted` has."""
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < end, f"no {wanted!r} in {self.text[-2000:]!r}"
            try:
                self.text += os.read(self.master, 1 << 16).decode(errors="replace")
            except (BlockingIOError, OSError):
                time.sleep(0.01)
        seen, self.text = self.text.split(wanted, 1)
        return seen

    def type(self, text):
        os.write(self.master, text.encode())


def test_terminal_survives_an_interrupted_answer(folders, tmp_path):
    """Question, Ctrl-C while it speaks, another question: the terminal is as before, the chat goes on, all is kept."""
    file = tmp_path / "said.jsonl"
    terminal = Terminal(*CLI, "chat", folders / "endless", "--temperature=0", "--max_new_tokens=90000")
    try:
        terminal.until("> ")
        at_prompt = termios.tcgetattr(terminal.slave)
        terminal.type("dim\n")
        terminal.until("bab gef bab gef")
        assert termios.tcgetattr(terminal.slave) == terminal.before  # while it speaks: echo, and Ctrl-C is a signal
        terminal.type("\x03")
        terminal.until("(stopped)")
        terminal.until("> ")
        assert termios.tcgetattr(terminal.slave) == at_prompt
        terminal.type("not sent\x03")
        terminal.until("(Ctrl-D or /exit ends)")
        terminal.type("/set max_new_tokens 3\n")
        terminal.until("max_new_tokens 3\r\n")
        terminal.type("hux\x7fb\n")  # line editing: a backspace
        terminal.until("\r\n bab gef\r\n(cut off after max_new_tokens=3)")
        terminal.type(f"/save {file}\n")
        terminal.until("saved to")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.process.kill()
    messages = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].startswith(" bab gef bab gef") and messages[2]["content"] == "hub"
    assert messages[3]["content"] == " bab gef"


@pytest.mark.parametrize("name", ["chat", pytest.param("compare", marks=pytest.mark.slow)])
def test_interrupted_one_answer(folders, name):
    """Ctrl-C where there is no chat to go on with: the status that shells expect, without a traceback."""
    command = [*CLI, name, str(folders / "endless"), "--prompt", "dim", "--max_new_tokens", "90000"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **streams)
    assert "it chats" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert out.startswith(" bab gef bab gef") if name == "chat" else out == ""


def test_help_imports_nothing_heavy():
    program = "import sys\nfrom fourstage.cli import main\ntry:\n    main(['chat', '-h'])\nexcept SystemExit:\n"
    program += "    assert not {'torch', 'transformers', 'datasets'} & {*sys.modules}"
    assert "--temperature" in run_program(sys.executable, "-c", program).stdout
