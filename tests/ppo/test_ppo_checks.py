"""What PPOTrainer refuses, before the first step or with the sample at fault, and how it chooses the critic."""

import math

import pytest
import torch
from datasets import Dataset
from ppo_helpers import LETTERS, char_tokenizer, count_a, logged, ppo_trainer, prompts, tiny_policy, tiny_reward_model
from transformers import BertConfig, BertForSequenceClassification, Gemma2Config, Gemma2ForCausalLM, ProcessorMixin
from trl import GRPOTrainer, RewardConfig, RewardTrainer

from fourstage.ppo import PPOConfig
from fourstage.rl import trl_contract
from fourstage.rl.rewards import checked, load_reward_func, load_rewards

# Rewards


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_a_finite_number_stops_with_its_completion(tmp_path, value):
    def broken(completions, **kwargs):
        return [0.0] * (len(completions) - 1) + [value]

    with pytest.raises(ValueError, match=rf"broken returned {value} for the completion '[{LETTERS}]*'.*None"):
        ppo_trainer(tmp_path, reward=broken).train()


def test_a_wrong_number_of_rewards_stops(tmp_path):
    with pytest.raises(ValueError, match="returned 3 rewards for 8 completions"):
        ppo_trainer(tmp_path, reward=lambda completions, **_: [1.0] * 3).train()


def test_an_async_reward_is_validated_too(tmp_path):
    class Broken:
        async def __call__(self, completions, **kwargs):
            return [math.nan] * len(completions)

    with pytest.raises(ValueError, match="Broken returned nan"):
        ppo_trainer(tmp_path, reward=Broken()).train()


def test_a_reward_model_that_overflows_stops(tmp_path):
    model = tiny_reward_model()
    torch.nn.init.constant_(model.score.weight, math.inf)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification gave the score (nan|-?inf) .*finite"):
        ppo_trainer(tmp_path, reward=model, reward_processing_classes=char_tokenizer()).train()


def test_checked_returns_valid_rewards_unchanged():
    assert checked(lambda completions, **_: [1, None, 0.5])(prompts=None, completions=["a", "b", "c"]) == [
        1.0,
        None,
        0.5,
    ]


def test_reward_functions_by_path():
    assert load_reward_func("math.dist") is math.dist
    for name, why in [
        ("math.no_such", "has no no_such"),
        ("no_such_module.f", "cannot be imported"),
        ("os.name", "must be"),
    ]:
        with pytest.raises(ValueError, match=why):
            load_reward_func(name)


def test_rewards_of_a_run():
    settings = {"output_dir": "x", "report_to": "none", "per_device_train_batch_size": 2}

    class Args:
        reward_model_name_or_path, reward_funcs, gold_func, reward_weights = None, ["math.dist"], "math.hypot", None
        control = None

    args = Args()
    assert [f.__name__ for f in load_rewards(args)] == ["dist", "gold"]
    assert args.reward_weights == [1.0, 0.0]
    args.reward_weights = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"reward_weights=\[1.0, 2.0, 3.0\] must be 1"):
        load_rewards(args)
    args.reward_funcs = None
    with pytest.raises(ValueError, match="reward_model_name_or_path.*reward_funcs"):
        load_rewards(args)
    assert PPOConfig(**settings).reward_weights is None


# The score in a rollout is the score in training


