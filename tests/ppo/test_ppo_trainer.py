"""PPOTrainer against plain model calls and loops in NumPy: what a rollout holds, what is trained, what is not."""

import numpy as np
import pytest
import torch
from ppo_helpers import (
    assert_equal_weights,
    char_tokenizer,
    count_a,
    critic_weights,
    logged,
    lora,
    policy_weights,
    ppo_trainer,
    prompts,
    tiny_policy,
)
from transformers import GPT2Config, GPT2LMHeadModel, set_seed


@torch.no_grad()
def plain_logps(model, row, temperature=1.0):
    """Log-probabilities of a completion's tokens from one unpadded forward pass of the model's own logits."""
    prompt = row["prompt_ids"][row["prompt_mask"].bool()]
    completion = row["completion_ids"][row["completion_mask"].bool()]
    ids = torch.cat([prompt, completion])[None]
    logps = (type(model).forward(model, input_ids=ids).logits[0] / temperature).log_softmax(-1)
    return logps[len(prompt) - 1 : -1].gather(1, completion[:, None])[:, 0].numpy()


@torch.no_grad()
def plain_values(critic, row):
    prompt = row["prompt_ids"][row["prompt_mask"].bool()]
    completion = row["completion_ids"][row["completion_mask"].bool()]
    ids = torch.cat([prompt, completion])[None]
    hidden = critic.backbone(input_ids=ids).last_hidden_state
    return critic.head(hidden)[0, len(prompt) - 1 : -1, 0].numpy()


def rows_of(batches):
    """Every row of a rollout as a dict of vectors."""
    for batch in batches:
        for i in range(len(batch["completion_ids"])):
            yield {name: value[i] for name, value in batch.items() if torch.is_tensor(value) and value.dim()}


def rollout(trainer):
    """The micro-batches of a new rollout, as they are trained on."""
    trainer.model.train()
    trainer._buffered_inputs = None
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._prepare_inputs([trainer.train_dataset[i] for i in range(8)])
    return trainer._buffered_inputs


