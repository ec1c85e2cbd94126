"""A run ends where a number is not finite: real recipes, with a loss, a gradient or a weight broken at a known step."""

import json
import math
import re
import shutil
import sys
from ast import literal_eval
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    RECIPES,
    SMALL_RUN,
    TINY,
    cut_off,
    files_in,
    load_recipe,
    record_of,
    run_here,
    run_program,
    tensors_of,
    write_chats,
    write_texts,
)
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, TrainerCallback

from fourstage.artifact.divergence import Divergence, check_result, last_checkpoint, shown_rows
from fourstage.instruction import InstructTrainer
from fourstage.models.checkpoint import open_backbone, open_causal_lm, open_scorer
from fourstage.models.finite import not_finite
from fourstage.speaking import open_speaker

RUN = ["--max_steps=8", "--save_steps=2", "--eval_steps=4", "--per_device_train_batch_size=4", "--report_to=none"]
RUN += ["--logging_steps=1"]


@pytest.fixture
def flags(base, tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl")
    return ["--model_name_or_path", base, "--dataset_name", chats, "--output_dir", tmp_path / "run", *RUN]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def stopped(capsys, *command):
    """The last line on stderr of a recipe that ends with exit code 1."""
    with pytest.raises(SystemExit) as end:
        run_here(*command)
    assert end.value.code == 1
    return capsys.readouterr().err.rstrip("\n").splitlines()[-1].split("\r")[-1]


def kept(run):
    return sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))


def patched_loss(monkeypatch, step, change):
    """From training step `step` on, counted from 1, the loss is `change(loss, trainer)`; the rows seen, by step."""
    plain, rows = InstructTrainer.compute_loss, {}

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = plain(self, model, inputs, *args, **kwargs)
        if self.model.training:
            rows.setdefault(self.state.global_step + 1, []).extend(inputs["input_ids"].tolist())
            if self.state.global_step + 1 >= step:
                loss = change(loss, self)
        return loss

    monkeypatch.setattr(InstructTrainer, "compute_loss", compute_loss)
    return rows


class AtStep(TrainerCallback):
    """Does something to the model after the optimizer's step `step`."""

    def __init__(self, step, change):
        self.step, self.change = step, change

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.change(model)


def broken_at(monkeypatch, step, change):
    plain = InstructTrainer.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.add_callback(AtStep(step, change))

    monkeypatch.setattr(InstructTrainer, "__init__", init)


@torch.no_grad()
def break_head(model, value=math.inf):
    model.get_output_embeddings().weight[3, 5] = value


# Losses and gradients


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(flags, run, capsys, monkeypatch, value):
    seen = patched_loss(monkeypatch, 6, lambda loss, trainer: loss + value)
    line, last = stopped(capsys, "sft", *flags, "--gradient_accumulation_steps=2"), run / "checkpoints" / "checkpoint-4"
    assert line.startswith(f"error: sft stopped at step 6: the loss is {value}; its rows begin ")
    assert (
        f"the last good checkpoint is {run / 'checkpoints' / 'checkpoint-4'}. Lower learning_rate (now 0.0001)" in line
    )
    assert kept(run) == ["checkpoint-4"] and not (run / "model.safetensors").exists()
    assert not not_finite(tensors_of(last))
    record = json.loads((run / "run.json").read_text(), parse_constant=pytest.fail)
    assert record["status"] == "running" and [w["step"] for w in record["warnings"]] == [6]
    tokenizer = AutoTokenizer.from_pretrained(flags[1])
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in seen[6]]
    assert len(texts) == 8  # two micro-batches of four rows, each with the broken loss
    question = texts[0].split("?")[0].strip()[-12:]
    assert question in line and "and 5 more" in line


def test_a_gradient_that_is_not_finite_ends_the_run_though_its_loss_is(flags, run, capsys, monkeypatch):
    def poisoned(loss, trainer):
        assert not trainer.args.logging_nan_inf_filter  # it would log a mean in place of such a loss
        weight = trainer.model.get_input_embeddings().weight
        return loss + (weight.flatten()[0] * 0).sqrt() * 0  # 0 with the derivative 0 x infinity

    patched_loss(monkeypatch, 3, poisoned)
    line = stopped(capsys, "sft", *flags)
    assert "error: sft stopped at step 3: the gradient norm is nan, the loss 5." in line
    assert kept(run) == ["checkpoint-2"]


def test_without_a_checkpoint_the_line_says_so_and_a_lower_rate_goes_on(tmp_path, capsys):
    texts = write_texts(tmp_path / "texts.jsonl")
    command = ["pretrain", "--dataset_name", texts, "--max_length=64", *TINY, *RUN]
    line = stopped(capsys, *command, "--output_dir", tmp_path / "a", "--learning_rate=1e6")
    assert "stopped at step 3: the gradient norm is nan" in line or "the loss is nan" in line
    assert "(now 1e+06)" in line and f"remove {tmp_path / 'a'} first" in line
    run_here(*command, "--output_dir", tmp_path / "b", "--learning_rate=1e-3")
    assert record_of(tmp_path / "b")["status"] == "finished" and record_of(tmp_path / "b")["warnings"] == []


