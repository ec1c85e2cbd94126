"""What reward functions are called with: fourstage's own with what they are made for, others as TRL calls them."""

import asyncio
import functools
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from ppo_helpers import char_tokenizer, count_a, ppo_trainer, tiny_policy

from fourstage import verifiers
from fourstage.data.columns import RESERVED_COLUMNS
from fourstage.grpo import GRPOConfig, GRPOTrainer
from fourstage.rl.rewards import checked, load_reward_func, prepare_rewards
from fourstage.verifiers import choice, exact, length, number, think_format
from fourstage.verifiers.calls import is_ours

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
ASKED = [{"role": "user", "content": "2+2?"}]


def answered(text, **fields):
    return [{"role": "assistant", "content": text, **fields}]


# Options never come from the data


@pytest.mark.parametrize(
    ("function", "columns", "rewards"),
    [
        (length, {"tokens": [512]}, [-0.9]),
        (length, {"limit": [5], "margin": [1]}, [-0.9]),
        (functools.partial(length, tokens=True), {"tokens": [0], "completion_ids": [[1] * 350]}, [-0.5]),
        (functools.partial(length, limit=1000), {"limit": [5]}, [0.0]),
        (
            functools.partial(functools.partial(length, limit=1000), tokens=True),
            {"completion_ids": [[1] * 950]},
            [-0.5],
        ),
        (number, {"answer": ["7"], "trainer_state": object(), "log_extra": print, "kwargs": [1]}, [1.0]),
        (verifiers.steps, {"derivation": [None], "completions_": [1]}, [0.0]),
        (verifiers.steps, {}, [0.0]),
    ],
)
def test_our_functions_take_only_their_columns(function, columns, rewards):
    text = "It is " + "x" * 382 + " 7"
    assert checked(function)(prompts=[ASKED], completions=[answered(text)], **columns) == rewards


def test_every_option_of_our_functions_is_shielded():
    """Whatever options they have: a column of such a name, of any kind, changes nothing."""
    data = {"answer": ["B"], "nums": [[1, 2]], "target": [3], "derivation": ["1 + 2 = 3"], "completion_ids": [[1, 2]]}
    for name in verifiers.__all__:
        function = getattr(verifiers, name)
        options = [key for key, one in function.__kwdefaults__.items()] if function.__kwdefaults__ else []
        options += function.__code__.co_varnames[: function.__code__.co_argcount]
        strange = {key: ["strange"] for key in options if key not in data and key not in ("completions", "prompts")}
        call = functools.partial(checked(function), prompts=[ASKED], completions=[answered("1 + 2 = 3, so B")])
        assert call(**data) == call(**data, **strange), name


def test_other_functions_are_called_as_trl_calls_them():
    seen = {}

    def own(prompts, completions, completion_ids, tokens, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions, tokens=tokens)
        return [1.0]

    @functools.wraps(number)  # which copies the name of our module
    def decorated(prompts, completions, **kwargs):
        return own(prompts, completions, **kwargs)

    class Callable:
        def __call__(self, **kwargs):
            return own(**kwargs)

    async def later(**kwargs):
        return own(**kwargs)

    given = {"completion_ids": [[1]], "tokens": [5], "trainer_state": "state", "answer": ["4"]}
    for function in (own, decorated, functools.partial(own), Callable(), later):
        seen.clear()
        assert not is_ours(function)
        result = checked(function, opening="<think>")(prompts=[ASKED], completions=[answered("4")], **given)
        assert (asyncio.run(result) if function is later else result) == [1.0]
        assert seen["completions"] == [answered("4")] and seen["prompts"] == [ASKED] and seen["tokens"] == [5]
        assert seen["trainer_state"] == "state"


def test_names_in_reports():
    assert checked(functools.partial(length, limit=9)).__name__ == "length"
    assert checked(checked(number), name="gold").__name__ == "gold" and checked(checked(number)).__name__ == "number"
    gold = checked(number, name="gold")
    assert checked(gold, opening="<think>")(prompts=[ASKED], completions=["1</think>4"], answer=["4"]) == [1.0]


# What the template wrote before a completion


