"""PPO-ptx against loops, transformers' own loss and recipes/sft.py: which rows come, what they add, what is refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import SMALL_RUN, TINY, cut_off, files_in, record_of, run_here, write_chats, write_texts
from peft import LoraConfig
from ppo_helpers import (
    assert_equal_weights,
    count_a,
    critic_weights,
    logged,
    policy_weights,
    ppo_trainer,
    ptx_rows,
    tiny_policy,
)
from trl import SFTConfig, SFTTrainer

from fourstage.arguments import DataArguments
from fourstage.data.loading import load_conversations
from fourstage.doctor import runs
from fourstage.doctor.command import _open_run
from fourstage.models.opening import open_tokenizer
from fourstage.models.tokenizer import mark_generation
from fourstage.ppo.config import PPORunConfig
from fourstage.ppo.ptx import PtxBatches, language_model_nats, load_ptx, ptx_batch


def mean_loss(model, batch):
    nats, tokens = language_model_nats(model, *batch)
    return nats / tokens


def rows_in(batch):
    """The rows of a batch without their padding, as lists of ids and of labels."""
    for ids, mask, labels in zip(*batch, strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and not mask[length:].any()
        assert (labels[length:] == -100).all()
        yield tuple(ids[:length].tolist()), tuple(labels[:length].tolist())


def test_every_row_comes_once_in_each_shuffle_and_each_shuffle_is_another():
    rows = ptx_rows(10)
    known = {tuple(row["input_ids"]): tuple(row["labels"]) for row in rows}
    series = [row for place in range(10) for row in rows_in(ptx_batch(rows, 3, place, 4))]
    assert all(known[ids] == labels for ids, labels in series)
    rounds = [[ids for ids, _ in series[i : i + 10]] for i in range(0, 40, 10)]
    assert all(Counter(one) == Counter(tuple(row) for row in rows["input_ids"]) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 4


def test_any_batch_can_be_asked_for_and_small_ones_make_a_large_one():
    """Two processes with 4 rows each read what one with 8 reads."""
    rows = ptx_rows(10)
    whole = [*rows_in(ptx_batch(rows, 0, 5, 8))]
    assert whole == [*rows_in(ptx_batch(rows, 0, 10, 4)), *rows_in(ptx_batch(rows, 0, 11, 4))]
    assert whole != [*rows_in(ptx_batch(rows, 1, 5, 8))]


def test_the_loss_is_that_of_transformers_and_of_each_row_alone():
    model, (ids, mask, labels) = tiny_policy(), ptx_batch(ptx_rows(), 0, 0, 6)
    ours = mean_loss(model, (ids, mask, labels))
    assert ours.item() == pytest.approx(model(input_ids=ids, attention_mask=mask, labels=labels).loss.item(), rel=1e-5)
    surprises = []
    with torch.no_grad():
        for row, targets in rows_in((ids, mask, labels)):
            logps = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            surprises += [-logps[t - 1, row[t]].item() for t in range(1, len(row)) if targets[t] != -100]
    assert len(surprises) == 18
    assert ours.item() == pytest.approx(np.mean(surprises), rel=1e-5)


def gradients(trainer):
    """Of the first micro-batch of a rollout."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    inputs = trainer._prepare_inputs([trainer.train_dataset[i] for i in range(8)])
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def test_the_gradient_is_that_of_ppo_and_a_share_of_that_of_the_rows(tmp_path):
    """Of two micro-batches, the first adds ptx_coef times its part in the mean over the tokens of both."""
    rows = ptx_rows()
    rows = rows.map(lambda row, i: {"labels": [-100] * (i % 3 + 1) + row["labels"][i % 3 + 1 :]}, with_indices=True)
    plain = gradients(ppo_trainer(tmp_path / "plain"))
    trainer = ppo_trainer(tmp_path / "ptx", ptx_dataset=rows, ptx_coef=0.6, ptx_batch_size=3)
    both = gradients(trainer)
    model, (ids, mask, labels), second = tiny_policy(), ptx_batch(rows, 0, 0, 3), ptx_batch(rows, 0, 1, 3)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    learnt, others = ((part[:, 1:] != -100).sum() for part in (labels, second[2]))
    assert learnt != others
    for name, p in model.named_parameters():
        expected = plain[name] + 0.6 * p.grad * learnt / (learnt + others)
        torch.testing.assert_close(both[name], expected, rtol=1e-4, atol=1e-6)
    assert trainer._metrics["train"]["loss/ptx_avg"] == [pytest.approx(loss.item(), rel=1e-5)]


