"""Stage 4, reasoning tuning: a tuned model and problems with known answers -> a model that is right more often.

    accelerate launch recipes/grpo.py --model_name_or_path runs/sft --dataset_name DATA --reward_funcs number
    accelerate launch recipes/grpo.py --model_name_or_path runs/sft --dataset_name DATA --reward_funcs number \\
        --control random_reward --output_dir runs/grpo-control

The data are questions with an `answer` (GSM8K, MATH, AQuA, Countdown and others as they are). The model answers each
several times, a verifier compares the answers with the known right one (docs/verifiers.md), and those better than
their group's mean become likelier. Without arguments it tunes the embedded assistant on sums of two steps.
"""

from fourstage.arguments import DataArguments, ModelArguments, parse
from fourstage.errors import reported_errors
from fourstage.grpo.config import GRPORunConfig
from fourstage.imports import without_bitsandbytes


def main(data_args: DataArguments, training_args: GRPORunConfig, model_args: ModelArguments) -> None:
    with without_bitsandbytes():
        from fourstage.grpo import GRPOTrainer

    from functools import partial

    from transformers import set_seed

    from fourstage.artifact.progress import WriteCompletions, show_summary, watch
    from fourstage.artifact.run import finish_run, record_data, start_run
    from fourstage.data.lengths import drop_overlong, prompt_tokens
    from fourstage.data.loading import load_problems
    from fourstage.doctor.light import tell_faults
    from fourstage.evaluation.everywhere import held_out_prompts, last_evaluation
    from fourstage.evaluation.generation import answer_questions
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, finished_model
    from fourstage.models.facts import context_of
    from fourstage.models.loading import load_causal_lm, load_tokenizer
    from fourstage.parent import needed_parent
    from fourstage.resolve import resolve_grpo
    from fourstage.rl.rewards import load_rewards
    from fourstage.speed import speed_up

    # The parent and every setting, before anything is written
    check_launch(training_args)
    parent = needed_parent(model_args.model_name_or_path, model_args.model_revision, "grpo")
    tokenizer, repairs = load_tokenizer(model_args, chats=True)
    rewards = load_rewards(training_args)
    resolved = resolve_grpo(data_args, training_args, model_args, tokenizer)
    set_seed(training_args.seed)
    run = start_run("grpo", data_args, training_args, model_args, parent, repairs, resolved)
    tell_faults("grpo", tokenizer, data_args, training_args, model_args)

    # The rows, and the model whose context bounds them
    train, test = load_problems(data_args, training_args.seed, rewards, training_args, tokenizer)
    record_data(run, train, test)
    model = load_causal_lm(model_args, tokenizer)
    room = (context_of(model) or 1024) - training_args.max_completion_length
    count_tokens, shorter = partial(prompt_tokens, tokenizer), "lower --max_completion_length"
    train = drop_overlong(train, count_tokens, room, training_args.overlong, "train", fix=shorter)
    test = drop_overlong(test, count_tokens, room, training_args.overlong, "held-out", fix=shorter)

    # The trainer
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=training_args,
        train_dataset=train,
        eval_dataset=held_out_prompts(test, training_args, training_args.max_eval_rows),
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=False),
    )
    speed_up(trainer, model_args, trainer.ref_model, *trainer.reward_funcs)
    watch(trainer, run)
    trainer.add_callback(WriteCompletions(trainer, run.folder / "completions.jsonl"))

    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    # What the stage leaves
    metrics = {**result.metrics, **last_evaluation(trainer)}
    model = finished_model(run, trainer, load_causal_lm, model_args)
    samples = answer_questions(model, tokenizer, [row["prompt"] for row in test.take(4)])
    finish_run(run, trainer, model, samples, metrics)
    show_summary(run, metrics, samples)
    trainer.end()  # closes trackers and the process group


if __name__ == "__main__":
    with reported_errors():
        main(*parse(__file__, DataArguments, GRPORunConfig, ModelArguments))