def moved(model, seed):
    """The same architecture with other weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_a_rollout_equals_numpy_on_unpadded_rows(tmp_path, whiten_rewards):
    """Everything from log-probabilities to whitened advantages, row by row, without padding and without our code."""
    settings = {"beta": 0.3, "gamma": 0.9, "lam": 0.8, "missing_eos_penalty": 0.5, "temperature": 0.7}
    trainer = ppo_trainer(tmp_path, whiten_rewards=whiten_rewards, **settings)
    moved(trainer.model, 1)  # so that the policy is no longer the reference
    moved(trainer.value_model, 2)
    batches = rollout(trainer)
    rows, tokenizer = list(rows_of(batches)), trainer.processing_class
    assert len({int(row["completion_mask"].sum()) for row in rows}) > 1
    assert 0 < sum(tokenizer.eos_token_id in row["completion_ids"] for row in rows) < len(rows)

    rewards, values = [], []
    for row in rows:
        length = int(row["completion_mask"].sum())
        old, ref = plain_logps(trainer.model, row, 0.7), plain_logps(trainer.ref_model, row, 0.7)
        np.testing.assert_allclose(row["old_per_token_logps"][:length], old, atol=2e-5)
        text = tokenizer.decode(row["completion_ids"][:length], skip_special_tokens=True)
        ended = int(row["completion_ids"][length - 1]) == tokenizer.eos_token_id
        reward = -0.3 * (old - ref)
        reward[-1] += text.count("a") / 4 - (0.0 if ended else 0.5)
        rewards.append(reward)
        values.append(plain_values(trainer.value_model, row))
        np.testing.assert_allclose(row["values"][:length], values[-1], atol=2e-5)
    if whiten_rewards:
        every = np.concatenate(rewards)
        rewards = [(r - every.mean()) / every.std() + every.mean() for r in rewards]
    advantages = []
    for r, v in zip(rewards, values, strict=True):
        delta = r + 0.9 * np.append(v[1:], 0.0) - v
        advantages.append([sum(0.72**k * d for k, d in enumerate(delta[t:])) for t in range(len(r))])
    every = np.concatenate(advantages)
    for row, advantage, v in zip(rows, advantages, values, strict=True):
        length = len(advantage)
        np.testing.assert_allclose(row["returns"][:length], np.add(advantage, v), rtol=1e-3, atol=2e-4)
        whitened = (np.array(advantage) - every.mean()) / every.std()
        np.testing.assert_allclose(row["advantages"][:length], whitened, rtol=1e-3, atol=5e-4)
        for name in ("advantages", "returns", "values"):
            assert (row[name][length:] == 0).all()


def test_the_logged_sums_of_a_rollout(tmp_path):
    trainer = ppo_trainer(tmp_path, beta=0.3)
    moved(trainer.model, 1)
    rows = list(rows_of(rollout(trainer)))
    kl = [(plain_logps(trainer.model, r) - plain_logps(trainer.ref_model, r)).sum() for r in rows]
    score = [float(r["scores"]) for r in rows]
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["objective/kl"] == pytest.approx(np.mean(kl), abs=1e-4)
    assert metrics["objective/entropy"] == pytest.approx(-np.mean([plain_logps(trainer.model, r).sum() for r in rows]))
    assert metrics["objective/scores"] == pytest.approx(np.mean(score))
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.3 * np.mean(kl), abs=1e-4)
    assert metrics["objective/rlhf_reward"] == pytest.approx(np.mean(score) - 0.3 * np.mean(kl), abs=1e-4)


def test_the_loss_of_the_policy_is_the_clipped_one_and_knows_no_beta(tmp_path):
    """A KL term left in the loss would count the penalty twice."""
    losses = []
    for beta in (0.05, 5.0):
        trainer = ppo_trainer(tmp_path, beta=beta)
        batch = rollout(trainer)[-1]
        mask, advantages = batch["completion_mask"].numpy(), torch.randn(batch["values"].shape, generator=seeded(3))
        batch["advantages"] = advantages
        moved(trainer.model, 1)
        new = trainer._logps(trainer.model, batch).detach().numpy()
        loss = trainer._compute_loss(trainer.model, batch)
        ratio = np.exp(new - batch["old_per_token_logps"].numpy())
        per_token = -np.minimum(ratio * advantages.numpy(), np.clip(ratio, 0.8, 1.2) * advantages.numpy())
        tokens = float(batch["num_items_in_batch"]) * 2 / 4  # of the window: 2 of the rollout's 4 micro-batches
        assert loss.item() == pytest.approx((per_token * mask).sum() / tokens, rel=1e-4)
        logged_loss = trainer._metrics["train"]["loss/policy_avg"][-1]
        assert logged_loss == pytest.approx((per_token * mask).sum() / mask.sum(), rel=1e-4)
        losses.append(loss.item())
    assert losses[0] == losses[1]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_loss_of_the_critic_is_the_clipped_one(tmp_path):
    trainer = ppo_trainer(tmp_path, cliprange_value=0.1)
    batch = rollout(trainer)[-1]
    moved(trainer.value_model, 2)
    values, mask = trainer._values(batch).detach().numpy(), batch["completion_mask"].numpy()
    old, target = batch["values"].numpy(), batch["returns"].numpy()
    losses = np.maximum((values - target) ** 2, (np.clip(values, old - 0.1, old + 0.1) - target) ** 2) / 2
    loss = trainer._value_loss(batch, "train").item()
    assert loss == pytest.approx((losses * mask).sum() / (float(batch["num_items_in_batch"]) / 2), rel=1e-4)
    assert trainer._metrics["train"]["val/clipfrac_avg"][-1] > 0


def test_nothing_moves_at_rate_zero(tmp_path):
    """Several passes and minibatches of several lengths: every ratio is exactly 1, and the KL exactly 0."""
    trainer = ppo_trainer(tmp_path, learning_rate=0.0, num_iterations=3, max_steps=12, logging_steps=1)
    before = policy_weights(trainer), critic_weights(trainer)
    trainer.train()
    assert logged(trainer, "val/ratio") == [1.0] * 12
    assert set(logged(trainer, "val/ratio_var") + logged(trainer, "policy/clipfrac_avg")) == {0.0}
    assert set(logged(trainer, "policy/approxkl_avg") + logged(trainer, "objective/kl")) == {0.0}
    assert_equal_weights(before[0], policy_weights(trainer))
    assert_equal_weights(before[1], critic_weights(trainer))


def test_policy_and_critic_learn_and_the_reference_stays(tmp_path):
    trainer = ppo_trainer(tmp_path, learning_rate=3e-3, max_steps=40, num_iterations=4, steps_per_generation=2)
    reference = {name: p.clone() for name, p in trainer.ref_model.named_parameters()}
    before = policy_weights(trainer), critic_weights(trainer)
    trainer.train()
    assert_equal_weights(reference, dict(trainer.ref_model.named_parameters()))
    for old, new in zip(before, (policy_weights(trainer), critic_weights(trainer)), strict=True):
        assert all(not torch.equal(value, new[name]) for name, value in old.items())
    kl = logged(trainer, "objective/kl")
    assert kl[0] == 0 and kl[-1] > 0.01
    scores = logged(trainer, "objective/scores")
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.1
    assert all(norm > 0 for norm in logged(trainer, "val/grad_norm"))


@pytest.mark.parametrize("which", ["policy", "critic"])
def test_the_gradient_does_not_depend_on_how_a_minibatch_is_cut(tmp_path, which):
    """8 rows at once or 4 x 2 of them: with plain gradient descent the weights show the gradients."""
    weights = []
    for rows, accumulated in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        settings |= {"steps_per_generation": accumulated, "optim": "sgd", "max_grad_norm": 0.0, "num_iterations": 1}
        trainer = ppo_trainer(tmp_path, learning_rate=0.5, max_steps=1, **settings)
        trainer.train()
        weights.append(policy_weights(trainer) if which == "policy" else critic_weights(trainer))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_learned_positions_are_those_of_generation(tmp_path):
    """GPT-2 adds position embeddings: with padding on the left, TRL 1.16 alone would read a prompt at other places."""
    set_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes))
    trainer = ppo_trainer(tmp_path, model=model)
    for row in rows_of(rollout(trainer)):
        length = int(row["completion_mask"].sum())
        old = row["old_per_token_logps"][:length]
        np.testing.assert_allclose(old, plain_logps(trainer.model, row), atol=2e-5)
        np.testing.assert_allclose(row["values"][:length], plain_values(trainer.value_model, row), atol=2e-5)


def test_the_models_own_sampling_settings_are_ignored_and_kept(tmp_path, capsys):
    """Greedy by its own settings, the policy is sampled all the same; the settings are still there afterwards."""
    model = tiny_policy()
    model.generation_config.update(top_k=1, do_sample=True, suppress_tokens=[6, 7], no_repeat_ngram_size=1)
    trainer = ppo_trainer(tmp_path, model=model)
    assert "top_k" in capsys.readouterr().out
    same_prompt = [{"prompt": "bc"}] * 8
    trainer.model.train()
    batch = trainer._generate_and_score_completions(same_prompt)
    assert len({tuple(row) for row in batch["completion_ids"].tolist()}) > 1
    assert model.generation_config.suppress_tokens == [6, 7] and model.generation_config.top_k == 1


def test_adapters_share_a_base_that_stays(tmp_path):
    trainer = ppo_trainer(tmp_path, peft_config=lora(), learning_rate=1e-2, gradient_checkpointing=True)
    assert trainer.ref_model is None
    before = policy_weights(trainer)
    trainer.train()
    after = policy_weights(trainer)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    adapters = {name for name in before if "lora_" in name}
    assert changed == adapters
    assert {".default." in name for name in changed} == {True, False}
    assert trainer.value_model.head.weight.abs().sum() > 0
    assert logged(trainer, "objective/kl")[0] == 0 and logged(trainer, "objective/kl")[-1] != 0


def test_the_critics_adapter_leaves_the_policy_alone(tmp_path):
    """A critic that learns fast beside a policy at rate 0: the policy's probabilities do not move."""
    trainer = ppo_trainer(tmp_path, peft_config=lora(), learning_rate=0.0, value_learning_rate=0.05, logging_steps=1)
    trainer.train()
    assert set(logged(trainer, "val/ratio")) == {1.0}
    losses = logged(trainer, "loss/value_avg")
    assert losses[-1] != losses[0]


