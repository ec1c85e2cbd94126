"""Reward models: the report by hand, the loss and the scores against TRL's own columns, the recipe, and bad input."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import (
    ACCELERATE,
    RECIPES,
    ROOT,
    SMALL_RUN,
    TINY,
    cut_off,
    files_in,
    load_recipe,
    record_of,
    run_here,
    run_program,
    snapshot,
    tensors_of,
    write_chats,
    write_texts,
)
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from trl import RewardConfig, RewardTrainer

from fourstage.arguments import ModelArguments
from fourstage.evaluation.reward_model import (
    answer_lengths,
    calibration_error,
    clustered_error,
    describe_report,
    hits,
    log_loss,
    longer_wins,
    preference_report,
    sample_pairs,
    score_conversations,
    score_pairs,
)
from fourstage.models.adapters import adapter_config, score_heads
from fourstage.models.loading import load_reward_model

GPT2 = ["--model_type=gpt2", "--num_parameters=45K", "--vocab_size=384", "--max_length=200"]
GPT2 += ['--config_overrides={"n_embd": 32, "n_layer": 2, "n_head": 2}']


def turns(text, role="assistant"):
    return [{"role": role, "content": text}]


def pair(chosen, rejected, prompt="a", **more):
    return {"prompt": turns(prompt, "user"), "chosen": turns(chosen), "rejected": turns(rejected), **more}


# Numbers by hand


def test_the_report_of_four_pairs_by_hand():
    rows = [
        pair("long answer", "short", "a", kind="rude"),  # right; the longer one is chosen
        pair("no", "wrong", "b", kind="rude"),  # right; the shorter one is chosen
        pair("yes", "oh", "c", kind="curt"),  # wrong; longer
        pair("ab", "cd", "d"),  # a tie in both; no kind
    ]
    report = preference_report([2.0, 1.0, 0.0, 0.5], [1.0, -1.0, 3.0, 0.5], rows, longer=True)
    # hits 1, 1, 0, 0.5; margins 1, 2, -3, 0; longer wins: 1, 0, 1, 0.5; differences 0, 1, -1, 0
    assert (report["reward_pairs"], report["reward_prompts"], report["length_baseline"]) == (4, 4, "longer wins")
    expected = {
        "reward_accuracy": 2.5 / 4,
        "reward_accuracy_stderr": np.std([1, 1, 0, 0.5], ddof=1) / 2,
        "reward_margin": 0.0,
        "reward_margin_stderr": np.std([1, 2, -3, 0], ddof=1) / 2,
        "length_baseline_accuracy": 2.5 / 4,
        "length_baseline_accuracy_stderr": np.std([1, 0, 1, 0.5], ddof=1) / 2,
        "above_length_baseline": 0.0,
        "above_length_baseline_stderr": np.std([0, 1, -1, 0], ddof=1) / 2,
        # ln(1 + e^-1), ln(1 + e^-2), ln(1 + e^3), ln 2
        "reward_log_loss": (0.31326169 + 0.12692801 + 3.04858735 + 0.69314718) / 4,
        # confidences 0.7311, 0.8808, 0.9526 and 0.5, each in a bin of its own
        "reward_calibration_error": (abs(1 - 0.73105858) + abs(1 - 0.88079708) + 0.95257413 + 0) / 4,
        "accuracy/rude": 1.0,
        "pairs/rude": 2,
        "accuracy/curt": 0.0,
        "pairs/curt": 1,
    }
    assert {name: report[name] for name in expected} == pytest.approx(expected)
    assert "does not beat the rule that the longer answer wins (62.5%)" in report["warning"]
    assert [name for name in report if name.startswith("accuracy/")] == ["accuracy/curt", "accuracy/rude"]
    text = describe_report(report)
    assert "62.5 % ± 23.9 right" in text and "rude: 100.0% of 2 right" in text and "WARNING: the model" in text


def test_the_report_warns_unless_the_model_beats_length_by_two_standard_errors():
    """n pairs, all chosen answers longer in half: length is right in half, its s.e. of the difference is known."""
    rows = [pair("long answer" if i % 2 else "a", "short", str(i)) for i in range(16)]
    sure = preference_report([1.0] * 16, [0.0] * 16, rows, longer=True)  # differences 0 and 1: 0.5 +- 0.129
    assert sure["above_length_baseline"] == 0.5 and sure["above_length_baseline_stderr"] == pytest.approx(0.1290994)
    assert "warning" not in sure and "WARNING" not in describe_report(sure)
    unsure = preference_report([1.0] * 9 + [-1.0] * 7, [0.0] * 16, rows, longer=True)
    assert unsure["above_length_baseline"] > 0 and "warning" in unsure
    one_prompt = preference_report([1.0] * 2, [0.0] * 2, [pair("b", "long")] * 2, longer=True)
    assert one_prompt["above_length_baseline"] == 1.0 and "warning" in one_prompt  # one prompt shows nothing
    shorter = preference_report([0.0, 0.0], [1.0, 1.0], [pair("b", "long", "x"), pair("b", "long", "y")], longer=False)
    assert shorter["length_baseline_accuracy"] == 1.0 and "shorter answer wins (100.0%)" in shorter["warning"]


def test_the_report_counts_prompts():
    """Two prompts with three pairs each, all alike within a prompt: the evidence of two pairs."""
    rows = [pair("bb", "a", prompt) for prompt in "xxxyyy"]
    report = preference_report([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], rows, longer=False)
    assert (report["reward_pairs"], report["reward_prompts"]) == (6, 2)
    assert report["reward_accuracy"] == report["reward_accuracy_stderr"] == 0.5
    assert report["above_length_baseline"] == report["above_length_baseline_stderr"] == 0.5 and "warning" in report


def test_calibration_error_equals_a_loop_of_numpy():
    """Pairs of a model that is nearly calibrated, so that bins miss on either side."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 500)
    margins = np.log(confidence / (1 - confidence)) * np.where(random.uniform(size=500) < confidence, 1, -1)
    edges = np.linspace(0.5, 1, 11)
    expected = 0.0
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            expected += inside.mean() * abs((margins[inside] > 0).mean() - confidence[inside].mean())
    assert calibration_error(margins.tolist()) == pytest.approx(expected)
    assert calibration_error([math.log(3)] * 2 + [-math.log(3)]) == pytest.approx(0.75 - 2 / 3)
    assert calibration_error([800.0, -800.0]) == pytest.approx(0.5)  # one of two right, sure of both


