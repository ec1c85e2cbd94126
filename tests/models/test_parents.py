"""Parents as they are found, opened in one place: quantised weights, adapters, and folders that are not what they say.

The judges are hand arithmetic, bitsandbytes' own dequantisation, and PEFT with the adapter in place.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from stub_hub import StubHub
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from fourstage.models.adapters import finished_model
from fourstage.models.checkpoint import (
    check_openable,
    is_classifier,
    open_causal_lm,
    open_classifier,
    open_config,
    open_scorer,
)
from fourstage.models.opening import open_tokenizer
from fourstage.parent import find_parent

IDS = torch.arange(3, 43).view(2, 20)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 384,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of a language model with a head of its own, one without, a reward model, and one of three labels."""
    folder = tmp_path_factory.mktemp("parents")
    torch.manual_seed(0)
    shape = {**SHAPE, "pad_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "base")
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).save_pretrained(folder / "tied")
    LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1)).save_pretrained(folder / "reward")
    LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=3)).save_pretrained(folder / "three")
    return folder


@pytest.fixture
def copy(places, tmp_path):
    """Copies one of `places`, or a folder, to where a test may spoil it."""

    def make(name, to="copy"):
        return shutil.copytree(places / name, tmp_path / to)

    return make


@torch.no_grad()
def outputs(model):
    return model.eval()(input_ids=IDS).logits.float()


def edit(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def change_weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refusal(action, *args, **options):
    with pytest.raises(ValueError) as refused:
        action(*args, **options)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 600
    return message


# Quantised already


def to_fp8(weights):
    """Matrices in float8 with one scale for each 128 x 128 block, as DeepSeek's checkpoints have them."""
    out = dict(weights)
    for name in [name for name in weights if name.endswith("proj.weight")]:
        scale = weights[name].abs().max() / 448
        out[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        out[f"{name}_scale_inv"] = scale.view(1, 1)
    return out


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.fixture
def quantised(copy, tmp_path):
    """Makes a quantised copy of one of `places`, and says what each of its matrices stands for."""

    def make(kind, name="base"):
        if kind == "fp8":
            folder = copy(name, "fp8")
            change_weights(folder, to_fp8)
            edit(folder / "config.json", quantization_config=FP8)
            stored = load_file(folder / "model.safetensors")
            scales = {key: value for key, value in stored.items() if key.endswith("_scale_inv")}
            return folder, {
                key: value.float() * scales.get(f"{key}_scale_inv", 1)
                for key, value in stored.items()
                if key not in scales
            }
        bnb, config = pytest.importorskip("bitsandbytes"), pytest.importorskip("transformers").BitsAndBytesConfig
        options = {"4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}} | {
            "double": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"}
        }
        source, classes = copy(name, "source"), (AutoModelForCausalLM, AutoModelForSequenceClassification)
        model = classes[name == "reward"].from_pretrained(
            source, quantization_config=config(**options[kind]), dtype=torch.float32
        )
        model.save_pretrained(tmp_path / kind)
        means = {}
        for key, module in model.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                means[f"{key}.weight"] = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            elif isinstance(module, bnb.nn.Linear8bitLt):
                means[f"{key}.weight"] = module.weight.CB.float() * module.weight.SCB[:, None] / 127
        return tmp_path / kind, means

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "auto"])
@pytest.mark.parametrize("kind", ["fp8", "4bit", "double", "8bit"])
def test_quantised_weights_are_what_they_stand_for(quantised, places, tmp_path, capsys, kind, dtype):
    """The whole model trains, is saved as any other, and opens to the same."""
    folder, means = quantised(kind)
    model = open_causal_lm(str(folder), dtype=dtype)
    assert capsys.readouterr().out.count("dequantised to") == 1
    wanted = model.dtype
    assert wanted == (torch.float32 if dtype == "auto" else dtype) and {p.dtype for p in model.parameters()} == {wanted}
    state = model.state_dict()
    assert means
    for key, value in means.items():
        torch.testing.assert_close(
            state[key].float(), value.float(), rtol=1e-6 if wanted is torch.float32 else 8e-3, atol=1e-6
        )
    before = outputs(AutoModelForCausalLM.from_pretrained(places / "base"))
    assert (outputs(model) - before).abs().max() < (0.03 if kind in ("fp8", "8bit") else 0.2)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()
    again, loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto", output_loading_info=True)
    assert not any(loaded.values()) and torch.equal(outputs(again), outputs(model))
    assert model.generation_config.eos_token_id == 2


