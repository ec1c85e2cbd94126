"""PPO for language models on one page. `python docs/ppo_in_one_page.py` runs it, in seconds on one core.

The prompt is a letter, the policy writes up to T tokens, and the score is the share of T that repeat the token before.
`tokens` (B, P + T) are prompts and completions; `mask` (B, T) is True at the tokens that the policy chose.
Papers: PPO arXiv 1707.06347, GAE arXiv 1506.02438, PPO on language models arXiv 1909.08593. The constants are the
defaults of PPOConfig where it has any. tests/ppo/test_ppo_in_one_page.py compares this page with PPOTrainer.
"""

import copy

import torch
from torch import Tensor, nn

from fourstage.ppo import functional as F

LETTERS, END, B, T = 5, 5, 64, 8  # tokens 0 to 4 are letters, token 5 ends a completion
BETA, GAMMA, LAM = 0.05, 1.0, 0.95  # weight of the KL penalty, discount, lambda of GAE
PASSES, MINIBATCHES, CLIP, CLIP_VALUE, MAX_GRAD_NORM = 4, 2, 0.2, 0.2, 1.0


def toy(outputs: int) -> nn.Module:  # causal, (B, S) -> (B, S, outputs): logits of the next token, or the one value
    return nn.Sequential(nn.Embedding(LETTERS + 1, 32), nn.Tanh(), nn.Linear(32, outputs))


def sample(policy: nn.Module) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(LETTERS, (B, 1))  # the prompts
    for _ in range(T):
        next_token = torch.distributions.Categorical(logits=policy(tokens)[:, -1]).sample()
        tokens = torch.cat([tokens, next_token[:, None]], dim=1)
    ends = (tokens[:, -T:] == END).long()
    return tokens, ends.cumsum(dim=1) - ends == 0  # mask: True up to and at the first end token


def log_probs(policy: nn.Module, tokens: Tensor) -> Tensor:  # log pi(a_t | s_t): logits are about the next token
    return policy(tokens)[:, -T - 1 : -1].log_softmax(-1).gather(-1, tokens[:, -T:, None])[..., 0]


def state_values(critic: nn.Module, tokens: Tensor) -> Tensor:  # V(s_t): the state is all that stands before token t
    return critic(tokens)[:, -T - 1 : -1, 0]


def advantages_and_returns(scores: Tensor, kl: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rewards = F.shaped_rewards(scores, kl, mask, BETA)  # -beta KL per token, the score at the last: 1909.08593 eq. 2
    advantages, returns = F.gae(rewards, values, mask, GAMMA, LAM)  # 1506.02438 eq. 16; return = advantage + value
    return F.masked_whiten(advantages, mask), returns  # mean 0 and variance 1 over the rollout


def update(policy: nn.Module, critic: nn.Module, optimizers: list, rollout: tuple[Tensor, ...]) -> list[list[float]]:
    tokens_per_step, history = rollout[1].sum() / MINIBATCHES, []  # every token of a rollout has the same weight
    for rows in PASSES * torch.arange(len(rollout[0])).chunk(MINIBATCHES):
        tokens, mask, old_logps, old_values, advantages, returns = (tensor[rows] for tensor in rollout)
        ratio = (log_probs(policy, tokens) - old_logps).exp()  # pi / pi_old, 1 in the first step
        policy_losses, _ = F.policy_losses(ratio, advantages, CLIP, CLIP)  # 1707.06347 eq. 7
        value_losses, _ = F.value_losses(state_values(critic, tokens), old_values, returns, CLIP_VALUE)  # clipped too
        losses = [(per_token * mask).sum() / tokens_per_step for per_token in (policy_losses, value_losses)]
        for model, optimizer, loss in zip((policy, critic), optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        history.append([loss.item() for loss in losses])
    return history


if __name__ == "__main__":
    torch.manual_seed(0)
    policy, critic = toy(LETTERS + 1), toy(1)
    reference = copy.deepcopy(policy)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0) for model in (policy, critic)]
    for number in range(61):  # 6. repeat
        with torch.no_grad():
            tokens, mask = sample(policy)  # 1. a rollout
            scores = ((tokens[:, 1:] == tokens[:, :-1]) & mask).sum(dim=1) / T  # 2. its scores: here from a rule
            logps, values = log_probs(policy, tokens), state_values(critic, tokens)  # 3. probabilities, KL, values
            kl = F.per_token_kl(logps, log_probs(reference, tokens), mask)
            advantages, returns = advantages_and_returns(scores, kl, values, mask)  # 4. rewards to advantages
        update(policy, critic, optimizers, (tokens, mask, logps, values, advantages, returns))  # 5. several passes
        if number % 10 == 0:
            print(f"update {number:2}  score {scores.mean():.3f}  KL {kl.sum(dim=1).mean():.2f}")
