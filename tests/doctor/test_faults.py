"""Planted faults: each is a real fault of a file, and the doctor has to name it. What is healthy raises nothing."""

import json
import shutil
from collections import namedtuple

import pytest
from doctor_helpers import data, healthy_rows, lines, only, recipe, write_rows
from helpers import run_here
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from fourstage.cli import main
from fourstage.doctor import launching, pairs, rows, texts
from fourstage.doctor.command import _examine, _open_model
from fourstage.doctor.light import tell_faults
from fourstage.models.loading import load_tokenizer
from fourstage.models.tokenizer import CHAT_TEMPLATE, train_tokenizer
from fourstage.plan.recipe import read_settings

STAGES = {"pretrain": "text", "sft": "conversations", "reward": "pairs", "ppo": "prompts", "grpo": "problems"}


@pytest.fixture
def flags(healthy, tmp_path):
    """The flags of a healthy run of a stage; `changed` rows take the place of the healthy ones."""

    def given(stage, changed=None, model=None, test=None):
        kind = STAGES[stage]
        folder = tmp_path / "data"
        file = write_rows(folder / "train.jsonl", changed or healthy_rows(kind))
        if test:
            write_rows(folder / "test.jsonl", test)
        words = ["--dataset_name", str(folder) if test else file, "--output_dir", str(tmp_path / "run")]
        if stage == "pretrain":
            return [*words, "--num_parameters=43K", "--vocab_size=384", "--max_length=64", "--max_steps=4"]
        words += ["--model_name_or_path", str(model or healthy / "model"), "--max_steps=4"]
        if stage in ("ppo", "grpo"):
            words += [
                "--max_completion_length=32",
                "--per_device_train_batch_size=8",
                "--gradient_accumulation_steps=1",
            ]
        words += ["--reward_model_name_or_path", str(healthy / "reward")] if stage == "ppo" else []
        return words + (["--reward_funcs", "number"] if stage == "grpo" else [])

    return given


