"""A small PPO: a char-level tokenizer, a random Llama, prompts of several lengths, and a trainer of all three."""

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from fourstage.ppo import PPOConfig, PPOTrainer

LETTERS = "abcde"
TEMPLATE = "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}"
TEMPLATE += "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
VOCABULARY = 5 + len(LETTERS)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def char_tokenizer(letters=LETTERS):
    """One token a letter; padding, begin, end and the two marks of a conversation."""
    tokens = ["<pad>", "<bos>", "<eos>", "<u>", "<a>", *letters]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<bos>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["<u>", "<a>"], **names)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def llama_config(vocab_size=VOCABULARY, **more):
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(vocab_size=vocab_size, max_position_embeddings=64, initializer_range=0.2, **SIZES, **ids, **more)


def tiny_policy(seed=0):
    set_seed(seed)
    return LlamaForCausalLM(llama_config())


def tiny_reward_model(seed=1, vocab_size=VOCABULARY):
    set_seed(seed)
    return LlamaForSequenceClassification(llama_config(vocab_size, num_labels=1))


def lora():
    """New each time: PEFT writes the names of the layers it found into it."""
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def count_a(completions, **kwargs):
    """The share of the letter a: rows differ, whatever the policy."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [text.count("a") / 4 for text in texts]


def prompts(count=64):
    return Dataset.from_dict({"prompt": ["bcde"[: 1 + i % 4] for i in range(count)]})


def ptx_rows(count=24):
    """Rows of 4 to 7 letters, of which the last three are learnt."""
    rows = [[5 + (i + k) % 5 for k in range(4 + i % 4)] for i in range(count)]
    return Dataset.from_dict({"input_ids": rows, "labels": [[-100] * (len(row) - 3) + row[-3:] for row in rows]})


def ppo_trainer(folder, *, model=None, reward=count_a, data=None, tokenizer=None, **settings):
    """PPOTrainer on 8 completions of at most 8 tokens an update, 2 minibatches of 2 x 2, 2 passes."""
    own = ("value_model", "peft_config", "value_peft_config", "ptx_dataset", "eval_dataset", "callbacks")
    own += ("reward_processing_classes",)
    given = {name: settings.pop(name) for name in own if name in settings}
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_completion_length": 8,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    return PPOTrainer(
        model if model is not None else tiny_policy(),
        reward,
        PPOConfig(**(defaults | settings)),
        train_dataset=data if data is not None else prompts(),
        processing_class=tokenizer or char_tokenizer(),
        **given,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def policy_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def critic_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.value_model.trained().items()}


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