def test_several_rewards_async_weighted_and_one_only_reported(tmp_path):
    async def length(completions, **kwargs):
        return [len(c) / 8 for c in completions]

    def gold(completions, **kwargs):
        return [1000.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward=[count_a, length, gold], reward_weights=[2.0, 0.5, 0.0], max_steps=4)
    trainer.train()
    last = trainer.state.log_history[0]
    expected = 2 * last["rewards/count_a/mean"] + 0.5 * last["rewards/length/mean"]
    assert last["objective/scores"] == pytest.approx(expected, rel=1e-4)
    assert last["rewards/gold/mean"] == 1000.0


def test_groups_streams_and_columns_for_the_reward(tmp_path):
    data = prompts().add_column("letter", ["ab"[i % 2] for i in range(64)])
    calls = []

    def share_of_letter(prompts, completions, letter, **kwargs):
        calls.extend(zip(prompts, letter, strict=True))
        return [c.count(one) / 4 for c, one in zip(completions, letter, strict=True)]

    trainer = ppo_trainer(
        tmp_path, reward=share_of_letter, data=data.to_iterable_dataset(), num_generations=2, max_steps=4
    )
    trainer.train()
    assert all("ab"[(len(prompt) - 1) % 2] == letter for prompt, letter in calls)
    assert len(calls) == 8 and calls[0::2] == calls[1::2]