@pytest.mark.parametrize("kind", ["text", "conversation"])
def test_a_rollout_is_scored_as_the_reward_model_was_trained(tmp_path, kind):
    """The scores of a rollout's own completions, from the batches that TRL's RewardTrainer would train on."""
    tokenizer, model = char_tokenizer(), tiny_reward_model()
    data = prompts()
    if kind == "conversation":
        data = data.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = ppo_trainer(tmp_path, reward=model, data=data, reward_processing_classes=tokenizer)
    trainer.model.train()
    trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(8)])
    rolled = list(zip(trainer._logs["prompt"], trainer._logs["completion"], strict=True))
    pairs = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": c} for p, c in rolled])
    settings = {"output_dir": str(tmp_path / "r"), "report_to": "none", "bf16": False, "use_cpu": True}
    teacher = RewardTrainer(model, RewardConfig(**settings), train_dataset=pairs, processing_class=tokenizer)
    rows = [teacher.train_dataset[i] for i in range(8)]
    batch = teacher.data_collator(rows)
    with torch.no_grad():
        expected = model(**{k: v for k, v in batch.items() if k != "return_loss"}).logits[:8, 0]
    torch.testing.assert_close(trainer._rewards[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3


# Reward models and critics


def two_labels():
    model = tiny_reward_model()
    model.config.num_labels = 2
    return model


def test_a_reward_model_with_two_labels(tmp_path):
    with pytest.raises(ValueError, match="num_labels=2.*num_labels=1"):
        ppo_trainer(tmp_path, reward=two_labels(), reward_processing_classes=char_tokenizer())
    two_labels().save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="num_labels=2"):
        ppo_trainer(tmp_path, reward=str(tmp_path / "two"))
    with pytest.raises(ValueError, match="value_model.*num_labels=2"):
        ppo_trainer(tmp_path, value_model=str(tmp_path / "two"))
    with pytest.raises(ValueError, match="value_model.*num_labels=2"):
        ppo_trainer(tmp_path, value_model=two_labels())


def test_the_critic_is_a_copy_of_the_reward_model_if_both_read_the_same_tokens(tmp_path):
    model = tiny_reward_model()
    trainer = ppo_trainer(tmp_path, reward=model, reward_processing_classes=char_tokenizer())
    assert torch.equal(trainer.value_model.head.weight, model.score.weight)
    assert trainer.value_model.head is not model.score
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_vocabulary_of_the_same_size_is_not_the_same_vocabulary(tmp_path):
    other = char_tokenizer(LETTERS[::-1])
    assert len(other) == len(char_tokenizer())
    trainer = ppo_trainer(tmp_path, reward=tiny_reward_model(), reward_processing_classes=other, max_steps=4)
    assert (trainer.value_model.head.weight == 0).all()
    policy = dict(trainer.model.model.named_parameters())
    assert all(torch.equal(p, policy[name]) for name, p in trainer.value_model.backbone.named_parameters())
    trainer.train()  # and the reward model reads its own tokens


def test_a_given_critic_is_used(tmp_path):
    given = tiny_reward_model(seed=5)
    trainer = ppo_trainer(tmp_path, value_model=given)
    assert trainer.value_model.head is given.score


def test_a_critic_for_fewer_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="value_model reads 6 token ids, the policy's tokenizer has 10"):
        ppo_trainer(tmp_path, value_model=tiny_reward_model(vocab_size=6))


def test_a_classifier_with_another_head_is_refused(tmp_path):
    class Odd(BertForSequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            self.classifier = torch.nn.Sequential(self.classifier)

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ValueError, match="value_model: Odd has no linear head.*leave value_model out"):
        ppo_trainer(tmp_path, value_model=Odd(BertConfig(vocab_size=10, num_labels=1, **sizes)))


# Settings and data


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"fp16": True}, "fp16=True"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence' must be token"),
        ({"loss_type": "luspo"}, "loss_type='luspo' must be dapo or bnpo"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation"),
        ({"scale_rewards": "group"}, "scale_rewards"),
        ({"sync_ref_model": True}, "sync_ref_model.*must not move"),
        ({"kl_estimator": "k2"}, "kl_estimator='k2' must be k1 or k3"),
        ({"lam": 1.5}, "lam=1.5 must be between 0 and 1"),
        ({"cliprange_value": 0.0}, "cliprange_value=0.0 must be above 0"),
        ({"reward_clip_range": [1.0, -1.0]}, "reward_clip_range"),
        ({"num_generations": 0}, "num_generations=0 must be at least 1"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "steps_per_generation=3 must be a multiple"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size=1 .*raise it to 2"),
    ],
)
def test_a_setting_that_cannot_work_is_named(setting, why):
    with pytest.raises(ValueError, match=why):
        PPOConfig(output_dir="x", report_to="none", **setting)


def test_one_completion_a_prompt_and_an_odd_batch():
    config = PPOConfig(output_dir="x", report_to="none", per_device_train_batch_size=3, gradient_accumulation_steps=3)
    assert (config.num_generations, config.generation_batch_size, config.steps_per_update) == (1, 9, 4)
    assert (config.num_generations_eval, config.logging_steps) == (1, 4)