def test_log_loss_equals_torch():
    margins = [-700.0, -3.0, 0.0, 0.2, 700.0]
    expected = -F.logsigmoid(torch.tensor(margins, dtype=torch.float64)).mean().item()
    assert log_loss(margins) == pytest.approx(expected)
    assert log_loss([0.0]) == pytest.approx(math.log(2))


def test_standard_errors_count_groups():
    """Rows copied k times are no new evidence: the same standard error as without the copies."""
    values = [0.3, 1.0, 0.0, 0.7, 0.2]
    plain = np.std(values, ddof=1) / math.sqrt(5)
    assert clustered_error(values, range(5)) == pytest.approx(plain)
    assert clustered_error(values * 3, [*range(5)] * 3) == pytest.approx(plain)
    assert clustered_error([1, 1, 0, 0], "aabb") == pytest.approx(0.5)
    assert clustered_error([1, 0], "aa") == 0.0


def test_lengths_and_their_rule():
    several = pair("", "b")
    several["chosen"] = turns("abc") + turns("not counted", "user") + turns("de")
    rows = [several, pair("a", "bbb"), pair("aa", "bb")]
    assert answer_lengths(rows) == ([5, 1, 2], [1, 3, 2])
    assert hits(*answer_lengths(rows)) == [1.0, 0.0, 0.5]
    assert longer_wins(rows) and not longer_wins(rows[1:]) and longer_wins(rows[2:])


def test_samples_are_evenly_spaced():
    rows = [pair(f"c{i}", f"r{i}", f"p{i}") for i in range(10)]
    samples = sample_pairs(rows, list(range(10)), [0.5] * 10)
    assert [s["prompt"] for s in samples] == ["p0", "p3", "p6", "p9"]
    assert samples[1] == {"prompt": "p3", "completion": "c3", "score": 3, "rejected": "r3", "rejected_score": 0.5}
    assert len(sample_pairs(rows[:2], [0, 1], [0, 0])) == 2


# Scores and loss against TRL's trainer