def with_template(folder, change):
    """Changes the chat template of a saved model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = change(CHAT_TEMPLATE)
    assert tokenizer.chat_template != CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_healthy_runs_raise_nothing(stage, flags):
    subject = recipe(stage, *flags(stage))
    groups = _examine(subject)
    assert lines([finding for found in groups.values() for finding in found]) == []
    looked_at = {"texts", "rows", "start"}
    assert groups.keys() == looked_at and all(len(groups[name]) >= 3 for name in looked_at)


# Tokens and templates


def test_a_pad_that_ends(flags):
    subject = recipe("reward", *flags("reward"), "--pad_token", "<|eos|>")
    level, text = only(texts.pad_against_end(subject))
    assert level == "FAIL" and "pad_token=<|eos|> is the end token" in text


def test_a_reward_model_that_scores_at_the_wrong_token(spoilt):
    folder = spoilt("reward")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": config["eos_token_id"]}))
    (folder / "run.json").write_text(json.dumps({"status": "finished", "stage": "reward"}))
    level, text = only(texts.pad_against_end(_open_model(str(folder), [])))
    assert level == "FAIL" and "scores are read at the wrong token" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(" + eos_token", ""), "closes the assistant's turn with no token"),
        (lambda text: text.replace("+ eos_token", "+ eos_token + eos_token"), "more than once a turn: train row 1, 2"),
    ],
)
def test_ends_of_turns(change, message, flags, spoilt):
    subject = recipe("sft", *flags("sft", model=with_template(spoilt(), change)))
    level, text = only(texts.end_of_turn(subject))
    assert level == "FAIL" and message in text


def test_ends_that_are_masked(flags, spoilt):
    template = "{{- message['content'] -}}{%- endgeneration -%}{{- eos_token -}}{%- if false %}{% generation %}"
    change = lambda text: text.replace("{{- message['content'] + eos_token -}}", template).replace(  # noqa: E731
        "{% generation %}\n        {%- endgeneration -%}", "{% endif %}"
    )
    subject = recipe("sft", *flags("sft", model=with_template(spoilt(), change)))
    level, text = only(texts.end_of_turn(subject))
    assert level == "FAIL" and "<|eos|> is never trained in train row 1, 2" in text


def test_former_turns_that_end_otherwise(flags, spoilt):
    changed = healthy_rows("conversations")
    changed[3] = {"messages": [{"role": role, "content": "ab"} for role in ("user", "assistant") * 2]}
    change = lambda text: text.replace("+ eos_token", "+ (eos_token if loop.last else ' ')")  # noqa: E731
    level, text = only(texts.end_of_turn(recipe("sft", *flags("sft", changed, with_template(spoilt(), change)))))
    assert level == "warning" and "<|eos|> does not close every turn of train row 4;" in text


def test_two_begins(flags, spoilt):
    model = with_template(spoilt(), lambda text: text.replace("{{- bos_token -}}", "{{- bos_token + bos_token -}}"))
    for stage in ("sft", "reward", "grpo"):
        level, text = only(texts.double_bos(recipe(stage, *flags(stage, model=model))))
        assert level == "FAIL" and "<|bos|> begins the text twice: train row 1" in text


def test_a_generation_prompt_that_training_never_shows(flags, spoilt):
    def change(text):
        return text.removesuffix("\n").removesuffix("{%- endif -%}").rstrip() + "{{- '\\n' -}}{%- endif -%}"

    level, text = only(texts.same_text(recipe("sft", *flags("sft", model=with_template(spoilt(), change)))))
    assert level == "FAIL" and "generation begins after '\\n'" in text


def test_rows_that_a_template_wrote_before(flags):
    changed = healthy_rows("conversations")
    changed[4]["prompt"] = "<|user|>Hello<|assistant|>"
    level, text = only(texts.markers_in_texts(recipe("sft", *flags("sft", changed))))
    assert level == "warning" and "spelt out in train row 5, and read as plain words" in text


def test_a_tokenizer_with_more_tokens_than_the_embedding(flags, spoilt):
    folder = spoilt()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(folder)
    level, text = only(texts.vocabulary(recipe("reward", *flags("reward", model=folder))))
    assert level == "FAIL" and "the tokenizer has 514 tokens, the embedding 512 rows" in text


def test_a_policy_that_does_not_stop_where_its_template_ends(flags, spoilt):
    folder = spoilt()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    level, text = only(texts.stops(recipe("grpo", *flags("grpo", model=folder))))
    assert level == "warning" and "the template's turns at <|eos|>; add 2 to eos_token_id" in text
    assert lines(texts.stops(recipe("sft", *flags("sft", model=folder)))) == []  # which adds it


def test_a_reward_model_with_other_tokens(flags, spoilt, words):
    folder = spoilt("reward")
    train_tokenizer([words[::-1]], 512, 256).save_pretrained(folder)
    given = flags("ppo")
    given[given.index("--reward_model_name_or_path") + 1] = str(folder)
    level, text = only(texts.reward_tokenizer(recipe("ppo", *given)))
    assert level == "warning" and f"{folder} has other tokens than the policy" in text


# Rows


def test_a_row_that_cannot_be_read(flags):
    changed = [*healthy_rows("conversations"), {"prompt": "Hi", "completion": [{"role": "robot", "content": "a"}]}]
    level, text = only(rows.readable(recipe("sft", *flags("sft", changed))))
    assert level == "FAIL" and text.startswith("train row 61: ") and "robot" in text


def test_rows_of_ptx_are_read_as_the_recipe_reads_them(flags, tmp_path):
    chats = write_rows(tmp_path / "chats.jsonl", healthy_rows("conversations"))
    (found,) = rows.ptx(recipe("ppo", *flags("ppo"), "--ptx_dataset_name", chats))
    assert (found.level, found.reason) == ("ok", "57 rows are learnt on")  # 60 less the share that stage 2 holds out
    assert rows.ptx(recipe("ppo", *flags("ppo"))) == []
    texts_alone = write_rows(tmp_path / "texts.jsonl", healthy_rows("text"))
    with pytest.raises(ValueError, match="row 1"):  # which the command shows as a finding
        rows.ptx(recipe("ppo", *flags("ppo"), "--ptx_dataset_name", texts_alone))


def test_rows_that_say_nothing(flags):
    changed = healthy_rows("text")
    changed[1] = changed[3] = {"text": " \n"}
    level, text = only(rows.readable(recipe("pretrain", *flags("pretrain", changed))))
    assert level == "warning" and "2 of 60 (3.3 %) left out as empty: train row 2, 4" in text


def test_columns_named_like_arguments_of_rewards(flags):
    changed = [row | {"completions": "a"} for row in healthy_rows("problems")]
    level, text = only(rows.reserved_columns(recipe("grpo", *flags("grpo", changed))))
    assert level == "warning" and text.startswith("completions: named like arguments of reward functions")


@pytest.mark.parametrize("stage", STAGES)
def test_copies(stage, flags):
    some = healthy_rows(STAGES[stage])
    level, text = only(rows.duplicates(recipe(stage, *flags(stage, [*some, some[0], some[7]]))))
    assert level == "warning" and "2 of 62 (3.2 %) repeat an earlier row: train row 61, 62" in text


def test_held_out_rows_that_are_trained_on(flags):
    train = healthy_rows("problems")
    test = [{"question": "What is 9 + 900?", "answer": "909"}, train[3]]
    level, text = only(rows.overlap(recipe("grpo", *flags("grpo", train, test=test))))
    assert level == "FAIL" and "1 of 2 (50 %) are trained on too: held-out row 2" in text


def test_long_documents_count_as_overlap_and_short_ones_do_not(flags):
    train = healthy_rows("text")
    train[0] = {"text": " ".join(f"word{i}" for i in range(50))}
    short = rows.overlap(recipe("pretrain", *flags("pretrain", train, test=[train[5], {"text": "new one"}])))
    assert lines(short) == [] and "1 of under 50 words" in short[0].reason
    level, text = only(rows.overlap(recipe("pretrain", *flags("pretrain", train, test=[train[0], train[5]]))))
    assert level == "FAIL" and "held-out row 1;" in text


@pytest.mark.parametrize(("overlong", "expected"), [("drop", "warning"), ("error", "FAIL")])
def test_rows_that_are_too_long(overlong, expected, flags):
    changed = healthy_rows("conversations")
    changed[2]["completion"] = "word " * 400
    subject = recipe("sft", *flags("sft", changed), "--overlong", overlong)
    level, text = only(rows.truncated(subject))
    assert level == expected and "1 of 60 (1.7 %) have more than 256 tokens" in text and "train row 3;" in text


def test_conversations_of_which_nothing_is_trained(flags, spoilt):
    empty = "{%- generation -%}{%- endgeneration -%}{{- message['content'] + eos_token -}}"
    written = "{%- generation -%}\n            {{- message['content'] + eos_token -}}\n        {%- endgeneration -%}"
    subject = recipe("sft", *flags("sft", model=with_template(spoilt(), lambda text: text.replace(written, empty))))
    (found,) = [finding for finding in subject.found if finding.what == "labels"]
    assert found.level == "FAIL" and "train row 1" in found.reason and "nothing as the assistant's" in found.reason


def test_thoughts_that_the_template_leaves_out(flags, spoilt):
    def change(text):
        return text.replace("message['content'] + eos_token", "message['content'].split('</think>')[-1] + eos_token")

    changed = healthy_rows("conversations")
    changed[0]["completion"] = "<think>\nfirst this\n</think>\n\nIt is 1."
    level, text = only(rows.masked(recipe("sft", *flags("sft", changed, with_template(spoilt(), change)))))
    assert level == "warning" and "thoughts of 1 rows" in text


# Pairs and problems


def test_length_that_tells_the_choice(flags):
    changed = [row | {"chosen": f"{row['rejected']} and more"} for row in healthy_rows("pairs")]
    level, text = only(pairs.length_tells(recipe("reward", *flags("reward", changed))))
    assert level == "warning" and "the longer answer is the chosen one in 100% of 60 pairs" in text


def test_equal_answers_and_nearly_equal_ones(flags):
    changed = healthy_rows("pairs")
    changed[0]["rejected"] = changed[0]["chosen"]
    changed[9]["rejected"] = changed[9]["chosen"].upper().replace(" ", "  ").rstrip(".") + "!"
    (first, equal), (second, near) = lines(pairs.equal_pairs(recipe("reward", *flags("reward", changed))))
    assert first == second == "warning"
    assert "1 of 60 (1.7 %) pairs have equal answers: train row 1" in equal
    assert "differ in signs, spaces or case alone: train row 10" in near


def test_pairs_that_contradict_each_other(flags):
    changed = healthy_rows("pairs")
    changed.append(changed[5] | {"chosen": changed[5]["rejected"], "rejected": changed[5]["chosen"]})
    level, text = only(pairs.contradictions(recipe("reward", *flags("reward", changed))))
    assert level == "warning" and "1 of 61 (1.6 %) prefer what an earlier row rejects: train row 61" in text


def test_prompts_that_hold_the_chosen_answer(flags):
    changed = [row | {"chosen": f"{row['chosen']} That is long enough."} for row in healthy_rows("pairs")]
    changed[3]["prompt"] = f"{changed[3]['prompt']} Say: {changed[3]['chosen']}"
    level, text = only(pairs.leaks(recipe("reward", *flags("reward", changed))))
    assert level == "warning" and "the prompt holds the chosen answer in train row 4" in text


@pytest.mark.parametrize("given", ["Answer: 9", "The answer is 9.", "#### 9", r"\boxed{9}"])
def test_problems_that_give_their_answer(given, flags):
    changed = healthy_rows("problems")
    changed[0] = {"question": f"What is 4 + 5? {given}", "answer": "9"}
    level, text = only(pairs.leaks(recipe("grpo", *flags("grpo", changed))))
    assert level == "warning" and "the prompt holds the answer in train row 1" in text


def test_golds_that_their_verifier_rejects(flags):
    changed = healthy_rows("problems")
    changed[6]["answer"] = "nobody knows"
    for more, expected in (([], "FAIL"), (["--unverifiable", "drop"], "warning")):
        level, text = only(pairs.golds(recipe("grpo", *flags("grpo", changed), *more)))
        assert level == expected and "1 of 60 (1.7 %) are rejected: train row 7" in text and "number" in text


# The start


def test_answers_that_leave_no_room_for_prompts(flags):
    subject = recipe("grpo", *flags("grpo"), "--max_completion_length", "250")
    level, text = only(launching.prompts_fit(subject))
    assert level == "FAIL" and "60 of 60 (100 %) have more than 6 tokens" in text
    level, text = only(launching.prompts_fit(recipe("grpo", *flags("grpo"), "--max_completion_length", "256")))
    assert level == "FAIL" and "leaves no room for a prompt in a context of 256" in text


def test_a_rollout_of_more_prompts_than_there_are(flags):
    subject = recipe("ppo", *flags("ppo"), "--gradient_accumulation_steps", "16")
    level, text = only(launching.groups(subject))
    assert level == "FAIL" and "has 60 prompts, a rollout takes 128" in text


def test_packed_conversations_that_see_one_another(flags):
    level, text = only(launching.packed_documents(recipe("sft", *flags("sft"), "--packing")))
    assert level == "warning" and "packing_strategy=bfd without flash attention" in text
    (stated,) = launching.packed_documents(recipe("pretrain", *flags("pretrain")))
    assert stated.level == "ok" and stated.reason.startswith("not kept apart")


def test_a_loss_that_depends_on_gradient_accumulation(flags, monkeypatch):
    """The fault that transformers had until 4.46: each batch's mean, whatever the whole step holds."""

    def mean_of_each(self, logits, labels, vocab_size, num_items_in_batch=None, **options):
        return ForCausalLMLoss(logits, labels, vocab_size, None, **options) / (4 if len(labels) == 1 else 1)

    monkeypatch.setattr(LlamaForCausalLM, "loss_function", mean_of_each)
    subject = recipe("pretrain", *flags("pretrain"), "--model_type=llama", "--gradient_accumulation_steps=4")
    level, text = only(launching.accumulation(subject))
    assert level == "warning" and "llama: the loss of a batch of four is" in text


