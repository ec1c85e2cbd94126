"""Stage 3, second half, RLHF: a tuned model, prompts and rewards -> a model whose answers are preferred.

    accelerate launch recipes/ppo.py --model_name_or_path runs/sft --dataset_name DATA \\
        --reward_model_name_or_path runs/reward
    accelerate launch recipes/ppo.py --model_name_or_path runs/sft --dataset_name DATA --reward_funcs package.function

Without arguments it tunes the embedded assistant to be polite. The data are prompts, or rows of any stage, whose
answers are left out. A penalty of --beta on the distance from the starting model keeps it from gaming the reward, and
conversations to go on learning (--ptx_dataset_name) keep it from forgetting.
"""

from fourstage.arguments import DataArguments, ModelArguments, parse
from fourstage.errors import reported_errors
from fourstage.imports import without_bitsandbytes
from fourstage.ppo.config import PPORunConfig


def main(data_args: DataArguments, training_args: PPORunConfig, model_args: ModelArguments) -> None:
    with without_bitsandbytes():
        from fourstage.ppo import PPOTrainer

    from functools import partial

    from transformers import set_seed

    from fourstage.artifact.progress import WriteCompletions, show_summary, watch
    from fourstage.artifact.run import finish_run, record_data, start_run
    from fourstage.data.lengths import drop_overlong, prompt_tokens
    from fourstage.data.loading import load_prompts
    from fourstage.doctor.light import tell_faults
    from fourstage.evaluation.everywhere import held_out_prompts, last_evaluation
    from fourstage.evaluation.generation import answer_questions
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, finished_model
    from fourstage.models.facts import context_of
    from fourstage.models.loading import load_causal_lm, load_config, load_tokenizer
    from fourstage.parent import needed_parent
    from fourstage.ppo.critic import check_value_model
    from fourstage.ppo.ptx import load_ptx
    from fourstage.resolve import resolve_ppo
    from fourstage.rl.rewards import load_rewards
    from fourstage.speed import speed_up

    # The parent and every setting, before anything is written
    check_launch(training_args)
    parent = needed_parent(model_args.model_name_or_path, model_args.model_revision, "ppo")
    tokenizer, repairs = load_tokenizer(model_args, chats=True)
    rewards = load_rewards(training_args)
    if training_args.value_model_name_or_path:
        check_value_model(training_args.value_model_name_or_path)
    resolved = resolve_ppo(data_args, training_args, model_args)
    set_seed(training_args.seed)
    run = start_run("ppo", data_args, training_args, model_args, parent, repairs, resolved)
    tell_faults("ppo", tokenizer, data_args, training_args, model_args)

    # The rows, and the model whose context bounds them
    train, test = load_prompts(data_args, training_args.seed, tokenizer)
    ptx = load_ptx(training_args, data_args, tokenizer, context_of(load_config(model_args)))
    record_data(run, train, test, ptx)
    model = load_causal_lm(model_args, tokenizer)
    room = (context_of(model) or 1024) - training_args.max_completion_length
    count_tokens, shorter = partial(prompt_tokens, tokenizer), "lower --max_completion_length"
    train = drop_overlong(train, count_tokens, room, training_args.overlong, "train", fix=shorter)
    test = drop_overlong(test, count_tokens, room, training_args.overlong, "held-out", fix=shorter)

    # The trainer
    trainer = PPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=training_args,
        value_model=training_args.value_model_name_or_path,
        ptx_dataset=ptx,
        train_dataset=train,
        eval_dataset=held_out_prompts(test, training_args, training_args.max_eval_rows),
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=False),
    )
    speed_up(trainer, model_args, trainer.value_model, trainer.ref_model, *trainer.reward_funcs)
    watch(trainer, run)
    trainer.add_callback(WriteCompletions(trainer, run.folder / "completions.jsonl"))

    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    # What the stage leaves
    metrics = {**result.metrics, **last_evaluation(trainer)}
    if training_args.save_value_model:
        trainer.value_model.save(run.folder / "value", run.is_main)
    model = finished_model(run, trainer, load_causal_lm, model_args)
    samples = answer_questions(model, tokenizer)
    finish_run(run, trainer, model, samples, metrics)
    show_summary(run, metrics, samples)
    trainer.end()  # closes trackers and the process group


if __name__ == "__main__":
    with reported_errors():
        main(*parse(__file__, DataArguments, PPORunConfig, ModelArguments))
