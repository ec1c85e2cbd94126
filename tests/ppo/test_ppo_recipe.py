"""recipes/ppo.py on tiny models and data: what it leaves, resumes, refuses, and that the rewards see their columns."""

import json

import pytest
import torch
from helpers import SMALL_RUN, TINY, cut_off, files_in, record_of, run_here, tensors_of, write_chats, write_texts
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.arguments import DataArguments
from fourstage.data import formats
from fourstage.data.loading import load_prompts
from fourstage.ppo.critic import load_critic

RUN = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--num_iterations=2", "--max_steps=8"]
RUN += ["--max_completion_length=8", "--eval_steps=4", "--max_eval_rows=8", "--report_to=none", "--learning_rate=1e-3"]


def digits(prompts, completions, answer, **kwargs):
    """The share of digits; `answer` must come with every row."""
    assert len(answer) == len(completions) and all(text.startswith("It is") for text in answer)
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter.isdigit() for letter in text) / (len(text) + 1) for text in texts]


def gold(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A finished base and reward model of 43,000 parameters, questions with answers, and the flags of a PPO run."""
    folder = tmp_path_factory.mktemp("stages")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    run_here("pretrain", "--dataset_name", texts, "--max_length=96", "--output_dir", folder / "base", *TINY, *SMALL_RUN)
    pairs = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    parent = ["--model_name_or_path", folder / "base"]
    run_here("reward", *parent, "--dataset_name", folder / "pairs.jsonl", "--output_dir", folder / "reward", *SMALL_RUN)
    return folder, [*parent, "--dataset_name", chats, *RUN]


def test_a_run_with_a_reward_model_a_function_and_a_gold_one(stages, tmp_path):
    folder, flags = stages
    functions = ["--reward_funcs", "test_ppo_recipe.digits", "--gold_func", "test_ppo_recipe.gold"]
    scorer = ["--reward_model_name_or_path", folder / "reward", "--reward_weights", "1.0", "0.5"]
    run_here("ppo", *flags, *functions, *scorer, "--output_dir", tmp_path / "run")
    files = files_in(tmp_path / "run")
    assert {"model.safetensors", "value/model.safetensors", "value/value_head.safetensors"} <= files
    assert {"run.json", "samples.jsonl", "README.md", "completions.jsonl", "trainer_state.json"} <= files
    assert not [name for name in files if "training_args" in name]
    assert "value" not in " ".join(tensors_of(tmp_path / "run"))
    record = record_of(tmp_path / "run")
    assert record["status"] == "finished" and record["reward_model"]["path"] == str(folder / "reward")
    for name in ("eval_objective/scores", "eval_objective/kl", "eval_rewards/gold/mean", "eval_rewards/digits/mean"):
        assert name in record["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {0, 2, 4, 6, 8}
    assert {line["held_out"] for line in lines} == {True, False}
    assert set(lines[0]["rewards"]) == {"reward", "digits", "gold"}
    AutoTokenizer.from_pretrained(tmp_path / "run")
    before, after = tensors_of(folder / "base"), AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert any(not torch.equal(value, before[name]) for name, value in after.state_dict().items())
    load_critic(str(tmp_path / "run" / "value"))


def test_a_resumed_run_equals_an_uninterrupted_one(stages, tmp_path, capsys):
    """Sampled answers of the lost part are written anew, not twice."""
    _, flags = stages
    flags = [*flags, "--reward_funcs", "test_ppo_recipe.digits", "--save_steps=4", "--save_total_limit=5"]
    for name in ("straight", "cut"):
        run_here("ppo", *flags, "--output_dir", tmp_path / name)
    completions = (tmp_path / "cut" / "completions.jsonl").read_text()
    cut_off(tmp_path / "cut", step=4)
    (tmp_path / "cut" / "completions.jsonl").write_text(completions)
    run_here("ppo", *flags, "--output_dir", tmp_path / "cut")
    assert "from checkpoint-4" in capsys.readouterr().out
    for name, value in tensors_of(tmp_path / "straight").items():
        assert torch.equal(tensors_of(tmp_path / "cut")[name], value), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "completions.jsonl").read_text().splitlines()]
    assert steps.count(8) == completions.count('"step": 8')


def test_adapters_are_merged_and_the_critics_kept_apart(stages, tmp_path):
    folder, flags = stages
    flags = [*flags, "--reward_funcs", "test_ppo_recipe.digits", "--use_peft", "--learning_rate=0.02"]
    run_here("ppo", *flags, "--output_dir", tmp_path / "run")
    files = files_in(tmp_path / "run")
    assert {"adapter/adapter_model.safetensors", "value/value/adapter_model.safetensors"} <= files
    assert not [name for name in files if name.startswith("adapter/value")]
    ids = torch.arange(20).view(1, 20)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-5)


def test_long_prompts_are_dropped_or_refused(stages, tmp_path, capsys):
    _, flags = stages
    rows = [{"question": "word " * 40 if i == 3 else f"What is {i}?", "answer": "It is."} for i in range(40)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*flags, "--dataset_name", tmp_path / "long.jsonl", "--reward_funcs", "test_ppo_recipe.digits"]
    run_here("ppo", *flags, "--output_dir", tmp_path / "run")
    assert "1 of " in capsys.readouterr().out
    with pytest.raises(ValueError, match="raise --max_length|--overlong drop"):
        run_here("ppo", *flags, "--overlong=error", "--output_dir", tmp_path / "other")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "reward_model_name_or_path.*reward_funcs"),
        (["--reward_model_name_or_path", "runs/none"], "runs/none does not exist"),
        (["--reward_funcs", "nowhere.f"], "cannot be imported"),
        (["--reward_funcs", "math.dist", "--reward_weights", "1", "2"], "reward_weights=.* must be 1"),
    ],
)
def test_wrong_rewards_leave_nothing_behind(stages, tmp_path, flags, why):
    with pytest.raises(ValueError, match=why):
        run_here("ppo", *stages[1], *flags, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Prompts


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b", "kind": None},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "b"}],
        },
    ],
)
def test_a_prompt_of_any_row(row):
    assert formats.prompt_row(row)["prompt"] == [{"role": "user", "content": "Hi"}]


def test_columns_for_the_rewards_are_kept():
    row = formats.prompt_row({"question": "1 + 1?", "answer": "2", "nums": [1, 1], "output": "two"})
    assert row == {"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "2", "nums": [1, 1]}


def test_rows_that_ask_nothing():
    assert formats.prompt_row({"prompt": " "}) is None
    with pytest.raises(ValueError, match=r"columns \['text'\] hold no prompt"):
        formats.prompt_row({"text": "a"})
    with pytest.raises(ValueError, match="ends with the assistant's turn"):
        formats.prompt_row({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


@pytest.mark.parametrize("streaming", [False, True])
def test_no_prompt_is_on_both_sides(tmp_path, streaming):
    data = [{"prompt": f"Say {i % 20}", "chosen": f"{i}", "rejected": "no", "answer": i} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    args = DataArguments(dataset_name=str(tmp_path / "pairs.jsonl"), test_split_size=0.3, dataset_streaming=streaming)
    train, test = load_prompts(args, seed=0)
    prompts = [{row["prompt"][0]["content"] for row in part} for part in (train, test)]
    assert prompts[0].isdisjoint(prompts[1]) and len(prompts[0] | prompts[1]) == 20
    assert all(set(row) == {"prompt", "answer"} for row in train)