@pytest.mark.parametrize(
    ("function", "completion", "answer", "reward"),
    [
        (think_format, answered("2 and 2 are 4.\n</think>\n4"), None, 1.0),
        (think_format, answered("2 and 2 are 4."), None, 0.0),
        (think_format, answered("<think>2 and 2</think>4"), None, 0.0),  # it opens them twice
        (number, answered("2 and 2 make 4"), "4", 0.0),  # unfinished thoughts
        (number, answered("2 and 2</think>It is 4."), "4", 1.0),
        (exact, answered("Paris"), "Paris", 0.0),
        (exact, answered("France?</think>Paris"), "Paris", 1.0),
        (choice, answered("The answer is B"), "B", 0.0),
        # A tokenizer that parses answers puts the thoughts elsewhere
        (think_format, answered("4", reasoning_content="2 and 2"), None, 1.0),
        (think_format, answered(None, reasoning_content="2 and 2"), None, 0.0),
        (number, answered("", reasoning_content="2 and 2 are 4"), "4", 0.0),
        (number, answered("4", thinking="2 and 2"), "4", 1.0),
        (think_format, [], None, 0.0),
    ],
)
def test_our_functions_see_what_the_template_opened(function, completion, answer, reward):
    seen = checked(function, opening="<think>")
    assert seen(prompts=[ASKED], completions=[completion], answer=[answer]) == [reward]


def test_a_plain_prompt_shows_its_own_opening():
    plain = checked(think_format, opening="<think>")
    prompts, completions = ["2+2?<think>\n", "2+2?"], ["2 and 2</think>4", "2 and 2</think>4"]
    assert plain(prompts=prompts, completions=completions) == [1.0, 0.0]
    assert checked(number)(prompts=prompts, completions=["so 4", "so 4"], answer=["4", "4"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("template", "options", "opens"),
    [
        ("deepseek_r1_distill", {}, True),
        ("qwen3_5_think", {}, True),
        ("qwen3_5_think", {"enable_thinking": False}, False),
        ("qwen3_5_nothink", {}, False),
        ("qwen3", {}, False),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_trainers_show_their_verifiers_what_the_template_opened(tmp_path, kind, template, options, opens):
    tokenizer = char_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "b"}], "answer": "4"}] * 32)
    policy = tiny_policy()
    policy.config.max_position_embeddings = 512
    functions = [think_format, checked(number, name="gold"), count_a]
    settings = {"max_completion_length": 8, "report_to": "none", "bf16": False, "chat_template_kwargs": options}
    if kind == "ppo":
        trainer = ppo_trainer(tmp_path, model=policy, reward=functions, data=data, tokenizer=tokenizer, **settings)
    else:
        args = GRPOConfig(output_dir=str(tmp_path), num_generations=4, use_cpu=True, **settings)
        trainer = GRPOTrainer(policy, functions, args, data, processing_class=tokenizer)
    form, gold, other = trainer.reward_funcs
    call = {"prompts": [ASKED] * 3, "completions": list(map(answered, ["2+2</think>4", "<think>2+2</think>4", "4"]))}
    assert form(**call, answer=["4"] * 3) == ([1.0, 0.0, 0.0] if opens else [0.0, 1.0, 0.0])
    assert gold(**call, answer=["4"] * 3) == [1.0, 1.0, 0.0 if opens else 1.0]
    assert trainer.reward_func_names == ["think_format", "gold", "count_a"] and other.__wrapped__ is count_a


# Wrong input


@pytest.mark.parametrize("name", ["..a.b", ".b", "a..b", "a.", ".", "a b.c", "./rewards.py", "/rewards.py", "1.2"])
def test_a_name_that_is_no_dotted_path(name):
    with pytest.raises(ValueError, match="no dotted path") as error:
        load_reward_func(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tokenizers", [[], [None], [None] * 3])
def test_a_list_of_tokenizers_of_another_length(tokenizers):
    with pytest.raises(ValueError, match=f"has {len(tokenizers)} entries for 2 reward_funcs; give one for each"):
        prepare_rewards([number, length], tokenizers, None)


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_a_column_that_trl_has_no_room_for(tmp_path, name):
    data = Dataset.from_list([{"prompt": "b", name: ["a"]}] * 16)
    with pytest.raises(ValueError, match=f"train_dataset has the column {name!r}, .*; rename it"):
        ppo_trainer(tmp_path, data=data)
