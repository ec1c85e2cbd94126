"""GRPOTrainer against TRL's own: the same completions, losses, gradients and weights, by less work."""

import math

import pytest
import torch
import trl
from peft import LoraConfig
from ppo_helpers import assert_equal_weights, char_tokenizer, count_a, logged, policy_weights, prompts, tiny_policy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    TrainerCallback,
    set_seed,
)

from fourstage.grpo import GRPOTrainer
from fourstage.rl import decoding as decoding_module
from fourstage.rl.decoding import quick_generation
from fourstage.rl.rollouts import RolloutNumbers

GIVEN = ("peft_config", "eval_dataset", "callbacks", "rollout_func")


class TRLTrainer(trl.GRPOTrainer):
    """TRL's trainer and transformers' loop, whose samples follow our random numbers; the random state is as ours."""

    def _generate_and_score_completions(self, inputs):
        numbers = RolloutNumbers().of_rollout(self, len(inputs))
        with quick_generation(self.model, numbers, own_loop=True):
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, *args, **kwargs):
        state = torch.get_rng_state()
        found = super()._generate_single_turn(*args, **kwargs)
        torch.set_rng_state(state)
        return found


def grpo_trainer(folder, *, kind=GRPOTrainer, model=None, reward=count_a, data=None, **settings):
    """16 completions of at most 12 tokens a rollout, 4 a prompt, in 4 micro-batches, and plain gradient descent."""
    given = {name: settings.pop(name) for name in GIVEN if name in settings}
    defaults = {
        **{"output_dir": str(folder), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        **{"num_generations": 4, "max_completion_length": 12, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05},
        **{"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "gradient_checkpointing": False, "bf16": False},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "use_cpu": True},
    }
    return kind(
        model if model is not None else tiny_policy(),
        reward,
        trl.GRPOConfig(**(defaults | settings)),
        train_dataset=data if data is not None else prompts(),
        processing_class=char_tokenizer(),
        **given,
    )


class Gradients(TrainerCallback):
    """What each optimizer step is about to follow."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class Widths:
    """A reward that keeps the completions it saw."""

    def __init__(self):
        self.seen = []
        self.__name__ = "seen"

    def __call__(self, completions, **kwargs):
        self.seen.append(completions)
        return count_a(completions)


def trained(folder, kind, **settings):
    """(trainer, gradients of each step, completions of each rollout) of a short training."""
    gradients, reward = Gradients(), Widths()
    if kind is TRLTrainer and settings.get("beta"):  # it loads the reference from the model's folder
        tiny_policy().save_pretrained(folder / "policy")
        settings["model"] = LlamaForCausalLM.from_pretrained(folder / "policy")
    trainer = grpo_trainer(folder / kind.__name__, kind=kind, reward=reward, callbacks=[gradients], **settings)
    trainer.train()
    return trainer, gradients.steps, reward.seen


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=tolerance, rtol=tolerance, msg=name)


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
CASES = {
    **{name: {"loss_type": name} for name in LOSSES},
    "reference": {"beta": 0.2},
    "reference, grpo": {"beta": 0.2, "loss_type": "grpo"},
    "two passes": {"num_iterations": 2},
    "two passes and a reference": {"num_iterations": 2, "beta": 0.2, "temperature": 0.7},
    "two steps a rollout": {"gradient_accumulation_steps": 2, "steps_per_generation": 4},
    "two rollouts a step": {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "rollouts across steps": {"gradient_accumulation_steps": 3, "steps_per_generation": 4},
    "by sequence": {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
    "entropy bonus": {"entropy_coef": 0.1},
    "uncertain tokens only": {"top_entropy_quantile": 0.5},
    "truncated ones masked": {"mask_truncated_completions": True},
    "nucleus": {"top_p": 0.6},
    "padding to eights": {"pad_to_multiple_of": 8},
    "activation checkpointing": {"gradient_checkpointing": True},
    "unscaled": {"scale_rewards": "none"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_completions_losses_and_gradients_are_those_of_trl(tmp_path, settings):
    ours, our_gradients, our_texts = trained(tmp_path, GRPOTrainer, **settings)
    plain, gradients, texts = trained(tmp_path, TRLTrainer, **settings)
    assert our_texts == texts and len({len(text) for text in texts[0]}) > 3
    assert len(gradients) == 3 and any(g.abs().max() > 1e-3 for g in gradients[0].values())
    for mine, its in zip(our_gradients, gradients, strict=True):
        assert_close(mine, its)
    for name in ("loss", "reward", "reward_std", "completions/mean_length", "completions/clipped_ratio"):
        assert logged(ours, name) == pytest.approx(logged(plain, name), abs=2e-5), name
    assert_close(policy_weights(ours), policy_weights(plain))


def test_adapters_with_a_reference_are_those_of_trl(tmp_path):
    found = []
    for kind in (GRPOTrainer, TRLTrainer):
        set_seed(0)
        model = tiny_policy()
        settings = {"model": model, "peft_config": lora(), "beta": 0.2, "num_iterations": 2}
        trainer = grpo_trainer(tmp_path, kind=kind, **settings)
        before = policy_weights(trainer)
        trainer.train()
        found.append(policy_weights(trainer))
        for name, value in found[-1].items():
            assert torch.equal(value, before[name]) is ("lora_" not in name or ".ref." in name), name
    assert_close(*found)


def test_evaluation_is_that_of_trl(tmp_path):
    """One batch; another evaluation of the same weights draws the same."""
    found = []
    for kind in (GRPOTrainer, TRLTrainer):
        settings = {"eval_dataset": prompts(8), "num_generations_eval": 2, "per_device_eval_batch_size": 16}
        trainer = grpo_trainer(tmp_path, kind=kind, **settings)
        trainer.train()
        found.append(trainer.evaluate())
    assert trainer.evaluate()["eval_reward"] == found[-1]["eval_reward"]
    for name in ("eval_loss", "eval_reward", "eval_entropy", "eval_completions/mean_length"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-5), name


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo"])
def test_micro_batches_are_grouped_where_the_loss_allows_it(tmp_path, loss_type):
    batches = new_rollout(grpo_trainer(tmp_path, loss_type=loss_type))
    sizes, lengths = [], []
    for batch in batches:
        assert batch["prompt_mask"].any(dim=0).all() and batch["completion_mask"].any(dim=0).all()
        assert batch["advantages"].shape == batch["completion_mask"].shape[:1]
        sizes.append(len(batch["completion_mask"]))
        lengths += batch["completion_mask"].sum(dim=1).tolist()
    assert sum(sizes) == 16 and (loss_type == "dapo" or sizes == [4] * 4)
    assert (lengths == sorted(lengths)) is (loss_type != "bnpo")


def test_rows_stay_within_their_optimizer_step(tmp_path):
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 4}
    batches = new_rollout(grpo_trainer(tmp_path, **settings))
    lengths = [batch["completion_mask"].sum(dim=1).tolist() for batch in batches]
    halves = lengths[0] + lengths[1], lengths[2] + lengths[3]
    assert all(half == sorted(half) and len(half) == 8 for half in halves)


def new_rollout(trainer):
    """The micro-batches of a rollout, as they are trained on."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._prepare_inputs([trainer.train_dataset[i // 4] for i in range(16)])
    return trainer._buffered_inputs


def tiny_gpt2():
    set_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=10, **shape, pad_token_id=0, bos_token_id=1, eos_token_id=2))


