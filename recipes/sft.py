"""Stage 2, instruction tuning: a base model and conversations -> a model that answers and stops.

    accelerate launch recipes/sft.py --model_name_or_path runs/base --dataset_name DATA --output_dir runs/sft
    accelerate launch recipes/sft.py --model_name_or_path runs/base --dataset_name DATA --use_peft

Without arguments it tunes the embedded base model on embedded instructions. Loss falls on the assistant's tokens only.
"""

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, parse
from fourstage.errors import reported_errors


def main(data_args: DataArguments, training_args: InstructConfig, model_args: ModelArguments) -> None:
    from transformers import set_seed

    from fourstage.artifact.progress import show_summary, watch
    from fourstage.artifact.run import finish_run, record_data, start_run
    from fourstage.data.encoded import encode_conversations
    from fourstage.data.loading import load_conversations
    from fourstage.data.trained_text import tell_untrained
    from fourstage.doctor.light import tell_faults
    from fourstage.evaluation.everywhere import evaluate_everywhere, last_evaluation
    from fourstage.evaluation.generation import answer_questions
    from fourstage.instruction import InstructTrainer
    from fourstage.launch import check_launch
    from fourstage.models.adapters import adapter_config, complete_tied_head, finished_model
    from fourstage.models.fused_head import check_fused_head
    from fourstage.models.loading import load_causal_lm, load_tokenizer, new_stop
    from fourstage.models.tokenizer import mark_generation
    from fourstage.optim import MuonWithAdamW, parameter_groups
    from fourstage.parent import needed_parent
    from fourstage.resolve import resolve_sft
    from fourstage.speed import speed_up

    # The parent and every setting, before anything is written
    check_launch(training_args)
    parent = needed_parent(model_args.model_name_or_path, model_args.model_revision, "sft")
    tokenizer, repairs = load_tokenizer(model_args, chats=True)
    resolved = resolve_sft(data_args, training_args, model_args)
    own_template = tokenizer.chat_template
    repairs += mark_generation(tokenizer) if training_args.assistant_only_loss else []
    set_seed(training_args.seed)
    run = start_run("sft", data_args, training_args, model_args, parent, repairs, resolved)
    tell_faults("sft", tokenizer, data_args, training_args, model_args)

    # The rows
    train, test = load_conversations(data_args, training_args.seed, tokenizer)
    record_data(run, train, test)
    train = encode_conversations(tokenizer, train, training_args, "train")
    test = encode_conversations(tokenizer, test, training_args, "held-out")
    tell_untrained(tokenizer, train, "train")

    if not (training_args.packing or training_args.eval_packing or training_args.shuffle_dataset):
        given = training_args.dataset_kwargs or {}
        training_args.dataset_kwargs = {**given, "skip_prepare_dataset": True}  # nothing is left to do

    # The model and its trainer
    model = load_causal_lm(model_args, tokenizer)
    trainer = InstructTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        peft_config=adapter_config(
            model_args, model, tokenizer, continues_text=parent.is_base or new_stop(model_args, tokenizer) is not None
        ),
        optimizers=(MuonWithAdamW(parameter_groups(model, training_args)) if training_args.use_muon else None, None),
    )
    complete_tied_head(trainer.model)  # LoRA on a tied head: TRL's fused loss asks it for a bias
    check_fused_head(trainer)  # some architectures do more than TRL's fused loss knows of
    speed_up(trainer, model_args)
    evaluate_everywhere(trainer)
    watch(trainer, run)

    result = trainer.train(resume_from_checkpoint=run.checkpoint)

    # What the stage leaves
    metrics = {**result.metrics, **last_evaluation(trainer)}
    tokenizer.chat_template = own_template
    model = finished_model(run, trainer, load_causal_lm, model_args)
    samples = answer_questions(model, tokenizer)
    finish_run(run, trainer, model, samples, metrics)
    show_summary(run, metrics, samples)
    trainer.end()  # closes trackers and the process group


if __name__ == "__main__":
    with reported_errors():
        main(*parse(__file__, DataArguments, InstructConfig, ModelArguments))
