"""Stage 3, first half, the reward model: a tuned model and pairs of answers -> a model that scores answers.

    accelerate launch recipes/reward.py --model_name_or_path runs/sft --dataset_name DATA --output_dir runs/reward
    accelerate launch recipes/reward.py --model_name_or_path runs/sft --dataset_name DATA --use_peft

Without arguments it learns from the embedded pairs to prefer polite answers. A row has a prompt, a chosen and a
rejected answer; optionally a `margin` by which the first is better, and a `kind` by which the accuracy is told apart.
"""

from fourstage.arguments import DataArguments, ModelArguments, RewardModelConfig, parse
from fourstage.errors import reported_errors


def main(data_args: DataArguments, training_args: RewardModelConfig, model_args: ModelArguments) -> None:
    from transformers import set_seed
    from trl import RewardTrainer

    from fourstage.artifact.progress import show_summary, watch
    from fourstage.artifact.run import finish_run, record_data, start_run
    from fourstage.data.encoded import encode_pairs
    from fourstage.data.loading import load_preferences
    from fourstage.doctor.light import tell_faults
    from fourstage.evaluation.everywhere import evaluate_everywhere, last_evaluation
    from fourstage.evaluation.reward_model import describe_report, longer_wins, measure
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, finished_model, keep_head_type
    from fourstage.models.loading import load_reward_model, load_tokenizer, new_stop
    from fourstage.parent import needed_parent
    from fourstage.resolve import resolve_reward
    from fourstage.speed import speed_up

    # The parent and every setting, before anything is written
    check_launch(training_args)
    parent = needed_parent(model_args.model_name_or_path, model_args.model_revision, "reward")
    tokenizer, repairs = load_tokenizer(model_args, chats=True)
    resolved = resolve_reward(data_args, training_args, model_args)
    set_seed(training_args.seed)
    run = start_run("reward", data_args, training_args, model_args, parent, repairs, resolved)
    tell_faults("reward", tokenizer, data_args, training_args, model_args)

    # The rows
    train, test = load_preferences(data_args, training_args.seed, tokenizer)
    record_data(run, train, test)
    train = encode_pairs(tokenizer, train, training_args, "train")
    test = encode_pairs(tokenizer, test, training_args, "held-out")

    # The model and its trainer
    model = load_reward_model(model_args, tokenizer)
    trainer = RewardTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(
            model_args, model, tokenizer, continues_text=parent.is_base or new_stop(model_args, tokenizer) is not None
        ),
    )
    keep_head_type(trainer.model)  # on a quantised base TRL makes the score head bfloat16
    speed_up(trainer, model_args)
    evaluate_everywhere(trainer)
    watch(trainer, run)

    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    # What the stage leaves
    metrics = {**result.metrics, **last_evaluation(trainer)}
    model = finished_model(run, trainer, load_reward_model, model_args)
    report, samples = measure(model, tokenizer, list(test), longer_wins(train.take(10_000)))
    metrics |= {**report, "eval_accuracy": report["reward_accuracy"]}  # TRL's weighs a short last batch like the others
    finish_run(run, trainer, model, samples, metrics)
    print(describe_report(report))
    show_summary(run, metrics, samples)
    trainer.end()  # closes trackers and the process group


if __name__ == "__main__":
    with reported_errors():
        main(*parse(__file__, DataArguments, RewardModelConfig, ModelArguments))