ROWS = [
    pair("bab beb bib", "dad", "bab"),
    pair("fof", "gag gig gug gog", "lal lel lil lol lul"),
    pair("kak kek", "", "nan nen"),
    {**pair("bub", "bob"), "prompt": [*turns("dad ded", "user"), *turns("did"), *turns("dod", "user")]},
]


@pytest.fixture
def saved(model, tokenizer, tmp_path):
    """A causal LM with large random weights, as a folder."""
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def scorer(saved, tokenizer):
    """A reward model whose scores are far apart."""
    model = load_reward_model(ModelArguments(model_name_or_path=str(saved)), tokenizer)
    torch.nn.init.normal_(model.score.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    return model


def reward_trainer(model, tokenizer, rows, tmp_path, **fields):
    args = RewardConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **fields
    )
    data = Dataset.from_list(rows)
    return RewardTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)


def test_scores_are_those_of_the_trainers_own_columns(scorer, tokenizer, tmp_path):
    trainer = reward_trainer(scorer, tokenizer, ROWS, tmp_path)
    batch = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        expected = scorer.eval()(**batch).logits[:, 0]
    for batch_size in (1, 3, 16):  # with little padding, some and much
        chosen, rejected = score_pairs(scorer, tokenizer, ROWS, batch_size)
        torch.testing.assert_close(torch.tensor(chosen + rejected), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_the_score_is_read_at_the_end_token_whatever_the_padding(scorer, tokenizer):
    conversation = ROWS[1]["prompt"] + ROWS[1]["rejected"]
    ids = tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id == scorer.config.pad_token_id
    with torch.no_grad():
        hidden = scorer.model(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = (scorer.score.weight @ hidden).item()
    others = [row["prompt"] + row["chosen"] for row in ROWS] + [turns("lol " * 40, "user") + turns("lal")]
    assert score_conversations(scorer, tokenizer, [conversation]) == pytest.approx([expected], abs=1e-5)
    assert score_conversations(scorer, tokenizer, [*others, conversation])[-1] == pytest.approx(expected, abs=1e-5)


def test_margins_reach_the_loss(scorer, tokenizer, tmp_path):
    margins = [0.0, 1.5, -0.5, 3.0]
    rows = [{**row, "margin": margin} for row, margin in zip(ROWS, margins, strict=True)]
    chosen, rejected = map(np.array, score_pairs(scorer, tokenizer, ROWS))
    center = 0.01 * ((chosen + rejected) ** 2).mean()
    for data, minus in ((rows, np.array(margins)), (ROWS, 0.0)):
        trainer = reward_trainer(scorer, tokenizer, data, tmp_path, center_rewards_coefficient=0.01)
        expected = np.log1p(np.exp(-(chosen - rejected - minus))).mean() + center
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


# Loading


def reward_model(folder, tokenizer):
    return load_reward_model(ModelArguments(model_name_or_path=str(folder)), tokenizer)


def test_a_new_head_scores_near_zero_and_an_old_one_is_kept(saved, tokenizer, tmp_path, capfd):
    model = reward_model(saved, tokenizer)
    assert "LOAD REPORT" not in capfd.readouterr().err  # of a missing score and a language model's head too many
    assert model.config.num_labels == 1 and model.score.weight.shape == (1, 32)
    chosen, rejected = score_pairs(model, tokenizer, ROWS)
    assert log_loss([c - r for c, r in zip(chosen, rejected, strict=True)]) == pytest.approx(math.log(2), abs=0.02)
    assert 0.0003 < model.score.weight.std() < 0.003
    model.score.weight.data.fill_(0.25)
    model.save_pretrained(tmp_path / "scorer")
    assert (reward_model(tmp_path / "scorer", tokenizer).score.weight == 0.25).all()


@pytest.mark.parametrize(
    "model_type, head", [("llama", "score"), ("gpt2", "score"), ("bert", "classifier"), ("gpt_neox", "score")]
)
def test_the_head_is_found_and_goes_into_the_adapter(model_type, head, tokenizer):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(model_type, vocab_size=64, num_labels=1, pad_token_id=0, **shape)
    model = AutoModelForSequenceClassification.from_config(config)
    assert score_heads(model) == [head]
    settings = adapter_config(ModelArguments(use_peft=True), model, tokenizer, continues_text=False)
    assert settings.task_type == "SEQ_CLS" and settings.modules_to_save == [head]
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=64, **shape))
    settings = adapter_config(ModelArguments(use_peft=True), language_model, tokenizer, continues_text=False)
    assert settings.task_type == "CAUSAL_LM" and settings.modules_to_save is None