def test_what_cannot_be_scored_is_in_no_mean_and_no_gradient(tmp_path):
    """None for the prompts `b` and `bc`: the others are trained as if those rows were not there."""

    def only_long(prompts, completions, **kwargs):
        rewards = count_a(completions)
        return [r if len(p) > 2 else None for p, r in zip(prompts, rewards, strict=True)]

    trainer = ppo_trainer(tmp_path, reward=only_long)
    batches = rollout(trainer)
    rows = list(rows_of(batches))
    scored = [row for row in rows if row["prompt_mask"].sum() > 2]
    assert len(scored) == 4
    assert [int(row["completion_mask"].sum()) > 0 for row in rows] == [r["prompt_mask"].sum() > 2 for r in rows]
    assert float(batches[0]["num_items_in_batch"]) == sum(int(row["completion_mask"].sum()) for row in scored)
    metrics = trainer._metrics["train"]
    assert metrics["objective/scores"][-1] == pytest.approx(np.mean([float(row["scores"]) for row in scored]))
    every = torch.cat([row["advantages"][row["completion_mask"].bool()] for row in scored])
    assert every.mean().item() == pytest.approx(0, abs=1e-5) and every.std(correction=0).item() == pytest.approx(
        1, 1e-3
    )


def test_clipped_scores(tmp_path):
    def fifty(completions, **kwargs):
        return [50.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward=fifty, reward_clip_range=[-1, 2])
    assert {float(row["scores"]) for row in rows_of(rollout(trainer))} == {2.0}


def test_a_warm_up_trains_the_critic_alone(tmp_path):
    trainer = ppo_trainer(tmp_path, critic_warmup_steps=4, max_steps=4)
    before = policy_weights(trainer), critic_weights(trainer)
    trainer.train()
    assert_equal_weights(before[0], policy_weights(trainer))
    assert any(not torch.equal(value, critic_weights(trainer)[name]) for name, value in before[1].items())


def test_the_critics_rate_follows_the_policys_schedule(tmp_path):
    trainer = ppo_trainer(tmp_path, learning_rate=1e-3, value_learning_rate=4e-3, lr_scheduler_type="linear")
    trainer.train()
    assert trainer.value_optimizer.param_groups[0]["lr"] == pytest.approx(4e-3 / 8)  # the last of 8 steps


def test_evaluation_samples_and_reports_without_training(tmp_path):
    trainer = ppo_trainer(
        tmp_path, eval_dataset=prompts(8), eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=4
    )
    before = policy_weights(trainer), critic_weights(trainer)
    metrics = trainer.evaluate()
    assert_equal_weights(before[0], policy_weights(trainer))
    assert_equal_weights(before[1], critic_weights(trainer))
    assert {"eval_objective/kl", "eval_objective/scores", "eval_val/explained_variance", "eval_loss"} <= metrics.keys()
    assert metrics["eval_objective/kl"] == 0.0
    trainer.train()
    assert len(logged(trainer, "eval_objective/scores")) == 2


def test_conversations(tmp_path):
    data = prompts().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = ppo_trainer(tmp_path, data=data, max_steps=4)
    trainer.train()
    row = next(rows_of(trainer._buffered_inputs))
    prompt = char_tokenizer().decode(row["prompt_ids"][row["prompt_mask"].bool()])
    assert prompt in {f"<u>{'bcde'[:n]}<a>" for n in range(1, 5)}
