"""Stage 1, pre-training: random weights and plain text -> a model that continues text.

    accelerate launch recipes/pretrain.py --dataset_name DATA --num_parameters 10M --output_dir runs/base
    accelerate launch --config_file accelerate_configs/ddp.yaml recipes/pretrain.py --config FILE.yaml

Without arguments it trains a small model on the embedded data. --model_name_or_path goes on from existing weights.
"""

from fourstage.arguments import DataArguments, ModelArguments, PretrainConfig, parse


def main(data_args: DataArguments, training_args: PretrainConfig, model_args: ModelArguments) -> None:
    from transformers import set_seed

    from fourstage.artifact.progress import show_progress, show_summary
    from fourstage.artifact.run import CleanRun, finish_run, record_data, start_run
    from fourstage.data.loading import describe, fingerprint, load_texts, texts_of
    from fourstage.evaluation.generation import continue_texts
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, finished_model
    from fourstage.models.loading import load_causal_lm, load_tokenizer
    from fourstage.models.random_init import random_causal_lm, uses_scaled_init
    from fourstage.models.sizing import parse_count
    from fourstage.models.tokenizer import default_vocab_size, first_characters, train_tokenizer
    from fourstage.optim import fill_rates
    from fourstage.pretraining import PretrainTrainer, bytes_per_token, packing_strategy

    check_launch(training_args)
    training_args.use_muon = training_args.use_muon and not model_args.use_peft  # adapters take AdamW
    tokenizer, repairs = None, []
    if model_args.model_name_or_path or model_args.tokenizer_name:
        tokenizer, repairs = load_tokenizer(model_args)  # first: without a parent nothing is written
    random_weights = not model_args.model_name_or_path
    fill_rates(training_args, random_weights and uses_scaled_init(model_args), random_weights, model_args.use_peft)
    set_seed(training_args.seed)  # before the model: its weights may be random
    run = start_run("pretrain", data_args, training_args, model_args, repairs)

    train, test = load_texts(data_args, training_args.seed, training_args.dataset_text_field)
    record_data(run, {"train": fingerprint(train), "test": fingerprint(test)})
    print(f"data: {describe(train)} to train on, {describe(test)} held out")

    if tokenizer is None:
        size = model_args.vocab_size or default_vocab_size(parse_count(model_args.num_parameters))
        tokenizer = train_tokenizer(first_characters(train), size, training_args.max_length)
    if not random_weights:
        model = load_causal_lm(model_args, tokenizer)
    else:
        model = random_causal_lm(model_args, tokenizer, training_args.max_length)

    training_args.dataset_text_field = "text"
    # Documents may be longer than the context, packing splits them: no warning about that.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if training_args.packing_strategy == "auto":
        training_args.packing_strategy = packing_strategy(model_args.attn_implementation)
    trainer = PretrainTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=False),
        bytes_per_token=bytes_per_token(texts_of(test), tokenizer),
    )
    trainer.add_callback(CleanRun(run))
    show_progress(trainer)
    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    metrics = {**result.metrics, **trainer.evaluate()}
    model = finished_model(run, trainer, load_causal_lm, model_args)
    samples = continue_texts(model, tokenizer)
    finish_run(run, trainer, model, samples, metrics)
    show_summary("pretrain", run, metrics, samples)
    trainer.end()


if __name__ == "__main__":
    main(*parse(__file__, DataArguments, PretrainConfig, ModelArguments))
