"""Stage 3, first half, the reward model: a tuned model and pairs of answers -> a model that scores answers.

    accelerate launch recipes/reward.py --model_name_or_path runs/sft --dataset_name DATA --output_dir runs/reward
    accelerate launch recipes/reward.py --model_name_or_path runs/sft --dataset_name DATA --use_peft

Without arguments it learns from the embedded pairs to prefer polite answers. A row has a prompt, a chosen and a
rejected answer; optionally a `margin` by which the first is better, and a `kind` by which the accuracy is told apart.
"""

from fourstage.arguments import DataArguments, ModelArguments, RewardModelConfig, parse


def main(data_args: DataArguments, training_args: RewardModelConfig, model_args: ModelArguments) -> None:
    from functools import partial

    from transformers import set_seed
    from trl import RewardTrainer

    from fourstage.artifact.progress import show_progress, show_summary
    from fourstage.artifact.run import CleanRun, finish_run, record_data, start_run
    from fourstage.data.lengths import drop_overlong, pair_tokens
    from fourstage.data.loading import describe, fingerprint, load_preferences
    from fourstage.evaluation.reward_model import describe_report, longer_wins, measure
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, finished_model, keep_head_type
    from fourstage.models.loading import load_reward_model, load_tokenizer
    from fourstage.parent import is_base

    check_launch(training_args)
    tokenizer, repairs = load_tokenizer(model_args, chats=True)  # first: without a parent nothing is written
    set_seed(training_args.seed)
    run = start_run("reward", data_args, training_args, model_args, repairs)

    train, test = load_preferences(data_args, training_args.seed)
    record_data(run, {"train": fingerprint(train), "test": fingerprint(test)})
    print(f"data: {describe(train)} to train on, {describe(test)} held out")

    model = load_reward_model(model_args, tokenizer)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 1024)
    training_args.max_length = training_args.max_length or min(longest, 1024)

    count_tokens = partial(pair_tokens, tokenizer)
    train = drop_overlong(train, count_tokens, training_args.max_length, training_args.overlong, "train")
    test = drop_overlong(test, count_tokens, training_args.max_length, training_args.overlong, "held-out")
    trainer = RewardTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=is_base(model_args.model_name_or_path)),
    )
    keep_head_type(trainer.model)
    trainer.add_callback(CleanRun(run))
    show_progress(trainer)
    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    metrics = {**result.metrics, **trainer.evaluate()}
    model = finished_model(run, trainer, load_reward_model, model_args)
    report, samples = measure(model, tokenizer, list(test), longer_wins(train.take(10_000)))
    metrics |= {**report, "eval_accuracy": report["reward_accuracy"]}  # TRL's weighs a short last batch like the others
    finish_run(run, trainer, model, samples, metrics)
    print(describe_report(report))
    show_summary("reward", run, metrics, samples)
    trainer.end()


if __name__ == "__main__":
    main(*parse(__file__, DataArguments, RewardModelConfig, ModelArguments))