def test_the_four_bits_of_gpt_oss(tmp_path):
    """MXFP4 by hand: two numbers a byte, the low one first, and a power of two for each 32 of them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt_oss", **SHAPE | {"intermediate_size": 32, "num_hidden_layers": 1})
    config.update({"num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values, meant = torch.cat([values, -values]), {}

    def pack(weights):
        for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, columns, rows = weights.pop(name).shape
            blocks = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            scales = torch.randint(118, 124, blocks.shape[:-1], dtype=torch.uint8)
            pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], -1).flatten(-2)
            meant[name] = (pairs * 2.0 ** (scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2)
            weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        return weights

    change_weights(tmp_path, pack)
    edit(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    model = open_causal_lm(str(tmp_path), dtype=torch.float32)
    assert len(meant) == 2 and all(torch.equal(model.state_dict()[name], value) for name, value in meant.items())
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(open_causal_lm(str(tmp_path / "saved"))), outputs(model))


@pytest.mark.parametrize("kind", ["fp8", "4bit", "8bit"])
def test_a_quantised_reward_model_scores_as_it_did(quantised, places, kind):
    folder, _ = quantised(kind, "reward")
    scores = outputs(open_classifier(str(folder), dtype=torch.float32))
    torch.testing.assert_close(
        scores, outputs(AutoModelForSequenceClassification.from_pretrained(places / "reward")), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("kind", ["fp8", "4bit", "8bit"])
def test_a_reward_model_begins_with_a_quantised_language_model(quantised, kind):
    folder, means = quantised(kind)
    model, lacking = open_scorer(str(folder), dtype=torch.float32)
    assert lacking == ["score.weight"]
    state = {key: value for key, value in model.state_dict().items() if key in means}
    assert state and all(torch.allclose(value, means[key], rtol=1e-6, atol=1e-7) for key, value in state.items())


@pytest.mark.parametrize(
    "method",
    ["gptq", "awq", "compressed-tensors", "torchao", "hqq", "quanto", "bitnet", "fbgemm_fp8", "modelopt", "nextyear"],
)
def test_other_quantised_weights_are_refused_by_name(copy, method):
    folder = copy("base")
    edit(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    for action in (open_causal_lm, open_scorer, lambda name: check_openable(name, False)):
        message = refusal(action, str(folder))
        assert message.startswith(f"{folder} holds {method} weights") and "unquantised model" in message
    assert f"{method} weights" in find_parent(str(folder)).describe()
    assert find_parent(str(folder)).identity()["quantisation"] == method


@pytest.mark.parametrize("load_in", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("kind", ["fp8", "4bit", "8bit"])
def test_quantised_twice(quantised, kind, load_in):
    """Its own weights of bitsandbytes are taken where as many bits are asked for; anything else is refused."""
    folder, means = quantised(kind)
    config = pytest.importorskip("transformers").BitsAndBytesConfig(**{load_in: True})
    if load_in.endswith(kind):
        model = open_causal_lm(str(folder), quantization_config=config, dtype=torch.float32)
        assert getattr(model, f"is_loaded_in_{kind}")
    else:
        message = refusal(open_causal_lm, str(folder), quantization_config=config, dtype=torch.float32)
        assert message.startswith(f"{load_in}: {folder} holds") and f"leave --{load_in} out" in message


# Weights that are not those of the model


def without(*names):
    return lambda weights: {key: value for key, value in weights.items() if key not in names}


def adding(name, *size):
    return lambda weights: weights | {name: torch.ones(size or (2,))}


@pytest.mark.parametrize(
    "name, change, named",
    [
        ("base", without("lm_head.weight"), ["lacks", "lm_head.weight"]),
        ("base", without("model.layers.1.mlp.up_proj.weight", "model.norm.weight"), ["lacks", "(2 in all)"]),
        ("base", adding("model.layers.0.mlp.up_proj.weight_scale_inv"), ["unknown to", "weight_scale_inv"]),
        ("base", to_fp8, ["weight_scale_inv"]),  # scales, but no word of them in config.json
        ("tied", adding("score.weight", 1, 64), ["unknown to", "score.weight"]),
        ("base", adding("model.layers.0.self_attn.q_proj.lora_A.weight"), ["unknown to", "lora_A"]),
        ("base", lambda weights: weights | {"lm_head.weight": torch.ones(10, 64)}, ["lm_head.weight"]),
        ("base", lambda weights: {f"module.{key}": value for key, value in weights.items()}, ["lacks", "in all"]),
    ],
)
def test_weights_that_are_lacking_or_too_many(copy, name, change, named):
    folder = copy(name)
    change_weights(folder, change)
    message = refusal(open_causal_lm, str(folder))
    assert message.startswith(str(folder)) and all(word in message for word in named)


@pytest.mark.parametrize(
    "name, change",
    [
        ("base", adding("model.layers.0.self_attn.rotary_emb.inv_freq")),
        ("base", adding("model.layers.1.attn.masked_bias")),
        ("base", adding("v_head.summary.weight")),  # of TRL's policies with a value head
        ("base", adding("mtp.layers.0.mlp.up_proj.weight")),
        ("tied", lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}),
    ],
)
def test_weights_that_nothing_needs(copy, places, name, change):
    folder = copy(name)
    change_weights(folder, change)
    assert torch.equal(
        outputs(open_causal_lm(str(folder))), outputs(AutoModelForCausalLM.from_pretrained(places / name))
    )


def test_the_text_part_of_a_model_that_also_sees(tmp_path):
    text = {**SHAPE, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size_mlp": 64, "num_local_experts": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32}
    config = AutoConfig.for_model("llama4", text_config=text, vision_config=vision | {"projector_output_dim": 32})
    whole = pytest.importorskip("transformers").Llama4ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(open_causal_lm(str(tmp_path))), outputs(whole))
    weights = load_file(tmp_path / "model.safetensors")
    spoilt = {key: value for key, value in weights.items() if "layers.1.input_layernorm" not in key}
    save_file(spoilt, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "input_layernorm" in refusal(open_causal_lm, str(tmp_path))


@pytest.mark.parametrize("name", ["reward", "three"])
def test_a_classifier_is_no_language_model(places, name):
    folder = str(places / name)
    assert is_classifier(folder)
    for action in (open_causal_lm, lambda folder: check_openable(folder, False)):
        assert "scores answers and writes none" in refusal(action, folder)


def test_a_language_model_is_no_reward_model(places):
    assert "has no score head (score.weight" in refusal(open_classifier, str(places / "base"))


def test_shards_that_are_missing(places, tmp_path):
    AutoModelForCausalLM.from_pretrained(places / "base").save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and find_parent(str(tmp_path)).identity()["sha256"]
    for gone, more in ((shards[1], ""), (shards[0], " and 1 more")):
        gone.unlink()
        first = shards[1 if not more else 0].name
        assert f"lacks {first}{more}, which model.safetensors.index.json" in refusal(find_parent, str(tmp_path))


def test_a_value_model_is_named_as_one(copy):
    folder = copy("tied")  # its backbone alone would pass for a language model
    save_file({"weight": torch.zeros(1, 64)}, folder / "value_head.safetensors")
    assert "--value_model_name_or_path" in refusal(find_parent, str(folder))


# Adapters


@pytest.fixture
def adapter(places, tmp_path):
    """Makes an adapter of random weights, and gives its outputs and labels with PEFT."""

    def make(config, base="base", to="adapter", scores=False, opened=None):
        torch.manual_seed(1)
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        labels = {"num_labels": scores} if scores else {}
        model = opened or kind.from_pretrained(places / base, **labels)
        adapted = get_peft_model(model, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(tmp_path / to)
        return tmp_path / to, outputs(adapted)

    return make


def lora(**options):
    return LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **options)


def peft(kind, **options):
    return getattr(pytest.importorskip("peft"), f"{kind}Config")(task_type="CAUSAL_LM", **options)


KINDS = {
    "lora": lambda: lora(),
    "lora without a task": lambda: LoraConfig(target_modules=["q_proj"]),
    "dora": lambda: lora(use_dora=True),
    "rslora": lambda: lora(use_rslora=True, lora_alpha=32, rank_pattern={"q_proj": 2}),
    "modules_to_save": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "tokens": lambda: lora(trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [2]}),
    "lora of the head": lambda: LoraConfig(target_modules=["lm_head", "embed_tokens"], task_type="CAUSAL_LM"),
    "ia3": lambda: peft("IA3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft("LoHa", target_modules=["q_proj"]),
    "oft": lambda: peft("OFT", target_modules=["q_proj"], oft_block_size=8),
    "layer norms": lambda: peft("LNTuning", target_modules=["norm"]),
}


# PEFT gives tied weights one set of rows
BOTH = [(kind, base) for kind in KINDS for base in ("base", "tied") if (kind, base) != ("tokens", "tied")]


@pytest.mark.parametrize(("kind", "base"), BOTH)
def test_an_adapter_is_merged(places, adapter, tmp_path, capsys, kind, base):
    folder, expected = adapter(KINDS[kind](), base)
    effect = (expected - outputs(AutoModelForCausalLM.from_pretrained(places / base))).abs().max()
    model = open_causal_lm(str(folder), dtype=torch.float32)
    assert capsys.readouterr().out == f"{folder}: an adapter of {places / base}, merged\n"
    assert (outputs(model) - expected).abs().max() < min(1e-4, effect / 100)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not hasattr(model, "peft_config")
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(outputs(open_causal_lm(str(tmp_path / "saved"))), outputs(model), rtol=0, atol=0)
    parent = find_parent(str(folder))
    assert (
        parent.base.name == str(places / base)
        and parent.identity()["base"] == find_parent(str(places / base)).identity()
    )


def test_a_run_s_own_adapter_on_tied_weights_is_merged_right(places, tokenizer, tmp_path):
    """LoRA on the embedding alone: the head that shares its weights is to stay what it was."""
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    adapted = get_peft_model(LlamaForCausalLM(LlamaConfig(**shape)), LoraConfig(target_modules=["embed_tokens"]))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    run = SimpleNamespace(folder=tmp_path, is_main=True, record={})
    parts = {"accelerator": Accelerator(cpu=True), "args": SimpleNamespace(deepspeed_plugin=None)}
    trainer = SimpleNamespace(model=adapted, processing_class=tokenizer, **parts)
    asked = SimpleNamespace(attn_implementation=None, load_in_4bit=False, load_in_8bit=False)
    expected = outputs(adapted)
    merged = finished_model(run, trainer, None, asked)
    assert run.record["adapter"]["merge_difference"] < 1e-5 and not merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(outputs(open_causal_lm(str(tmp_path / "saved"))), expected, rtol=0, atol=1e-4)


def test_a_new_adapter_on_a_merged_one_names_it(places, adapter, tmp_path):
    first, before = adapter(lora())
    second, after = adapter(lora(), to="second", opened=open_causal_lm(str(first)))
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(outputs(open_causal_lm(str(second))), after, rtol=0, atol=1e-4)
    assert find_parent(str(second)).identity()["base"]["base"]["path"] == str(places / "base")


@pytest.mark.parametrize(
    "named, beside, said",
    [
        ("base", ["config.json"], "{base}, merged"),  # some programs write it too
        ("self", ["config.json", "model.safetensors"], "the model beside it, merged"),
        ("base", ["config.json", "model.safetensors"], "{base}, merged; the weights beside it are not read"),
    ],
)
def test_an_adapter_beside_a_model(places, adapter, capsys, named, beside, said):
    """It belongs to what adapter_config.json names, so that weights it was merged into already get it once."""
    folder, expected = adapter(lora())
    for file in beside:
        shutil.copy(places / "base" / file, folder)
    if named == "self":
        edit(folder / "adapter_config.json", base_model_name_or_path=str(folder))
    elif "model.safetensors" in beside:
        change_weights(folder, lambda weights: {key: value + 1 for key, value in weights.items()})
    model = open_causal_lm(str(folder))
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-4)
    assert capsys.readouterr().out == f"{folder}: an adapter of {said.format(base=places / 'base')}\n"
    assert model.name_or_path == str(folder)


@pytest.mark.parametrize("kind", ["fp8", "4bit"])
def test_an_adapter_of_a_quantised_model(quantised, adapter, kind):
    base, _ = quantised(kind)
    folder, expected = adapter(lora(), opened=open_causal_lm(str(base), dtype=torch.float32))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    torch.testing.assert_close(outputs(open_causal_lm(str(folder), dtype=torch.float32)), expected, rtol=0, atol=1e-4)


def test_an_adapter_with_more_tokens_than_its_base(places, adapter):
    """A pad token was added before it was trained, and the embedding saved with it."""
    grown = AutoModelForCausalLM.from_pretrained(places / "base")
    grown.resize_token_embeddings(390)
    folder, expected = adapter(lora(modules_to_save=["embed_tokens", "lm_head"]), opened=grown)
    model = open_causal_lm(str(folder))
    assert model.config.vocab_size == 390
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-4)


def test_an_adapter_of_a_reward_model(places, adapter):
    config = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    folder, expected = adapter(config, scores=1)  # its head is in the adapter, its base a language model
    assert is_classifier(str(folder)) and open_config(str(folder)).num_labels == 1
    torch.testing.assert_close(outputs(open_classifier(str(folder))), expected, rtol=0, atol=1e-4)
    assert "scores answers and writes none" in refusal(open_causal_lm, str(folder))
    many, expected = adapter(config, scores=3, to="many")
    assert open_config(str(many)).num_labels == 3
    torch.testing.assert_close(outputs(open_classifier(str(many))), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("modules", [["q_proj"], ["q_proj", "lm_head"]])
def test_a_reward_model_from_an_adapter_of_a_language_model(adapter, modules):
    """Its backbone is that of the merged model, its head new; an adapter of that is opened again."""
    folder, _ = adapter(LoraConfig(target_modules=modules, task_type="CAUSAL_LM"))
    config = open_config(str(folder))
    config.num_labels = 1
    model, lacking = open_scorer(str(folder), config=config)
    assert lacking == ["score.weight"] and model.name_or_path == str(folder)
    merged = open_causal_lm(str(folder)).state_dict()
    for key, value in model.state_dict().items():
        assert key == "score.weight" or torch.equal(value, merged[key])
    onto, expected = adapter(LoraConfig(target_modules=["v_proj"], task_type="SEQ_CLS"), to="onto", opened=model)
    torch.testing.assert_close(outputs(open_classifier(str(onto))), expected, rtol=0, atol=1e-4)


UNMERGEABLE = {
    "prompt tuning": lambda: peft("PromptTuning", num_virtual_tokens=3),
    "prefix tuning": lambda: peft("PrefixTuning", num_virtual_tokens=3),
    "p tuning": lambda: peft("PromptEncoder", num_virtual_tokens=3, encoder_hidden_size=8),
    "lily": lambda: peft("Lily", target_modules=["q_proj"]),
}


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_an_adapter_that_cannot_be_merged(places, tmp_path, kind):
    get_peft_model(AutoModelForCausalLM.from_pretrained(places / "base"), UNMERGEABLE[kind]()).save_pretrained(tmp_path)
    message = refusal(find_parent, str(tmp_path))
    assert message.startswith(f"{tmp_path} is an adapter of the kind {kind}") and str(places / "base") in message


def test_an_activated_lora_is_no_merged_one(places, adapter):
    folder, _ = adapter(lora())
    edit(folder / "adapter_config.json", alora_invocation_tokens=[3, 4])
    assert "activated LoRA" in refusal(find_parent, str(folder))


@pytest.mark.parametrize(
    "entries, named",
    [
        ({"base_model_name_or_path": "runs/gone"}, ["runs/gone", "does not exist", "base_model_name_or_path"]),
        ({"base_model_name_or_path": "/no/such/folder"}, ["/no/such/folder", "does not exist", "bring it back"]),
        ({"base_model_name_or_path": None}, ["does not name", "adapter_config.json"]),
        ({"base_model_name_or_path": ""}, ["does not name"]),
        ({"base_model_name_or_path": "SELF"}, ["names itself"]),
    ],
)
def test_a_base_that_is_not_there(adapter, entries, named):
    folder, _ = adapter(lora())
    edit(folder / "adapter_config.json", **{k: str(folder) if v == "SELF" else v for k, v in entries.items()})
    for action in (find_parent, open_causal_lm):
        message = refusal(action, str(folder))
        assert str(folder) in message and all(word in message for word in named)


def test_a_base_on_the_hub_that_cannot_be_had(adapter):
    folder, _ = adapter(lora())
    edit(folder / "adapter_config.json", base_model_name_or_path="owner/name")
    find_parent(str(folder))
    message = refusal(open_causal_lm, str(folder))
    assert "owner/name: not on this machine" in message


def test_adapters_of_each_other(adapter):
    one, _ = adapter(lora(), to="one")
    other, _ = adapter(lora(), to="other")
    edit(one / "adapter_config.json", base_model_name_or_path=str(other))
    edit(other / "adapter_config.json", base_model_name_or_path=str(one))
    assert "circle" in refusal(find_parent, str(one))


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def pickled(folder):
    no_weights(folder)
    torch.save({}, folder / "adapter_model.bin")


def cut_off(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def fewer(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(key for key in weights if "layers.1" in key))
    save_file(weights, folder / "adapter_model.safetensors")


def other_modules(folder):
    edit(folder / "adapter_config.json", target_modules=["c_attn"])


def other_rank(folder):
    edit(folder / "adapter_config.json", r=4)


def other_kind(folder):
    edit(folder / "adapter_config.json", peft_type="NEXT_YEAR")


def no_json(folder):
    (folder / "adapter_config.json").write_text("{")


@pytest.mark.parametrize(
    "spoil, named",
    [
        (no_weights, "adapter_model.safetensors"),
        (pickled, "pickles"),
        (cut_off, "broken or cut off"),
        (fewer, "lacks weights"),
        (other_modules, "c_attn"),
        (other_rank, "does not fit its base"),
        (other_kind, "NEXT_YEAR"),
        (no_json, "adapter_config.json is broken"),
    ],
)
def test_an_adapter_that_is_broken(adapter, spoil, named):
    folder, _ = adapter(lora())
    spoil(folder)
    message = refusal(
        open_causal_lm if spoil in (cut_off, fewer, other_modules, other_rank) else find_parent, str(folder)
    )
    assert str(folder) in message and named in message


def test_an_adapter_of_another_model(places, adapter, tmp_path):
    folder, _ = adapter(lora())
    torch.manual_seed(0)
    larger = LlamaForCausalLM(LlamaConfig(**SHAPE | {"hidden_size": 32}))
    larger.save_pretrained(tmp_path / "larger")
    edit(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "larger"))
    assert "does not fit its base" in refusal(open_causal_lm, str(folder))


@pytest.mark.parametrize("load_in", ["load_in_4bit", "load_in_8bit"])
def test_an_adapter_is_not_quantised(adapter, load_in):
    folder, _ = adapter(lora())
    assert refusal(check_openable, str(folder), False, load_in).startswith(f"{load_in}: {folder} is an adapter")


# Tokenizers


def test_the_tokenizer_of_an_adapter(places, adapter, tokenizer, tmp_path):
    """Its own, else that of the run that left it, else that of its base."""
    runs = tmp_path / "run"
    folder, _ = adapter(lora(), to="run/adapter")
    names = {}
    for place, pad in ((places / "base", "<|reserved_0|>"), (runs, "<|bos|>"), (folder, "<|user|>")):
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(place)
        if place == runs:
            (runs / "run.json").write_text(json.dumps({"status": "finished", "stage": "sft"}))
        names[place] = open_tokenizer(str(folder)).pad_token
    tokenizer.pad_token = "<|pad|>"
    assert list(names.values()) == ["<|reserved_0|>", "<|bos|>", "<|user|>"]
    assert find_parent(str(folder)).stage == "sft"


# On the Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """This process takes a small server for the Hub."""
    with StubHub().serve() as stub:
        url = stub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        settings = {"ENDPOINT": stub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in (settings | {"HF_HUB_CACHE": str(tmp_path / "cache")}).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
        yield stub


def test_an_adapter_on_the_hub(hub, places, adapter, tokenizer):
    folder, expected = adapter(lora())
    tokenizer.save_pretrained(places / "base")
    edit(folder / "adapter_config.json", base_model_name_or_path="me/base")
    for name, source in (("me/base", places / "base"), ("me/adapter", folder)):
        hub.add(name, {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()})
    parent = find_parent("me/adapter", "main")
    identity = parent.identity()
    assert identity["commit"] and identity["base"]["path"] == "me/base" and identity["base"]["commit"]
    model = open_causal_lm("me/adapter", revision="main")
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-4)
    assert open_tokenizer("me/adapter", revision="main").get_vocab() == tokenizer.get_vocab()
    hub.repos["model", "me/adapter"].commit(
        "empty", {"adapter_config.json": b'{"peft_type": "PREFIX_TUNING"}'}, "other"
    )
    assert "prefix tuning" in refusal(find_parent, "me/adapter", "empty")
    edit(folder / "adapter_config.json", base_model_name_or_path="me/gone")
    assert "no such repository" in refusal(open_causal_lm, str(folder))
