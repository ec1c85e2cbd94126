"""The stages of a chain, from random weights to a reasoning model: one plain table that everything else reads.

A new stage begins with a row here (docs/extending.md).
"""

from dataclasses import dataclass

DEMO_MINUTES = 6  # the whole chain on embedded data, on two cores (docs/log/demo.md)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: its folder in a chain, and its YAML in recipes/configs/MODEL/.
        recipe: the file in recipes/ that trains it.
        title: its row of the stage table.
        parent: the stage whose model it starts from in a chain; None for random weights.
        needs: other stages that have to be finished before it.
        rows: what it learns from: text, conversations, pairs, prompts or problems.
        scores: whether its model scores answers (a sequence classifier); otherwise it writes them (a causal LM).
        makes: its model in a few words, for the model card.
        share: its part of the demo's time, in percent; 0 for a stage that is not part of the demo.
        next: the command that follows; `{folder}` is this stage's folder, `{parent}` its parent's.
    """

    name: str
    recipe: str
    title: str
    parent: str | None
    rows: str
    scores: bool
    makes: str
    share: int
    next: str | None = None
    needs: tuple[str, ...] = ()


_TABLE = (
    Stage(
        name="pretrain",
        recipe="pretrain",
        title="1 pre-training",
        parent=None,
        rows="text",
        scores=False,
        makes="a base model that continues text",
        share=27,
        next="accelerate launch recipes/sft.py --model_name_or_path {folder} --dataset_name DATA",
    ),
    Stage(
        name="sft",
        recipe="sft",
        title="2 instruction tuning",
        parent="pretrain",
        rows="conversations",
        scores=False,
        makes="an assistant, tuned on conversations",
        share=19,
        next="accelerate launch recipes/reward.py --model_name_or_path {folder} --dataset_name DATA",
    ),
    Stage(
        name="reward",
        recipe="reward",
        title="reward model",
        parent="sft",
        rows="pairs",
        scores=True,
        makes="a reward model, which scores answers",
        share=11,
        next="accelerate launch recipes/ppo.py --model_name_or_path {parent} --dataset_name DATA "
        "--reward_model_name_or_path {folder}",
    ),
    Stage(
        name="ppo",
        recipe="ppo",
        title="3 preference tuning (PPO)",
        parent="sft",
        rows="prompts",
        scores=False,
        makes="an assistant, tuned by PPO towards answers that are preferred",
        share=18,
        needs=("reward",),
        next="accelerate launch recipes/grpo.py --model_name_or_path {folder} --dataset_name DATA "
        "--reward_funcs number",
    ),
    Stage(
        name="grpo",
        recipe="grpo",
        title="4 reasoning tuning (GRPO)",
        parent="ppo",
        rows="problems",
        scores=False,
        makes="a reasoning model, tuned by GRPO on problems with known answers",
        share=24,
    ),
    # What GRPO does with coin flips as rewards: any gain of the stage above is measured against it.
    Stage(
        name="control",
        recipe="grpo",
        title="4 with coin flips as rewards",
        parent="ppo",
        rows="problems",
        scores=False,
        makes="the control of a reasoning model: its rewards were coin flips",
        share=1,
    ),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _TABLE}
RECIPES = tuple(stage.name for stage in _TABLE if stage.name == stage.recipe)


def parents_of(name: str) -> list[str]:
    """The stages that have to be finished before this one, in a chain.

    Example: parents_of("ppo") -> ["sft", "reward"].
    """
    stage = STAGES[name]
    return [*([stage.parent] if stage.parent else []), *stage.needs]