def test_learned_positions_are_those_of_generation(tmp_path):
    """Old log-probabilities of every row are those of a pass over the row alone, which TRL's are not (issue 6800)."""
    errors = {}
    for kind in (GRPOTrainer, trl.GRPOTrainer):
        trainer = grpo_trainer(tmp_path, kind=kind, model=tiny_gpt2(), num_iterations=2, disable_dropout=True)
        errors[kind] = max(
            (row["old_per_token_logps"][row["completion_mask"].bool()] - plain_logps(trainer.model, row)).abs().max()
            for batch in new_rollout(trainer)
            for row in ({k: v[i] for k, v in batch.items() if v.dim()} for i in range(len(batch["advantages"])))
        )
    assert errors[GRPOTrainer] < 1e-5 < 1e-2 < errors[trl.GRPOTrainer]


@torch.no_grad()
def plain_logps(model, row):
    prompt = row["prompt_ids"][row["prompt_mask"].bool()]
    completion = row["completion_ids"][row["completion_mask"].bool()]
    logits = type(model).forward(model, input_ids=torch.cat([prompt, completion])[None]).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, completion[:, None])[:, 0]


def test_sampling_settings_of_the_model_are_not_followed(tmp_path, capsys):
    texts = []
    for fields in ({}, {"no_repeat_ngram_size": 1, "min_p": 0.3}):
        model, reward = tiny_policy(), Widths()
        model.generation_config.update(do_sample=True, **fields)
        grpo_trainer(tmp_path, model=model, reward=reward, max_steps=1).train()
        texts.append(reward.seen)
        assert all(model.generation_config.to_dict()[name] == value for name, value in fields.items())
    assert texts[0] == texts[1]
    assert "'min_p': 0.3" in capsys.readouterr().out


