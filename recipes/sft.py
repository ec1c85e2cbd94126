"""Stage 2, instruction tuning: a base model and conversations -> a model that answers and stops.

    accelerate launch recipes/sft.py --model_name_or_path runs/base --dataset_name DATA --output_dir runs/sft
    accelerate launch recipes/sft.py --model_name_or_path runs/base --dataset_name DATA --use_peft

Without arguments it tunes the embedded base model on embedded instructions. Loss falls on the assistant's tokens only.
"""

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, parse


def main(data_args: DataArguments, training_args: InstructConfig, model_args: ModelArguments) -> None:
    from transformers import set_seed
    from trl import SFTTrainer

    from fourstage.artifact import CleanRun, finish_run, read_record, record_data, start_run
    from fourstage.data import describe, drop_overlong, fingerprint, load_conversations
    from fourstage.launch import check_launch
    from fourstage.metrics import answer_questions
    from fourstage.model import adapter_config, check_fused_head, complete_tied_head, load_causal_lm, load_tokenizer
    from fourstage.pretrain import MuonWithAdamW, parameter_groups
    from fourstage.progress import show_progress, show_summary

    check_launch(training_args)
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path is missing: the base model to tune, such as runs/pretrain or a Hub id")
    if training_args.use_muon and model_args.use_peft:
        raise ValueError("use_muon with use_peft: Muon is for whole matrices, adapters take AdamW; leave one out")
    tokenizer = load_tokenizer(model_args, chats=True)  # before the run folder: a missing parent leaves nothing behind
    set_seed(training_args.seed)
    run = start_run("sft", data_args, training_args, model_args)

    train, test = load_conversations(data_args, training_args.seed)
    record_data(run, {"train": fingerprint(train), "test": fingerprint(test)})
    print(f"data: {describe(train)} to train on, {describe(test)} held out")

    model = load_causal_lm(model_args, tokenizer)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", 1024)
    training_args.max_length = training_args.max_length or min(longest, 1024)

    def count_tokens(row: dict) -> int:
        turns = row["prompt"] + row["completion"]
        return len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])

    train = drop_overlong(train, count_tokens, training_args.max_length, training_args.overlong, "train")
    test = drop_overlong(test, count_tokens, training_args.max_length, training_args.overlong, "held-out")
    parent = read_record(model_args.model_name_or_path)
    is_base = parent["stage"] == "pretrain" if parent else False
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=is_base),
        optimizers=(MuonWithAdamW(parameter_groups(model, training_args)) if training_args.use_muon else None, None),
    )
    complete_tied_head(trainer.model)
    check_fused_head(trainer)
    trainer.add_callback(CleanRun(run))
    show_progress(trainer)
    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    metrics = {**result.metrics, **trainer.evaluate()}
    samples = answer_questions(trainer.model, tokenizer)
    finish_run(run, trainer, samples, metrics)
    show_summary("sft", run, metrics, samples)
    trainer.end()


if __name__ == "__main__":
    main(*parse(__file__, DataArguments, InstructConfig, ModelArguments))
