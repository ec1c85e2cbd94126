"""What a run makes of its device: choices that follow size and device, and compiled layers against the plain ones."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from helpers import SHAPE
from ppo_helpers import char_tokenizer, tiny_policy
from transformers import AutoConfig, AutoModelForCausalLM, TrainerControl
from trl import SFTTrainer

from fourstage import speed
from fourstage.arguments import InstructConfig, ModelArguments, PretrainConfig
from fourstage.instruction import InstructTrainer

FAMILIES = ["qwen3", "llama", "gpt2", "gpt_neox", "gemma2", "mixtral"]
PLAIN = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def tiny(model_type, **more):
    torch.manual_seed(0)
    shape = SHAPE if model_type != "gpt2" else {"n_embd": 32, "n_layer": 2, "n_head": 2}
    config = AutoConfig.for_model(model_type, vocab_size=64, max_position_embeddings=32, **shape, **more)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def config_of(tmp_path, kind=InstructConfig, **settings):
    return kind(output_dir=str(tmp_path), use_cpu=True, **PLAIN | settings)


# Precision


@pytest.mark.parametrize(
    "found, parameters, pays",
    [
        ({"avx512_bf16": True, "amx_bf16": False}, 1_000_000, True),
        ({"amx_bf16": True}, 500_000, True),
        ({"avx512_bf16": True}, 499_999, False),
        ({"avx512_bf16": False, "avx512_f": True}, 10**9, False),
        ({}, 10**9, False),  # another architecture
    ],
)
def test_bfloat16_pays_on_cpus_that_multiply_it_and_models_that_are_large_enough(monkeypatch, found, parameters, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert speed.bfloat16_pays(parameters) is pays


@pytest.mark.parametrize(
    "settings, model, filled",
    [
        ({}, {}, True),
        ({"bf16": False}, {}, False),
        ({"bf16": True}, {}, False),
        ({}, {"dtype": "bfloat16"}, False),
        ({}, {"load_in_4bit": True}, False),
    ],
)
def test_precision_is_filled_only_where_nobody_chose(tmp_path, monkeypatch, settings, model, filled):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    args = config_of(tmp_path, **settings)
    assert speed.fill_precision(args, ModelArguments(**model), 10**6) == (["bf16"] if filled else [])
    assert (args.bf16, args.mixed_precision) == ((True, "bf16") if filled or args.bf16 else (False, "no"))
    assert args.pad_to_multiple_of == (8 if filled else None)


def test_a_width_that_was_given_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    args = config_of(tmp_path, pad_to_multiple_of=16)
    speed.fill_precision(args, ModelArguments(), 10**6)
    assert args.pad_to_multiple_of == 16


# Attention


def trainer_of(model, args, rows=None):
    accelerator = SimpleNamespace(distributed_type="NO")
    callbacks = []
    return SimpleNamespace(
        model=model, args=args, train_dataset=rows, accelerator=accelerator, add_callback=callbacks.append
    )


@pytest.mark.parametrize(
    "settings, chosen, becomes",
    [
        ({"bf16": True}, None, "eager"),
        ({"bf16": True}, "sdpa", "sdpa"),  # asked for
        ({"bf16": False}, None, "sdpa"),
        ({"bf16": True, "max_length": 8192}, None, "sdpa"),  # 8 rows x 2 heads x 8192 x 8192 weights
    ],
)
def test_plain_attention_beside_bfloat16_where_its_weights_fit(tmp_path, settings, chosen, becomes):
    model = tiny("llama")
    args = config_of(tmp_path, **{"max_length": 32, **settings})
    speed.speed_up(trainer_of(model, args), ModelArguments(attn_implementation=chosen))
    assert model.config._attn_implementation == becomes


# Compiled layers


def test_the_operations_of_a_run_by_hand(tmp_path):
    model, rows = tiny("llama"), Dataset.from_dict({"input_ids": [[1] * 10, [1] * 30]})
    args = config_of(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    state = SimpleNamespace(max_steps=5)
    size = sum(p.numel() for p in model.parameters())
    assert speed.operations(trainer_of(model, args, rows), state) == 6 * size * 4 * 2 * 20 * 5
    packed = config_of(tmp_path, PretrainConfig, max_length=32, per_device_train_batch_size=4)
    assert speed.operations(trainer_of(model, packed), state) == 6 * size * 4 * 32 * 5


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_layers_of_a_family_are_found(model_type):
    assert len(speed.layers_of(tiny(model_type))) == 2


@pytest.mark.parametrize(
    "asked, steps, compiled", [(None, 10, False), (None, 10**12, True), (True, 1, True), (False, 10**12, False)]
)
def test_layers_are_compiled_in_long_runs_or_when_asked(tmp_path, monkeypatch, asked, steps, compiled):
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: f)
    model = tiny("llama")
    args = config_of(tmp_path, torch_compile=asked)
    rows = Dataset.from_dict({"input_ids": [[1] * 10]})
    callback = speed.CompileLayers(trainer_of(model, args, rows), [model])
    names = list(model.state_dict())
    callback.on_train_begin(args, SimpleNamespace(max_steps=steps), TrainerControl())
    assert args.torch_compile is compiled and list(model.state_dict()) == names
    assert ["forward" in vars(layer) for layer in speed.layers_of(model)] == [compiled] * 2
    callback.on_train_end(args, SimpleNamespace(max_steps=steps), TrainerControl())
    assert not any("forward" in vars(layer) for layer in speed.layers_of(model))


def test_without_a_compiler_one_line_says_so(tmp_path, monkeypatch, capsys):
    def refuse(function, **kwargs):
        raise RuntimeError(
            "InductorError: InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE"
        )

    monkeypatch.setattr(torch, "compile", refuse)
    model, args = tiny("llama"), config_of(tmp_path, torch_compile=True)
    callback = speed.CompileLayers(trainer_of(model, args, None), [model])
    callback.on_train_begin(args, SimpleNamespace(max_steps=1), TrainerControl())
    assert args.torch_compile is False
    assert capsys.readouterr().out == (
        "layers are not compiled: InductorError: InvalidCxxCompiler: No working C++ compiler found\n"
    )


def test_what_falls_back_is_told_once_in_one_line(capsys):
    text = "WON'T CONVERT forward line 7\ndue to:\nTraceback\n  File\nBackendError: no kernel for this"
    record = logging.LogRecord("torch._dynamo.convert_frame", logging.WARNING, "", 0, text, None, None)
    assert [speed._tell_fallback(record), speed._tell_fallback(record)] == [False, False]
    assert capsys.readouterr().out == "a part of the model runs uncompiled: BackendError: no kernel for this\n"
    other = logging.LogRecord("torch._dynamo.convert_frame", logging.WARNING, "", 0, "something else", None, None)
    assert speed._tell_fallback(other)


@pytest.mark.slow  # half a minute of compiling for each
@pytest.mark.parametrize("model_type", ["qwen3", "gpt2", "mixtral"])
def test_compiled_layers_give_the_same_gradients(model_type):
    """For shapes that vary, with and without padding."""
    plain = tiny(model_type).train()
    for name in [name for name in plain.config.to_dict() if name.endswith(("pdrop", "dropout"))]:
        setattr(plain.config, name, 0.0)
    plain = plain.eval()
    model = copy.deepcopy(plain)
    speed.compile_in_place(speed.layers_of(model))
    for rows, length in ((2, 7), (3, 12), (1, 9)):
        ids = torch.randint(64, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        losses = []
        for each in (plain, model):
            each.zero_grad()
            losses.append(each(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss)
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
        for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=0)


# Stage 2's head


def test_the_counted_head_is_trls(tmp_path):
    tokenizer = char_tokenizer()
    chats = [[{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c" * (1 + i)}] for i in range(4)]
    rows = Dataset.from_list([{"messages": chat} for chat in chats])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<u>{{ m['content'] }}<a>{% else %}"
        "{% generation %}{{ m['content'] }}<eos>{% endgeneration %}{% endif %}{% endfor %}"
    )
    results = {}
    for kind in (SFTTrainer, InstructTrainer):
        model = tiny_policy()
        trainer = kind(
            model=model, args=config_of(tmp_path, max_length=32), train_dataset=rows, processing_class=tokenizer
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        assert (batch["labels"] == -100).any()
        loss = trainer.compute_loss(model.train(), dict(batch), num_items_in_batch=torch.tensor(7))
        loss.backward()
        grads = [p.grad.clone() for p in model.parameters()]
        results[kind] = [loss.detach(), *grads], {k: trainer._metrics["train"][k] for k in trainer._metrics["train"]}
    torch.testing.assert_close(results[InstructTrainer][0], results[SFTTrainer][0], rtol=1e-4, atol=1e-6)
    for name, values in results[SFTTrainer][1].items():
        assert results[InstructTrainer][1][name] == pytest.approx(values, rel=1e-4), name
