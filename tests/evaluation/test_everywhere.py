"""Held-out rows of several processes: each process reads every row once, and figures are those of one."""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from fourstage.evaluation.everywhere import evaluate_everywhere, last_evaluation


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