def test_a_processor_of_images_is_refused(tmp_path):
    class Processor(ProcessorMixin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="text models only"):
        ppo_trainer(tmp_path, tokenizer=Processor())


def test_a_prompt_over_the_context_is_named(tmp_path):
    data = Dataset.from_dict({"prompt": ["a"] * 15 + ["b" * 57]})
    with pytest.raises(ValueError, match="prompt 16 has 57 tokens; with max_completion_length=8.*context of 64"):
        ppo_trainer(tmp_path, data=data)


def test_too_few_prompts_for_a_rollout(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has 5 prompts, a rollout takes 8"):
        ppo_trainer(tmp_path, data=prompts(5))


def test_no_prompt_column(tmp_path):
    with pytest.raises(ValueError, match=r"no column `prompt`.* \['text'\]"):
        ppo_trainer(tmp_path, data=Dataset.from_dict({"text": ["a"] * 16}))


def test_an_architecture_with_a_head_of_its_own_is_refused(tmp_path):
    """Nanochat-like scaling of the hidden states between the backbone and the head."""
    policy = tiny_policy()
    plain = policy.lm_head.forward
    policy.lm_head.forward = lambda hidden: plain(hidden) * 2
    with pytest.raises(ValueError, match="fused head is off by"):
        ppo_trainer(tmp_path, model=policy)


def test_capped_logits_are_read_as_they_are(tmp_path):
    """Gemma 2 caps its logits, which TRL's fused head knows: nothing to refuse, and the ratio is 1."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(vocab_size=10, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, **sizes)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    trainer = ppo_trainer(tmp_path, model=Gemma2ForCausalLM(config), learning_rate=0.0, max_steps=4)
    trainer.train()
    assert logged(trainer, "val/ratio") == [1.0]


# Completions that do not end, and empty ones


def test_a_policy_that_never_ends_gets_a_warning_about_the_penalty(tmp_path):
    trainer = ppo_trainer(tmp_path, max_steps=4, generation_kwargs={"suppress_tokens": [2]}, missing_eos_penalty=0.5)
    with pytest.warns(
        UserWarning, match="no completion of this rollout ends within max_completion_length=8.*missing_eos"
    ):
        trainer.train()
    score = logged(trainer, "objective/scores")[0]
    assert score == pytest.approx(logged(trainer, "rewards/count_a/mean")[0] - 0.5)
    assert logged(trainer, "val/eos_ratio") == [0.0]


def test_empty_completions_are_ordinary_ones(tmp_path):
    """Nothing but the end token: one token, scored and trained on."""
    scored = []

    def empty(completions, **kwargs):
        scored.extend(completions)
        return [1.0] * len(completions)

    trainer = ppo_trainer(
        tmp_path, reward=empty, max_steps=4, generation_kwargs={"suppress_tokens": [0, 1, *range(3, 10)]}
    )
    trainer.train()
    assert set(scored) == {""}
    assert logged(trainer, "completions/mean_length") == [1.0]
    assert logged(trainer, "objective/scores") == [1.0] and logged(trainer, "val/eos_ratio") == [1.0]


# The contract with TRL


def test_a_missing_method_of_trl_is_named_with_the_versions_tested(tmp_path, monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    with pytest.raises(ValueError, match=r"no _calculate_rewards\(\).*tested with trl 1.16.0.*pip install"):
        ppo_trainer(tmp_path)


def test_a_changed_signature_of_trl_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, batch: None)
    with pytest.raises(ValueError, match=r"no _compute_loss\(inputs\)"):
        ppo_trainer(tmp_path)


def test_a_missing_key_of_a_rollout_is_named():
    with pytest.raises(ValueError, match="rollout has no completion_mask, num_items_in_batch"):
        trl_contract.check_batch(dict.fromkeys(["prompt_ids", "prompt_mask", "completion_ids", "advantages"]))


def test_beta_zero_needs_no_reference(tmp_path):
    trainer = ppo_trainer(tmp_path, beta=0.0, max_steps=4)
    assert trainer.ref_model is None
    trainer.train()
    assert logged(trainer, "objective/kl") == [0.0]
    assert logged(trainer, "rewards/count_a/mean") == logged(trainer, "objective/rlhf_reward")
    assert count_a(["aa"]) == [0.5]
