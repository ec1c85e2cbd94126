"""Stage 1, pre-training: random weights and plain text -> a model that continues text.

    accelerate launch recipes/pretrain.py --dataset_name DATA --num_parameters 10M --output_dir runs/base
    accelerate launch --config_file accelerate_configs/ddp.yaml recipes/pretrain.py --config FILE.yaml

Without arguments it trains a small model on the embedded data. --model_name_or_path goes on from existing weights.
"""

from fourstage.arguments import DataArguments, ModelArguments, PretrainConfig, parse
from fourstage.errors import reported_errors


def main(data_args: DataArguments, training_args: PretrainConfig, model_args: ModelArguments) -> None:
    from transformers import set_seed

    from fourstage.artifact.progress import show_summary, watch
    from fourstage.artifact.run import finish_run, record_data, start_run
    from fourstage.data.loading import load_texts, texts_of
    from fourstage.evaluation.everywhere import evaluate_everywhere, last_evaluation
    from fourstage.evaluation.generation import continue_texts
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, finished_model
    from fourstage.models.loading import load_causal_lm, load_tokenizer
    from fourstage.models.random_init import random_causal_lm
    from fourstage.models.tokenizer import first_characters, train_tokenizer
    from fourstage.parent import find_parent
    from fourstage.pretraining import PretrainTrainer, bytes_per_token
    from fourstage.resolve import resolve_pretrain
    from fourstage.speed import speed_up

    # The parent, if there is one, and every setting, before anything is written
    check_launch(training_args)
    name = model_args.model_name_or_path
    parent = find_parent(name, model_args.model_revision) if name else None
    tokenizer, repairs = load_tokenizer(model_args) if parent or model_args.tokenizer_name else (None, [])
    resolved = resolve_pretrain(data_args, training_args, model_args)
    set_seed(training_args.seed)  # before the model: its weights may be random
    run = start_run("pretrain", data_args, training_args, model_args, parent, repairs, resolved)

    # The documents
    train, test = load_texts(data_args, training_args.seed, training_args.dataset_text_field)
    record_data(run, train, test)
    training_args.dataset_text_field = "text"

    # The tokenizer, the model and its trainer
    if tokenizer is None:
        tokenizer = train_tokenizer(first_characters(train), model_args.vocab_size, training_args.max_length)
    if parent:
        model = load_causal_lm(model_args, tokenizer)
    else:
        model = random_causal_lm(model_args, tokenizer, training_args.max_length)
    # Documents may be longer than the context, packing splits them: no warning about that.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    trainer = PretrainTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(model_args, model, tokenizer, continues_text=False),
        bytes_per_token=bytes_per_token(texts_of(test), tokenizer),
        keep_markers=model_args.keep_markers,
    )
    speed_up(trainer, model_args)
    evaluate_everywhere(trainer)
    watch(trainer, run)

    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    # What the stage leaves
    metrics = {**result.metrics, **last_evaluation(trainer)}
    model = finished_model(run, trainer, load_causal_lm, model_args)
    samples = continue_texts(model, tokenizer)
    finish_run(run, trainer, model, samples, metrics)
    show_summary(run, metrics, samples)
    trainer.end()  # closes trackers and the process group


if __name__ == "__main__":
    with reported_errors():
        main(*parse(__file__, DataArguments, PretrainConfig, ModelArguments))