def test_a_folder_with_files_of_another_kind(flags, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    level, text = only(launching.output_folder(recipe("sft", *flags("sft"))))
    assert level == "FAIL" and "holds files that are not a fourstage run" in text


def test_a_disk_without_room_and_memory_that_is_too_small(flags, spoilt, monkeypatch):
    Usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 10**6 - 10**5, 10**5))
    folder = spoilt()
    config = json.loads((folder / "config.json").read_text())
    huge = {"hidden_size": 32_768, "intermediate_size": 131_072, "head_dim": 8192}  # 2 layers: 40 billion weights
    (folder / "config.json").write_text(json.dumps(config | huge))
    (memory, too_big), (disk, full) = lines(launching.memory_and_disk(recipe("sft", *flags("sft", model=folder))))
    assert memory == "warning" and "GB by the plan" in too_big
    assert disk == "FAIL" and "0.1 MB are free" in full


def test_libraries_that_were_not_tested(monkeypatch, tmp_path):
    (tmp_path / "constraints.txt").write_text("torch==1.0\ntrl==0.0.1\n")
    monkeypatch.setattr(launching, "shipped_folder", lambda: tmp_path)
    level, text = only(launching.versions(None))
    assert level == "warning" and "(tested: 1.0), trl" in text


# Files alone, and the command


