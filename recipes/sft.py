"""Stage 2, instruction tuning: a base model and conversations -> a model that answers and stops.

    accelerate launch recipes/sft.py --model_name_or_path runs/base --dataset_name DATA --output_dir runs/sft
    accelerate launch recipes/sft.py --model_name_or_path runs/base --dataset_name DATA --use_peft

Without arguments it tunes the embedded base model on embedded instructions. Loss falls on the assistant's tokens only.
"""

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, parse


def main(data_args: DataArguments, training_args: InstructConfig, model_args: ModelArguments) -> None:
    from functools import partial

    from transformers import set_seed
    from trl import SFTTrainer

    from fourstage.artifact.progress import show_progress, show_summary
    from fourstage.artifact.run import CleanRun, finish_run, record_data, start_run
    from fourstage.data.lengths import conversation_tokens, drop_overlong
    from fourstage.data.loading import describe, fingerprint, load_conversations
    from fourstage.evaluation.generation import answer_questions
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, complete_tied_head, finished_model
    from fourstage.models.fused_head import check_fused_head
    from fourstage.models.loading import load_causal_lm, load_tokenizer
    from fourstage.models.tokenizer import mark_generation
    from fourstage.optim import MuonWithAdamW, parameter_groups
    from fourstage.parent import is_base

    check_launch(training_args)
    if training_args.use_muon and model_args.use_peft:
        raise ValueError("use_muon with use_peft: Muon is for whole matrices, adapters take AdamW; leave one out")
    tokenizer, repairs = load_tokenizer(model_args, chats=True)  # first: without a parent nothing is written
    own_template = tokenizer.chat_template
    repairs += mark_generation(tokenizer) if training_args.assistant_only_loss else []
    set_seed(training_args.seed)
    run = start_run("sft", data_args, training_args, model_args, repairs)

    train, test = load_conversations(data_args, training_args.seed)
    record_data(run, {"train": fingerprint(train), "test": fingerprint(test)})
    print(f"data: {describe(train)} to train on, {describe(test)} held out")

    model = load_causal_lm(model_args, tokenizer)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 1024)
    training_args.max_length = training_args.max_length or min(longest, 1024)

    count_tokens = partial(conversation_tokens, tokenizer)
    train = drop_overlong(train, count_tokens, training_args.max_length, training_args.overlong, "train")
    test = drop_overlong(test, count_tokens, training_args.max_length, training_args.overlong, "held-out")
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=is_base(model_args.model_name_or_path)),
        optimizers=(MuonWithAdamW(parameter_groups(model, training_args)) if training_args.use_muon else None, None),
    )
    complete_tied_head(trainer.model)
    check_fused_head(trainer)
    trainer.add_callback(CleanRun(run))
    show_progress(trainer)
    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    metrics = {**result.metrics, **trainer.evaluate()}
    tokenizer.chat_template = own_template
    model = finished_model(run, trainer, load_causal_lm, model_args)
    samples = answer_questions(model, tokenizer)
    finish_run(run, trainer, model, samples, metrics)
    show_summary("sft", run, metrics, samples)
    trainer.end()


if __name__ == "__main__":
    main(*parse(__file__, DataArguments, InstructConfig, ModelArguments))