def test_two_labels_are_refused(saved, tokenizer, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(saved, num_labels=2).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="two is a classifier that has 2 labels, a reward model needs 1; start"):
        reward_model(tmp_path / "two", tokenizer)


def test_a_tokenizer_too_large_is_refused(saved, tokenizer):
    larger = AutoTokenizer.from_pretrained(saved)
    larger.add_tokens(["one more"])
    given = ModelArguments(model_name_or_path=str(saved), tokenizer_name="another")
    with pytest.raises(ValueError, match="tokenizer has 513 tokens, .* embeds 512; leave --tokenizer_name out"):
        load_reward_model(given, larger)


def test_a_type_without_a_classifier_is_refused(tokenizer, tmp_path):
    AutoConfig.for_model("codegen", n_embd=32, n_layer=1, n_head=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model type codegen .* no sequence classifier.*reward in docs/architectures"):
        reward_model(tmp_path, tokenizer)


# The recipe


def write_pairs(path, count=60, **more):
    """Polite against rude, so that the first step helps; prompts in pairs of rows."""
    rows = [
        {"prompt": f"What is {i // 2}?", "chosen": f"It is {i}, sir.", "rejected": f"No {i}.", **more}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row | {"kind": ("rude", "curt")[i % 2]}) + "\n" for i, row in enumerate(rows)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished base, a model tuned from it and a reward model from that; the flags of the last."""
    folder = tmp_path_factory.mktemp("reward")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    run_here("pretrain", "--dataset_name", texts, "--output_dir", folder / "base", *GPT2, *SMALL_RUN)
    tune = ["--dataset_name", chats, "--model_name_or_path", folder / "base", "--output_dir", folder / "sft"]
    run_here("sft", *tune, *SMALL_RUN)
    flags = ["--dataset_name", write_pairs(folder / "pairs.jsonl"), "--model_name_or_path", folder / "sft"]
    flags += [*SMALL_RUN, "--save_total_limit=5", "--max_steps=6", "--test_split_size=0.2", "--learning_rate=3e-3"]
    run_here("reward", *flags, "--output_dir", folder / "run")
    return folder / "run", flags


def test_the_folder_scores(trained):
    run, flags = trained
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    classify = pipeline("text-classification", model=str(run), function_to_apply="none")
    for sample in samples:
        question = turns(sample["prompt"], "user")
        sides = [question + turns(sample["completion"]), question + turns(sample["rejected"])]
        scores = score_conversations(model, tokenizer, sides)
        assert scores == pytest.approx([sample["score"], sample["rejected_score"]], abs=1e-5)
        texts = [tokenizer.apply_chat_template(side, tokenize=False) for side in sides]  # each begins with its BOS
        found = [row["score"] for row in classify(texts, add_special_tokens=False)]
        assert found == pytest.approx(scores, abs=1e-5)
    assert len(samples) == 4 and "'What is " in (run / "README.md").read_text()
    names = files_in(run)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert not [name for name in names if "training_args" in name]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (run / name).read_bytes() == (run.parent / "sft" / name).read_bytes()


def test_the_record(trained):
    run, _ = trained
    record = record_of(run)
    assert (record["status"], record["stage"]) == ("finished", "reward")
    assert record["data"]["train"].endswith("-48") and record["data"]["test"].endswith("-12")  # whole prompts
    metrics = record["metrics"]
    assert (metrics["reward_pairs"], metrics["reward_prompts"]) == (12, 6)
    assert metrics["eval_accuracy"] == metrics["reward_accuracy"] > 0.5
    assert metrics["pairs/rude"] == metrics["pairs/curt"] == 6
    assert metrics["accuracy/rude"] + metrics["accuracy/curt"] == pytest.approx(2 * metrics["reward_accuracy"])
    assert metrics["length_baseline_accuracy"] == 1.0 and "longer answer wins" in metrics["warning"]
    first = next(entry for entry in json.loads((run / "trainer_state.json").read_text())["log_history"])
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=0.01) and metrics["eval_loss"] < first["eval_loss"]


def test_it_is_finished_then_and_resumes_before(trained, tmp_path, capsys):
    run, flags = trained
    before = snapshot(run)
    with pytest.raises(SystemExit) as stopped:
        run_here("reward", *flags, "--output_dir", run)
    assert stopped.value.code == 0 and "is finished" in capsys.readouterr().out and snapshot(run) == before
    with pytest.raises(ValueError, match="seed was 42, now 1"):
        run_here("reward", *flags, "--output_dir", run, "--seed=1")

    run_here("reward", *flags, "--output_dir", tmp_path / "run")
    cut_off(tmp_path / "run", step=2)
    run_here("reward", *flags, "--output_dir", tmp_path / "run")
    assert "from checkpoint-2" in capsys.readouterr().out
    straight, resumed = tensors_of(run), tensors_of(tmp_path / "run")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    numbers = [record_of(folder)["metrics"] for folder in (run, tmp_path / "run")]
    for metrics in numbers:  # of this program's part of the run, in transformers and in TRL
        for name in [*metrics]:
            if name.endswith(("_runtime", "_per_second")) or name in ("train_loss", "eval_num_tokens"):
                del metrics[name]
    assert numbers[0] == numbers[1]


def test_what_a_person_reads(trained, tmp_path, capsys):
    run, flags = trained
    pairs = write_pairs(tmp_path / "pairs.jsonl", count=40)
    odd = [{"prompt": "b", "chosen": "c", "rejected": "c"}, {"prompt": "b", "chosen": " ", "rejected": "c"}] * 2
    odd += [{"prompt": "b", "chosen": "c " * 300, "rejected": "d"}, {"prompt": "b", "chosen": "c", "rejected": ""}]
    pairs.write_text(pairs.read_text() + "".join(json.dumps({**row, "kind": None}) + "\n" for row in odd))
    run_here("reward", *flags, "--dataset_name", pairs, "--output_dir", tmp_path / "run", "--seed=1")
    said = capsys.readouterr().out
    for text in (
        "2 of 46 rows are equal in chosen and rejected and left out",
        "2 of 46 rows are without a chosen answer and left out",
        "rows dropped, longer than 200 tokens",
        "held-out pairs right",
        "length alone (longer wins)",
        "  rude: ",
        "WARNING: the model",
        f"measure it: python recipes/measure.py {tmp_path / 'run'}",
        f"recipes/ppo.py --model_name_or_path {run.parent / 'sft'} --dataset_name DATA "
        f"--reward_model_name_or_path {tmp_path / 'run'}",
    ):
        assert text in said, text
    assert said.count("1 of") == 1  # the one long row, in one of the two parts


def test_evaluate_measures_what_the_recipe_did(trained, tmp_path, monkeypatch):
    run, flags = trained
    recipe = load_recipe("measure")

    def evaluate(*more):
        monkeypatch.setattr(sys, "argv", ["measure.py", str(run), *map(str, more)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        recipe.main(recipe.arguments())
        return json.loads((run / "evaluation.json").read_text())

    row, metrics = evaluate(), record_of(run)["metrics"]
    assert (row["stage"], row["rows"]) == ("reward", 12)
    for name in ("reward_accuracy", "reward_margin", "length_baseline_accuracy", "reward_calibration_error"):
        assert row[name] == pytest.approx(metrics[name], abs=1e-5)
    row = evaluate("--stage=reward", "--dataset_name", write_pairs(tmp_path / "more.jsonl", count=10))
    assert (row["reward_pairs"], row["reward_prompts"], row["length_baseline"]) == (10, 5, "longer wins")
    (run / "evaluation.json").unlink()


def test_an_adapter_is_merged(trained, tmp_path):
    run, flags = trained
    more = ["--use_peft", "--learning_rate=0.02", "--output_dir", tmp_path / "run"]
    run_here("reward", *flags, *more)
    straight = tensors_of(tmp_path / "run")
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= files_in(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    start = reward_model(run.parent / "sft", tokenizer)
    torch.nn.init.zeros_(start.score.weight)  # so that the head too comes from the adapter
    adapted = score_pairs(PeftModel.from_pretrained(start, tmp_path / "run" / "adapter"), tokenizer, ROWS)
    merged_model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    merged = score_pairs(merged_model, tokenizer, ROWS)
    torch.testing.assert_close(torch.tensor(merged), torch.tensor(adapted), rtol=0, atol=1e-5)
    assert torch.tensor(merged).abs().max() > 0.01
    before = tensors_of(run.parent / "sft")
    assert torch.equal(before["transformer.wte.weight"], straight["transformer.wte.weight"])
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(before[name], straight[name])

    cut_off(tmp_path / "run", step=2)
    run_here("reward", *flags, *more)
    resumed = tensors_of(tmp_path / "run")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_a_base_model_and_margins(trained, tmp_path):
    """Qwen3 from its pre-training: with an adapter the template's markers are trained too; margins change the loss."""
    texts = write_texts(tmp_path / "texts.jsonl")
    base = ["--dataset_name", texts, "--output_dir", tmp_path / "base", "--max_length=64", *TINY, *SMALL_RUN]
    run_here("pretrain", *base)
    pairs = write_pairs(tmp_path / "pairs.jsonl", margin=1.0)
    flags = ["--dataset_name", pairs, "--model_name_or_path", tmp_path / "base", *SMALL_RUN]
    run_here("reward", *flags, "--use_peft", "--output_dir", tmp_path / "run", "--learning_rate=0.02")
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["log_history"][0]["eval_loss"] == pytest.approx(math.log(1 + math.e), abs=0.01)
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "run")
    moved = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(dim=1)
    names = AutoTokenizer.from_pretrained(tmp_path / "run").convert_ids_to_tokens(moved.nonzero().flatten().tolist())
    assert sorted(names) == ["<|assistant|>", "<|bos|>", "<|eos|>", "<|user|>"]


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_the_same_batches(trained, tmp_path):
    """Plain gradient descent, as in test_recipes: an optimizer that rescales gradients would magnify noise."""
    _, flags = trained
    flags = [*flags, "--optim=sgd", "--learning_rate=0.1", "--eval_steps=3", "--save_steps=6"]
    run_here("reward", *flags, "--per_device_train_batch_size=8", "--output_dir", tmp_path / "one")
    launch = [*ACCELERATE, "--config_file", ROOT / "accelerate_configs" / "ddp.yaml", "--num_processes", "2"]
    two = ["--per_device_train_batch_size=4", "--output_dir", tmp_path / "two"]
    run_program(*launch, RECIPES / "reward.py", *flags, *two)
    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("reward_accuracy", "reward_margin", "reward_log_loss", "accuracy/rude"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-4, abs=1e-6)
    assert one["metrics"]["reward_margin"] > 0
    for name, value in tensors_of(tmp_path / "one").items():
        torch.testing.assert_close(tensors_of(tmp_path / "two")[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "row, words",
    [
        ({"question": "a", "answer": "b"}, ["['answer', 'question'] fit no known format", "chosen + rejected"]),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            ["all rows are equal in chosen and rejected", "choose other"],
        ),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, ["all rows are without a chosen answer", "choose other"]),
        ({"prompt": "a", "chosen": "b " * 300, "rejected": "b"}, ["more than 200 tokens", "raise --max_length"]),
    ],
)
def test_bad_rows_are_refused(trained, tmp_path, row, words):
    _, flags = trained
    rows = [
        {key: value if key in ("chosen", "rejected") else f"{value}{i}" for key, value in row.items()} for i in range(9)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError) as refused:
        run_here("reward", *flags, "--dataset_name", path, "--output_dir", tmp_path / "run")
    message = str(refused.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_bad_models_are_refused(trained, tmp_path):
    run, flags = trained
    with pytest.raises(ValueError, match="model_name_or_path is missing"):
        run_here("reward", "--dataset_name", "x.jsonl", "--output_dir", tmp_path / "run")
    missing = tmp_path / "runs" / "sft"
    with pytest.raises(ValueError, match=f"launch recipes/sft.py --model_name_or_path PARENT .*--output_dir {missing}"):
        run_here("reward", *flags, "--model_name_or_path", missing, "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match="overlong='keep' must be drop or error"):
        run_here("reward", *flags, "--overlong=keep", "--output_dir", tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no chat_template; name one that has with --tokenizer_name"):
        run_here("reward", *flags, "--tokenizer_name", tmp_path / "plain", "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="has 250 tokens|--overlong drop"):
        long = write_pairs(tmp_path / "pairs.jsonl", rejected="b " * 300)
        run_here("reward", *flags, "--dataset_name", long, "--overlong=error", "--output_dir", tmp_path / "run")