def test_overflows_of_float16_are_left_to_its_scaler(flags, monkeypatch):
    """The scaler lowers its scale at each; only many in a row are the end."""
    watch = Divergence.__new__(Divergence)
    watch.trainer = SimpleNamespace(args=SimpleNamespace(device=torch.device("cpu")))
    watch.overflows, stops = 0, []
    monkeypatch.setattr(Divergence, "_stop_at", lambda *_: stops.append(watch.overflows))
    for norm in [math.inf] * 24 + [1.0] + [math.inf] * 25:
        watch.losses, watch.batches, watch.norm = [torch.tensor(2.0)], [None], torch.tensor(norm)
        watch.on_pre_optimizer_step(SimpleNamespace(fp16=True), None, None)
    assert stops == [25]
    watch.losses = [torch.tensor(math.nan)]
    watch.on_pre_optimizer_step(SimpleNamespace(fp16=True), None, None)
    assert len(stops) == 2


PROGRAM = """
import os, runpy, sys
from fourstage.instruction import InstructTrainer

plain = InstructTrainer.compute_loss


def compute_loss(self, model, inputs, *args, **kwargs):
    loss = plain(self, model, inputs, *args, **kwargs)
    if not self.model.training or self.state.global_step + 1 != 4 or os.environ["RANK"] != "1":
        return loss
    for row in inputs["input_ids"].tolist():
        print("BROKEN", repr(self.processing_class.decode(row)[:20]), file=sys.stderr, flush=True)
    return loss + float("inf")


InstructTrainer.compute_loss = compute_loss
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_two_processes_end_together_and_tell_the_rows_of_the_other(flags, run, tmp_path):
    """The gradient is finite: only the second process could know."""
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run_program(*launch, tmp_path / "program.py", RECIPES / "sft.py", *flags, ok=False)
    (line,) = re.findall(r"error: sft stopped.*", done.stderr)
    assert "at step 4: the loss is inf" in line and kept(run) == ["checkpoint-2"]
    begin = line.index("rows begin")
    rows = [literal_eval(text) for text in re.findall(r"BROKEN (.*)", done.stderr)]
    assert len(rows) == 4 and all(repr(row)[:-1] in line[begin:] for row in rows[:3]) and "and 1 more" in line


# Weights


def test_weights_that_an_optimizer_broke_reach_no_checkpoint(flags, run, capsys, monkeypatch):
    broken_at(monkeypatch, 4, break_head)
    line = stopped(capsys, "sft", *flags, "--save_total_limit=1", "--eval_strategy=no")
    assert (
        "stopped at step 4: its weights after step 4 are not finite: lm_head.weight holds NaN or infinity (1 " in line
    )
    assert kept(run) == ["checkpoint-2"]


@pytest.mark.parametrize("lora", [False, True])
def test_weights_that_broke_at_the_last_step_are_not_finished(flags, run, capsys, monkeypatch, lora):
    def broken(model):
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if p.requires_grad and p.ndim == 2)[0, 0] = math.nan

    broken_at(monkeypatch, 8, broken)
    line = stopped(capsys, "sft", *flags, "--save_strategy=no", *(["--use_peft"] if lora else []))
    assert "the trained weights are not finite" in line
    assert record_of(run)["status"] == "running" and not list(run.glob("**/*.safetensors"))


def test_a_result_that_is_not_finite_is_not_left(model, tmp_path, capsys):
    """Merging an adapter may overflow what training did not."""
    check_result(tmp_path, model, None)
    check_result(tmp_path, model, model.state_dict())
    state = {**model.state_dict(), "lm_head.weight": torch.full((2, 2), math.inf)}
    with pytest.raises(SystemExit):
        check_result(tmp_path, model, state)
    assert "lm_head.weight holds NaN or infinity (1 tensors in all)" in capsys.readouterr().err
    break_head(model, math.nan)
    with pytest.raises(SystemExit):
        check_result(tmp_path, model, None)


def test_a_checkpoint_with_such_weights_is_named_before_the_first_step(flags, run, capsys):
    run_here("sft", *flags)
    cut_off(run, 8)
    checkpoint = run / "checkpoints" / "checkpoint-8"
    weights = tensors_of(checkpoint)
    weights["lm_head.weight"][0, 0] = math.nan
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    line = stopped(capsys, "sft", *flags)
    assert line == (
        f"error: {checkpoint}: its weights are not finite: lm_head.weight holds NaN or infinity (1 tensors in all); "
        "delete that checkpoint"
    )


# Parents


@pytest.fixture
def broken_base(base, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(base, folder)
    weights = tensors_of(folder)
    weights["model.layers.1.mlp.up_proj.weight"][2, 7] = -math.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_every_way_to_open_a_model_names_weights_that_are_not_finite(broken_base):
    backbone = broken_base.with_name("backbone")  # as PPO's critic is saved
    AutoModel.from_pretrained(broken_base).save_pretrained(backbone)
    for opened, folder in ((open_causal_lm, broken_base), (open_scorer, broken_base), (open_backbone, backbone)):
        with pytest.raises(ValueError, match="its weights are not finite: .*layers.1.mlp.up_proj.weight holds NaN"):
            opened(str(folder))


ROWS = {
    "sft": '{{"question": "What is {0} and 2?", "answer": "It is {0}."}}',
    "reward": '{{"prompt": "What is {0}?", "chosen": "It is {0}.", "rejected": "No {0}."}}',
    "ppo": '{{"prompt": "What is {0} and 2?"}}',
    "grpo": '{{"question": "What is {0} and 2?", "answer": "{0}"}}',
}


@pytest.mark.parametrize("stage", ROWS)
def test_a_parent_with_such_weights_is_named_by_each_stage(broken_base, tmp_path, stage):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(ROWS[stage].format(i) + "\n" for i in range(40)))
    rewards = {"ppo": ["--reward_funcs", "length"], "grpo": ["--reward_funcs", "number"]}
    more = [*rewards[stage], "--max_completion_length=8"] if stage in rewards else []
    flags = ["--model_name_or_path", broken_base, "--dataset_name", data, "--output_dir", tmp_path / "run"]
    with pytest.raises(ValueError, match=f"{broken_base}: its weights are not finite"):
        run_here(stage, *flags, *SMALL_RUN, *more)
    assert not list((tmp_path / "run").glob("**/*.safetensors"))


def test_measure_and_chat_name_it(broken_base, monkeypatch):
    with pytest.raises(ValueError, match="its weights are not finite"):
        open_speaker(str(broken_base))
    measure = load_recipe("measure")
    monkeypatch.setattr(sys, "argv", ["measure.py", str(broken_base)])
    with pytest.raises(ValueError, match="its weights are not finite"):
        measure.main(measure.arguments())


# Signs


def test_warnings_are_in_run_json_and_a_resumed_run_has_the_same(flags, run, capsys):
    hot = [*flags, "--learning_rate=10"]
    run_here("sft", *hot)
    said = [line for line in capsys.readouterr().err.split("\n") if "warning: step" in line]
    straight = record_of(run)["warnings"]
    assert [(w["kind"], w["grave"]) for w in straight][-1] == ("loss_diverged", True) and len(said) == len(straight)
    cut_off(run, 8)
    assert "warnings" in record_of(run)
    run_here("sft", *hot)
    assert record_of(run)["warnings"] == straight


def test_stop_on_divergence_ends_at_a_grave_sign(flags, run, capsys):
    line = stopped(capsys, "sft", *flags, "--learning_rate=10", "--stop_on_divergence")
    assert "(stop_on_divergence)" in line and "training" in line and "the last good checkpoint is" in line
    assert record_of(run)["status"] == "running" and "model.safetensors" not in files_in(run)


# Parts


def test_rows_are_shown_by_their_beginnings_with_control_characters_escaped():
    assert shown_rows([]) == ""
    assert shown_rows(["a\x1b[31m", "b"]) == r"; its rows begin 'a\x1b[31m', 'b'"
    assert shown_rows(["x" * 99, "2", "3", "4", "5"]) == f"; its rows begin '{'x' * 60}', '2', '3' and 2 more"


def test_the_last_good_checkpoint_is_a_finished_one_of_a_step_before(tmp_path):
    """In the order of the steps; what an earlier course left beyond the step does not count."""
    for step in (2, 10, 9, 40):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoints" / "checkpoint-11").mkdir()  # cut off
    assert last_checkpoint(tmp_path, 12) == tmp_path / "checkpoints" / "checkpoint-10"
    assert last_checkpoint(tmp_path, 1) is None


def test_not_finite_finds_each_kind_of_it_in_each_type():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for value in (math.nan, math.inf, -math.inf):
            for place in (0, 500, 999):
                weight = torch.randn(1000).to(dtype)
                weight[place] = value
                assert not_finite({"a": torch.ones(3), "b": weight, "c": torch.ones(2, dtype=torch.int8)}) == ["b"]
    largest = torch.tensor([torch.finfo(torch.float16).max, -torch.finfo(torch.float16).max], dtype=torch.float16)
    assert (
        not_finite({"largest": largest.repeat(9), "empty": torch.empty(0), "none": torch.empty(2, device="meta")}) == []
    )