def test_a_file_alone_is_known_by_its_columns(tmp_path, capsys):
    for kind in ("text", "pairs", "prompts", "problems", "conversations"):
        file = write_rows(tmp_path / kind / "rows.jsonl", healthy_rows(kind))
        assert main(["doctor", file]) == 0
        out = capsys.readouterr().out
        assert f"read as {kind}" in out and "0 failed, 0 warnings" in out and "no model was named" in out
    changed = healthy_rows("pairs")
    changed[0]["rejected"] = changed[0]["chosen"]
    assert only(pairs.equal_pairs(data("reward", write_rows(tmp_path / "equal.jsonl", changed))))


def test_a_file_that_cannot_be_read_is_a_finding_too(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt"\n')
    assert main(["doctor", str(file), "--json"]) == 1
    (found,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["level"] == "FAIL"]
    assert "line 2: broken JSON" in found["reason"] and found["fix"].startswith("mend or remove the line")


def test_one_document_and_an_exit_status_for_ci(flags, capsys):
    changed = healthy_rows("problems")
    changed[6]["answer"] = "nobody knows"
    assert main(["doctor", "grpo", "--json", "--show_mask", "2", *flags("grpo", changed)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["stage"], found["failed"], found["warnings"]) == ("recipe", "grpo", 1, 0)
    (gold,) = [each for each in found["findings"] if each["level"] == "FAIL"]
    assert gold["what"] == "golds" and gold["group"] == "rows" and "mend the rows" in gold["fix"]
    assert [row["at"] for row in found["rows"]] == ["train row 1", "train row 2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--num_generations", "3"], "settings: "),
        (["--learning_rate", "fast"], "settings: "),
        (["--dataset_name", "nothing.jsonl"], "settings: dataset_name=nothing.jsonl: no such file or folder"),
        (["--model_name_or_path", "runs/nothing"], "model: runs/nothing does not exist"),
        (["--reward_funcs", "nunber"], "rewards: reward function 'nunber' is unknown"),
    ],
)
def test_what_a_recipe_refuses_is_a_finding(changes, message, flags, capsys):
    given = flags("grpo")
    for name, value in zip(changes[::2], changes[1::2], strict=True):
        if name in given:
            given[given.index(name) + 1] = value
        else:
            given += [name, value]
    assert main(["doctor", "grpo", *given]) == 1
    assert f"FAIL    {message}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "the following arguments are required: TARGET"),
        (["nothing"], "TARGET=nothing: no such recipe, file or folder"),
        (["nothing.yaml"], "TARGET=nothing.yaml: no such file"),
        (["CHAIN"], "holds the runs one, two; name one"),
        (["fourstage/demo", "--rows", "words"], "argument --rows: invalid choice: 'words'"),
        (["fourstage/demo", "--show_mask", "-1"], "'-1' must be a whole number of rows"),
    ],
)
def test_bad_input_takes_one_line(command, message, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    assert main(["doctor", *(str(tmp_path) if word == "CHAIN" else word for word in command)]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


def test_a_yaml_says_whose_it_is_by_its_first_line(tmp_path, flags, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("# accelerate launch recipes/reward.py --config mine.yaml\nper_device_train_batch_size: 4\n")
    assert main(["doctor", str(file), *flags("reward")]) == 0
    assert "the recipe of reward" in capsys.readouterr().out
    file.write_text("per_device_train_batch_size: 4\n")
    assert main(["doctor", str(file)]) == 1
    assert "does not say whose it is" in capsys.readouterr().err


def test_what_the_hub_has_is_looked_at_where_it_can_be_reached(capsys):
    words = ["--model_name_or_path", "nobody/model", "--dataset_name", "nobody/rows"]
    assert main(["doctor", "sft", *words]) == 0  # the tests are offline
    out = capsys.readouterr().out
    assert "?       model: nobody/model: not on this machine" in out
    assert "?       rows: dataset_name=nobody/rows cannot be read; look again where the Hub can be reached" in out


# What recipes say by themselves


FAULTS = {
    "a begin that stands twice": (
        lambda text: text.replace("{{- bos_token -}}", "{{- bos_token + bos_token -}}"),
        "doctor: fail: begin token: <|bos|> begins the text twice: the chat template's texts; take it out of",
    ),
    "a prompt that training never shows": (
        lambda text: text.removesuffix("\n").removesuffix("{%- endif -%}").rstrip() + "{{- '\\n' -}}{%- endif -%}",
        "doctor: fail: text for training and for use: generation begins after '\\n', which training never shows: a pr",
    ),
}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "grpo"])
def test_a_recipe_says_what_its_template_spoils_and_goes_on(stage, flags, spoilt, capsys):
    """One line for each fault, before the first step; nothing for a healthy model."""
    short = ["--max_steps=1", "--report_to=none", "--eval_strategy=no", "--eval_on_start=false"]
    model = with_template(spoilt(), lambda text: FAULTS["a prompt that training never shows"][0](text))
    for name, expected in ((None, 0), (model, 1)):
        out = model.parent / f"run-{bool(name)}"
        run_here(stage, *flags(stage, model=name), *short, "--output_dir", out)
        said = capsys.readouterr().out
        assert said.count("doctor: ") == expected
        assert (FAULTS["a prompt that training never shows"][1] in said) is bool(name)
        assert said.find("doctor: ") < said.index("step 1/1") and (out / "model.safetensors").is_file()


@pytest.mark.parametrize("name", FAULTS)
def test_the_cheap_checks_name_the_fault(name, flags, spoilt, capsys):
    change, expected = FAULTS[name]
    settings = read_settings("sft", flags("sft", model=with_template(spoilt(), change)))
    tokenizer, _ = load_tokenizer(settings.model, chats=True)
    tell_faults("sft", tokenizer, settings.data, settings.training, settings.model)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(expected)
