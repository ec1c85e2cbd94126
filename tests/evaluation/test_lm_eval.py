"""lm-eval's numbers on a stage folder against counting and log-likelihoods by hand; what --tasks refuses."""

import functools
import json
import math
import re
import statistics
import sys

import pytest
import torch
from helpers import ROOT, load_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fourstage.models.tokenizer import train_tokenizer

pytest.importorskip("lm_eval", reason="needs the extra eval")

TASKS = ROOT / "recipes" / "tasks"
ROWS = [json.loads(line) for line in (TASKS / "sums.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(model, tokenizer, tmp_path, monkeypatch):
    """A saved random model from elsewhere: no run.json. The example's data file is named from the repository's root."""
    monkeypatch.chdir(ROOT)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluate(folder, *flags):
    """Runs the recipe in this process; returns what it left in evaluation.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["measure.py", str(folder), *map(str, flags)])
        patch.setattr(sys, "path", list(sys.path))
        recipe = load_recipe("measure")
        recipe.main(recipe.arguments())
    return json.loads((folder / "evaluation.json").read_text())


def made_by(folder, stage):
    record = {"status": "finished", "stage": stage, "arguments": {"training": {}, "data": {}}}
    record |= {"seed": 0, "versions": {}}
    (folder / "run.json").write_text(json.dumps(record))


def asked(tokenizer, question, chat):
    """The token ids of a question, begun with one BOS either way."""
    if chat:
        turns = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    return tokenizer(question)["input_ids"]


# The numbers


@pytest.mark.parametrize("chat", [True, False])
def test_a_choice_is_the_likeliest_answer(folder, model, tokenizer, chat):
    """acc: the sum of the choice's log-probabilities, each choice alone, without padding; acc_norm: per byte."""
    row = evaluate(
        folder, "--tasks=sums_choose", "--include_path", TASKS, f"--{'' if chat else 'no-'}apply_chat_template"
    )
    hits, per_byte = [], []
    for item in ROWS:
        start = asked(tokenizer, item["question"], chat)
        scores = []
        for choice in item["choices"]:
            end = tokenizer(choice if chat else f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([start + end])).logits[0].double().log_softmax(-1)
            scores.append(sum(logits[len(start) + i - 1, token].item() for i, token in enumerate(end)))
        normed = [score / len(choice) for score, choice in zip(scores, item["choices"], strict=True)]
        hits.append(float(scores.index(max(scores)) == item["right"]))
        per_byte.append(float(normed.index(max(normed)) == item["right"]))
    found = row["tasks"]["sums_choose"]
    assert 0 < sum(hits) < len(hits)
    assert found["acc"] == pytest.approx(statistics.fmean(hits))
    assert found["acc_norm"] == pytest.approx(statistics.fmean(per_byte))
    assert found["acc_stderr"] == pytest.approx(statistics.stdev(hits) / math.sqrt(len(hits)))
    assert (found["n"], found["chat"]) == (len(ROWS), chat)


@pytest.fixture(scope="module")
def adder(tmp_path_factory):
    """A model that learned half of the rows by heart, saved: some generated answers are right, some are not."""
    torch.manual_seed(0)
    texts = [f"{row['question']} {row['answer']}" for row in ROWS]
    tokenizer = train_tokenizer(texts * 3, 384, 128)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **ids, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    turns = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": f"It is {row['answer']}."}]
        for row in ROWS[::2]
    ]
    batch = tokenizer.apply_chat_template(turns, padding=True, return_tensors="pt", return_dict=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("adder")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_generated_answer_is_right_by_its_last_number(adder, monkeypatch):
    """exact_match after the task's filter against `generate` and a count, question by question."""
    monkeypatch.chdir(ROOT)
    found = evaluate(adder, "--tasks=sums_generate", "--include_path", TASKS)["tasks"]["sums_generate"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(adder), AutoTokenizer.from_pretrained(adder)
    hits = []
    for row in ROWS:
        prompt = torch.tensor([asked(tokenizer, row["question"], chat=True)])
        output = model.generate(prompt, max_new_tokens=64, do_sample=False)[0, prompt.shape[1] :]
        numbers = re.findall("-?[0-9]+", tokenizer.decode(output, skip_special_tokens=True))
        hits.append(float(bool(numbers) and numbers[-1] == row["answer"]))
    assert 10 < sum(hits) < len(hits)
    assert found["exact_match,last-number"] == pytest.approx(statistics.fmean(hits))
    error = statistics.stdev(hits) / math.sqrt(len(hits))
    assert found["exact_match_stderr,last-number"] == pytest.approx(error)


# What evaluation.json keeps, and how a model is asked


def test_results_stand_beside_what_is_there(folder, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "bab kof lil"}\n' * 4)
    texts = ["--stage=pretrain", "--dataset_name", tmp_path / "texts.jsonl"]
    bits = evaluate(folder, *texts)["bits_per_byte"]
    both = ["--include_path", TASKS, "--max_rows=8"]
    evaluate(folder, "--tasks=sums_choose", *both)
    row = evaluate(folder, "--tasks=sums_generate", *both)
    assert row["bits_per_byte"] == bits and set(row["tasks"]) == {"sums_choose", "sums_generate"}
    assert row["tasks"]["sums_choose"]["n"] == 8
    assert evaluate(folder, *texts) == row  # neither measurement takes away the other's


@pytest.mark.parametrize(
    "stage, flags, chat",
    [
        ("pretrain", [], False),
        ("sft", [], True),
        (None, [], True),  # from elsewhere, with a chat template
        ("pretrain", ["--apply_chat_template"], True),
        ("sft", ["--no-apply_chat_template"], False),
    ],
)
def test_a_tuned_model_is_asked_in_chat(folder, tokenizer, monkeypatch, stage, flags, chat):
    """As the model sees it: the token ids of the first question, with one BOS."""
    seen = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)  # generate looks at the signature
    def watched(self, input_ids, **more):
        seen.append(input_ids[0].tolist())
        return forward(self, input_ids, **more)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    if stage:
        made_by(folder, stage)
    row = evaluate(folder, "--tasks=sums_generate", "--include_path", TASKS, "--max_rows=1", *flags)
    assert row["tasks"]["sums_generate"]["chat"] is chat
    assert seen[0] == list(asked(tokenizer, ROWS[0]["question"], chat))
    assert seen[0].count(tokenizer.bos_token_id) == 1


# What is refused, each in one line and before the first question


def refusal(folder, *flags):
    with pytest.raises(ValueError) as refused:
        evaluate(folder, *flags)
    assert "\n" not in str(refused.value)
    assert not (folder / "evaluation.json").exists()
    return str(refused.value)


def write_task(folder, name, **more):
    """A task file in a folder of its own; JSON is YAML."""
    folder.mkdir(exist_ok=True)
    task = {"task": name, "dataset_path": "json", "test_split": "test", "output_type": "generate_until"}
    task |= {
        "dataset_kwargs": {"data_files": {"test": str(TASKS / "sums.jsonl")}},
        "metric_list": [{"metric": "exact_match"}],
    }
    task |= {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", **more}
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def test_without_the_extra(folder, monkeypatch):
    monkeypatch.setattr("fourstage.evaluation.lm_eval.find_spec", lambda name: None)
    assert 'pip install -e ".[eval]" -c constraints.txt' in refusal(folder, "--tasks=sums_choose")


def test_an_unknown_task_names_near_ones(folder):
    """Among lm-eval's own too, whose index takes seconds to read."""
    message = refusal(folder, "--tasks=sums_choose,arc_esy", "--include_path", TASKS)
    assert "arc_esy: lm-eval has no such task" in message and "arc_easy" in message


def test_a_folder_of_tasks_that_is_not_there(folder, tmp_path):
    assert "no such folder" in refusal(folder, "--tasks=mine", "--include_path", tmp_path / "none")


def test_data_on_the_hub_while_offline(folder, tmp_path):
    write_task(tmp_path / "mine", "far", dataset_path="owner/far", dataset_kwargs={})
    message = refusal(folder, "--tasks=far", "--include_path", tmp_path / "mine")
    assert message.startswith("--tasks far: the data cannot be loaded") and "owner/far" in message


def test_data_that_are_a_script_are_not_run(folder, tmp_path):
    script = tmp_path / "mine" / "script.py"
    write_task(tmp_path / "mine", "coded", dataset_path=str(script), dataset_kwargs={"trust_remote_code": True})
    script.write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    message = refusal(folder, "--tasks=coded", "--include_path", tmp_path / "mine")
    assert "the data cannot be loaded" in message and not script.with_suffix(".ran").exists()


@pytest.mark.parametrize("asked_for", ["runs_code", "a_group", "a_tag"])
def test_a_task_that_executes_answers(folder, tmp_path, asked_for):
    """Also in a group or under a tag, and without importing what its file names."""
    mine = tmp_path / "mine"
    write_task(mine, "runs_code", unsafe_code=True, tag="a_tag")
    (mine / "group.yaml").write_text('{"group": "a_group", "task": [{"group": "inner", "task": ["runs_code"]}]}')
    (mine / "helpers.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef text(row): return row['question']\n")
    file = mine / "runs_code.yaml"
    file.write_text(file.read_text().replace('"{{question}}"', "!function helpers.text"))
    assert "executes what the model writes" in refusal(folder, f"--tasks={asked_for}", "--include_path", mine)
    assert not (tmp_path / "ran").exists()


def test_answers_longer_than_the_context(folder, tmp_path):
    """lm-eval asks for 256 tokens where a task does not say; the model has positions for so many in all."""
    write_task(tmp_path / "mine", "long")
    assert "max_gen_toks" in refusal(folder, "--tasks=long", "--include_path", tmp_path / "mine")


def test_a_reward_model_answers_nothing(folder):
    made_by(folder, "reward")
    assert "reward model" in refusal(folder, "--tasks=sums_choose", "--include_path", TASKS)


def test_rows_of_one_s_own_have_no_place(folder):
    assert "--dataset_name" in refusal(folder, "--tasks=sums_choose", "--dataset_name=x", "--include_path", TASKS)


def test_a_chat_template_that_is_not_there(folder):
    (folder / "chat_template.jinja").unlink()
    flags = ["--tasks=sums_choose", "--include_path", TASKS]
    assert "no chat template" in refusal(folder, *flags, "--apply_chat_template")
    assert evaluate(folder, *flags, "--max_rows=2")["tasks"]["sums_choose"]["chat"] is False


def test_pickled_weights_are_not_opened(folder, model):
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pickles" in refusal(folder, "--tasks=sums_choose", "--include_path", TASKS)
