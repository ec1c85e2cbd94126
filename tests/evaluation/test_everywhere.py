"""Held-out rows of several processes: each process reads every row once, and figures are those of one."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from fourstage.evaluation.everywhere import evaluate_everywhere, held_out_prompts, last_evaluation


class Rows(torch.nn.Module):
    """Its loss is the mean of the rows' values, and it notes what it has seen."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], torch.nn.Parameter(torch.zeros(1))

    def forward(self, value, labels=None):
        self.seen += value.tolist()
        return {"loss": value.mean() + 0 * self.weight.sum(), "logits": value[:, None]}


@pytest.fixture
def trainer(tmp_path):
    settings = {"per_device_eval_batch_size": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    rows = Dataset.from_dict({"value": [1.0, 2.0, 4.0, 8.0, 16.0], "labels": [0] * 5})
    args = TrainingArguments(output_dir=str(tmp_path), prediction_loss_only=True, **settings)
    return Trainer(Rows(), args, eval_dataset=rows)


def test_each_of_several_processes_evaluates_every_row_once(trainer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", 2)
        evaluate_everywhere(trainer)
    # The mean over the rows; of the last batch, which is half full, transformers would count the loss twice.
    for _ in range(2):
        trainer.model.seen.clear()
        assert trainer.evaluate()["eval_loss"] == pytest.approx((1 + 2 + 4 + 8 + 16) / 5)
        assert trainer.model.seen == [1, 2, 4, 8, 16]


def test_other_rows_than_the_trainer_s_are_evaluated_whole_too(trainer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", 2)
        evaluate_everywhere(trainer)
    few = Dataset.from_dict({"value": [5.0, 7.0, 9.0], "labels": [0] * 3})
    assert trainer.evaluate(few)["eval_loss"] == pytest.approx(7)


def test_one_process_keeps_its_own_way(trainer):
    before = trainer.get_eval_dataloader
    evaluate_everywhere(trainer)
    assert trainer.get_eval_dataloader == before


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"eval_strategy": "steps", "eval_steps": 2}, [2, 4]),  # the last step has one: not again
        ({"eval_strategy": "no"}, [4]),
        ({"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 10}, [4]),
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 4]),
        ({"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_steps": 2}, [2, 4, 4]),
    ],
)
def test_the_last_evaluation_is_of_the_weights_that_training_left(tmp_path, settings, evaluations):
    rows = Dataset.from_dict({"value": [1.0, 2.0, 4.0], "labels": [0] * 3})
    always = {"per_device_eval_batch_size": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments(output_dir=str(tmp_path), prediction_loss_only=True, max_steps=4, **always, **settings)
    trainer, seen = Trainer(Rows(), args, train_dataset=rows, eval_dataset=rows), []
    own = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: seen.append(trainer.state.global_step) or own(*args, **kwargs)
    trainer.train()
    found = last_evaluation(trainer)
    assert seen == evaluations
    again = own()
    assert found.keys() == again.keys() and found["eval_loss"] == again["eval_loss"]


@pytest.mark.parametrize(
    ("prompts", "processes", "answers", "most", "used", "size"),
    [
        (64, 1, 1, 32, 64, 32),
        (64, 2, 1, 32, 64, 32),
        (64, 2, 1, 16, 64, 16),
        (61, 1, 1, 32, 60, 30),
        (20, 1, 1, 32, 20, 20),
        (100, 3, 1, 32, 96, 16),
        (12, 2, 4, 8, 12, 8),  # batches of 16 answers, those to 4 prompts
        (6, 4, 2, 32, 6, 3),
        (5, 4, 8, 6, 4, 4),  # 24 answers at once at most, those to 3 prompts
        (3, 4, 1, 32, 3, 32),  # fewer prompts than processes
    ],
)
def test_rollouts_evaluate_in_batches_of_one_size(prompts, processes, answers, most, used, size):
    rows = Dataset.from_dict({"prompt": [str(i) for i in range(prompts + 3)]})
    args = SimpleNamespace(world_size=processes, num_generations_eval=answers, per_device_eval_batch_size=most)
    chosen = held_out_prompts(rows, args, prompts)
    assert chosen["prompt"] == rows["prompt"][:used] and args.per_device_eval_batch_size == size
    if used >= processes:
        assert (used * answers) % (size * processes) == 0 and size <= most