def test_tokens_of_batches_are_counted_over_shuffles():
    rows = ptx_rows(10)
    batches = PtxBatches(rows, 3, 4)
    for first, number in ((0, 1), (1, 3), (4, 2)):
        labels = [part for place in range(first, first + number) for part in batches.at(place)[2]]
        assert batches.tokens(first, number) == sum(int((part[1:] != -100).sum()) for part in labels)
    nothing = Dataset.from_dict({"input_ids": [[5, 6]] * 4, "labels": [[5, -100]] * 4})  # a first token is not learnt
    assert PtxBatches(nothing, 0, 2).tokens(0, 2) == 1


def test_each_micro_batch_of_a_run_learns_the_next_rows(tmp_path, monkeypatch):
    places = []
    original = ptx_batch
    monkeypatch.setattr("fourstage.ppo.ptx.ptx_batch", lambda *given: places.append(given[1:]) or original(*given))
    trainer = ppo_trainer(tmp_path, ptx_dataset=ptx_rows(), seed=7, eval_dataset=None)
    trainer.train()
    assert places == [(7, place, 2) for place in range(8 * 2)]
    assert len(logged(trainer, "loss/ptx_avg")) == 2  # updates


@pytest.mark.parametrize("adapters", [False, True])
def test_the_rows_are_learnt_while_the_rewards_are(tmp_path, adapters):
    def trained(name, **more):
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapters else None
        given = {"reward": count_a, "max_steps": 48, "learning_rate": 1e-2, "peft_config": lora, **more}
        trainer = ppo_trainer(tmp_path / name, **given)
        trainer.train()
        with torch.no_grad():
            surprise = mean_loss(trainer.model, ptx_batch(ptx_rows(), 0, 0, 24)).item()
        return surprise, logged(trainer, "objective/scores")

    without, scores = trained("without")
    learnt, scores_beside = trained("with", ptx_dataset=ptx_rows(), ptx_coef=0.3)
    assert learnt < without - 0.5
    for series in (scores, scores_beside):
        assert series[-1] > series[0] + 0.2


def test_the_critics_warm_up_leaves_the_policy_alone(tmp_path):
    trainer = ppo_trainer(tmp_path, ptx_dataset=ptx_rows(), critic_warmup_steps=8)
    policy, critic = policy_weights(trainer), critic_weights(trainer)
    trainer.train()
    assert_equal_weights(policy, policy_weights(trainer))
    assert any(not torch.equal(value, critic[name]) for name, value in critic_weights(trainer).items())


@pytest.mark.parametrize("rows", [Dataset.from_dict({"text": ["a"]}), ptx_rows().select([])])
def test_other_rows_and_none_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="ptx_dataset has . rows.*needs at least one row"):
        ppo_trainer(tmp_path, ptx_dataset=rows)