def test_rollouts_are_decoded_here_and_by_transformers_where_they_cannot_be(tmp_path, monkeypatch):
    calls, own = [], decoding_module.decode
    monkeypatch.setattr(decoding_module, "decode", lambda *a, **k: calls.append(1) or own(*a, **k))
    grpo_trainer(tmp_path, max_steps=2).train()
    assert len(calls) == 2
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sliding = MistralForCausalLM(MistralConfig(vocab_size=10, num_key_value_heads=2, sliding_window=4, **shape, **ids))
    grpo_trainer(tmp_path, model=sliding, max_steps=2).train()
    grpo_trainer(tmp_path, min_p=0.1, max_steps=2).train()
    assert len(calls) == 2


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path):
    """A rollout lasts 4 steps: the checkpoint asked for at step 3 is taken at 4."""
    settings = {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "optim": "adamw_torch",
    }
    settings |= {"save_strategy": "steps", "save_steps": 3, "max_steps": 8, "beta": 0.1, "learning_rate": 1e-3}
    whole = grpo_trainer(tmp_path / "whole", **settings)
    whole.train()
    saved = sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*"))
    assert saved == ["checkpoint-4", "checkpoint-8"]
    resumed = grpo_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_equal_weights(policy_weights(whole), policy_weights(resumed))
    assert logged(whole, "reward")[4:] == logged(resumed, "reward")[4:]


def test_checkpoints_wait_for_a_step_that_ends_a_rollout(tmp_path):
    for accumulation, per_rollout, passes, period in ((4, 4, 1, 1), (2, 4, 2, 4), (4, 2, 1, 1), (3, 4, 1, 4)):
        settings = {"gradient_accumulation_steps": accumulation, "steps_per_generation": per_rollout}
        trainer = grpo_trainer(tmp_path, num_iterations=passes, **settings)
        found = [c.period for c in trainer.callback_handler.callbacks if type(c).__name__ == "SaveAtRollouts"]
        assert found == [period]


def test_the_reference_is_a_copy_that_can_follow(tmp_path):
    fixed = grpo_trainer(tmp_path, beta=0.1)
    start = {name: p.clone() for name, p in fixed.ref_model.named_parameters()}
    assert_equal_weights(start, policy_weights(fixed))
    fixed.train()
    assert_equal_weights(start, dict(fixed.ref_model.named_parameters()))
    assert logged(fixed, "kl")[-1] > 0 and fixed.args.beta == 0.1
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 1.0}
    following = grpo_trainer(tmp_path, beta=0.1, **settings)
    following.train()
    assert following.args.sync_ref_model
    assert_equal_weights(dict(following.ref_model.named_parameters()), policy_weights(following))


def test_rollout_functions_go_trls_way(tmp_path):
    def rollout_func(prompts, trainer):
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        answers = [[5 + i % 3, 6, 2] for i in range(len(prompts))]
        return {"prompt_ids": ids, "completion_ids": answers, "logprobs": None}

    trainer = grpo_trainer(tmp_path, rollout_func=rollout_func)
    trainer.train()
    assert logged(trainer, "completions/mean_length") == [3.0] * 3


def test_rewards_are_looked_at(tmp_path):
    broken = lambda completions, **kwargs: [math.nan] * len(completions)  # noqa: E731
    with pytest.raises(ValueError, match="must be a finite number"):
        grpo_trainer(tmp_path, reward=broken).train()
    few = lambda completions, **kwargs: [1.0]  # noqa: E731
    with pytest.raises(ValueError, match="1 rewards for 16"):
        grpo_trainer(tmp_path, reward=few).train()


def test_what_cannot_work_is_said_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has 3 prompts, a rollout takes 4"):
        grpo_trainer(tmp_path, data=prompts(3))
    with pytest.raises(ValueError, match="does not fit"):
        grpo_trainer(tmp_path, max_completion_length=64)