# Rows from a name


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A finished base of 43,000 parameters, conversations, and the flags of a PPO run."""
    folder = tmp_path_factory.mktemp("stages")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    run_here("pretrain", "--dataset_name", texts, "--max_length=96", "--output_dir", folder / "base", *TINY, *SMALL_RUN)
    flags = ["--model_name_or_path", folder / "base", "--dataset_name", chats, "--reward_funcs", "test_ppo_ptx.length"]
    flags += ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--num_iterations=2"]
    flags += ["--max_completion_length=8", "--max_eval_rows=8", "--report_to=none", "--learning_rate=1e-3"]
    return folder, [*flags, "--max_steps=8", "--save_steps=4", "--save_total_limit=3", "--eval_strategy=no"]


def length(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def test_rows_are_labelled_as_trl_labels_those_of_stage_2(stages, tmp_path):
    folder, _ = stages
    tokenizer = open_tokenizer(folder / "base")
    own, name = tokenizer.chat_template, str(folder / "chats.jsonl")
    args = PPORunConfig(output_dir=str(tmp_path), ptx_dataset_name=name, seed=3)
    found = load_ptx(args, DataArguments(), tokenizer, 96)
    assert tokenizer.chat_template == own
    train, _ = load_conversations(DataArguments(dataset_name=name), 3)
    mark_generation(tokenizer)
    config = SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=96, use_cpu=True, report_to="none")
    trainer = SFTTrainer(tiny_policy(), config, train_dataset=train, processing_class=tokenizer)
    assert len(found) == len(train) == len(trainer.train_dataset)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(found))])
    for row, ids, labels in zip(found, batch["input_ids"], batch["labels"], strict=True):
        assert row["input_ids"] == ids[: len(row["input_ids"])].tolist()
        assert row["labels"] == labels[: len(row["labels"])].tolist()
        assert (labels[len(row["labels"]) :] == -100).all()


def test_rows_that_are_too_long_are_counted_and_without_a_name_there_are_none(stages, tmp_path, capsys):
    folder, _ = stages
    tokenizer, rows = open_tokenizer(folder / "base"), [("Say a.", "a"), ("Say b.", "b"), ("Say more.", "more " * 90)]
    text = "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows)
    (tmp_path / "rows.jsonl").write_text(text * 2 + json.dumps({"prompt": "Say c.", "completion": "c"}))
    args = PPORunConfig(output_dir=str(tmp_path), ptx_dataset_name=str(tmp_path / "rows.jsonl"))
    found = load_ptx(args, DataArguments(test_split_size=0.5), tokenizer, 96)
    assert "rows dropped, longer than 96 tokens" in capsys.readouterr().out
    assert len(found) > 0 and max(map(len, found["input_ids"])) <= 96
    args.ptx_dataset_name = None
    assert load_ptx(args, DataArguments(), tokenizer, 96) is None


def test_a_recipe_records_the_rows_and_goes_on_with_the_same_ones_only(stages, tmp_path, capsys):
    folder, flags = stages
    chats = tmp_path / "more.jsonl"
    chats.write_text((folder / "chats.jsonl").read_text())
    flags = [
        *flags,
        "--ptx_dataset_name",
        chats,
        "--ptx_coef=0.5",
        "--ptx_batch_size=2",
        "--output_dir",
        tmp_path / "run",
    ]
    run_here("ppo", *flags)
    record = record_of(tmp_path / "run")
    assert {part["name"] for part in record["datasets"]} == {"chats.jsonl", "more.jsonl"}
    assert record["data"].keys() == record["row_hashes"].keys() == {"train", "test", "ptx"}
    assert "rows learnt on beside the rewards" in capsys.readouterr().out
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in logs if "loss/ptx_avg" in entry]) == 4  # updates
    rows_as_recorded = lambda: [found.level for found in runs.data(_open_run(str(tmp_path / "run")))]  # noqa: E731
    assert rows_as_recorded() == ["ok"]
    changed = chats.read_text().splitlines()
    chats.write_text("\n".join([*changed[:-1], changed[-1].replace("It is", "It was")]))
    assert rows_as_recorded() == ["FAIL"]
    cut_off(tmp_path / "run", step=4)
    assert rows_as_recorded() == ["unknown"]  # without the tokenizer
    with pytest.raises(ValueError, match="the data changed since this run began"):
        run_here("ppo", *flags)
    chats.write_text("\n".join(changed) + "\n")
    run_here("ppo", *flags)
    assert "from checkpoint-4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "why"),
    [({"text": "Once upon a time"}, "text"), ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen")],
)
def test_rows_of_other_stages_are_refused_before_the_first_step(stages, tmp_path, row, why):
    _, flags = stages
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    with pytest.raises(ValueError, match=why):
        run_here("ppo", *flags, "--ptx_dataset_name", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "run")
    assert not [name for name in files_in(tmp_path / "run") if name.endswith((".safetensors", ".pt"))]


def test_rows_that_are_not_there_are_refused_before_anything_is_written(stages, tmp_path):
    _, flags = stages
    with pytest.raises(ValueError, match="missing.jsonl"):
        run_here("ppo", *flags, "--ptx_dataset_name", tmp_path / "missing.jsonl", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
