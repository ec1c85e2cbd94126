"""A tiny GGUF file as llama.cpp's converter writes them: a Llama model, its byte-level BPE tokenizer, a template."""

import json

import gguf
import torch
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "The quick brown fox jumps over the lazy dog. What is 12 plus 30? It is 42, she said; nobody slept." * 3


def write_tiny_gguf(path, kind="F32", untied=False):
    """Writes a GGUF file of about 40,000 parameters to `path`; `kind` is that of its matrices, such as Q8_0.

    Returns the transformers model with the very weights that the file stands for (what quantisation lost is lost in
    it), and the `tokenizers` tokenizer that the file's was written from. GPT-2's split, 320 entries.
    """
    tokenizer = _byte_level_tokenizer()
    model = _random_llama(tokenizer.get_vocab_size(), untied)
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_shape(writer, model.config)
    _write_tokenizer(writer, tokenizer)
    _write_weights(writer, model, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def _byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _random_llama(vocab_size, untied):
    """Grouped-query attention, and norms that are not one: a wrong permutation or a lost norm shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(
            vocab_size=vocab_size,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=not untied,
            **shape,
        )
        model = LlamaForCausalLM(config).eval()
        for name, value in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(value, 0.5, 1.5)
    return model


def _write_shape(writer, config):
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer, tokenizer):
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    kinds = [gguf.TokenType.CONTROL if token in (BOS, EOS, PAD) else gguf.TokenType.NORMAL for token in vocabulary]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(BOS))
    writer.add_eos_token_id(tokenizer.token_to_id(EOS))
    writer.add_pad_token_id(tokenizer.token_to_id(PAD))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_weights(writer, model, kind):
    """Writes every weight, and puts back into the model what the file's numbers mean."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, value in model.named_parameters():  # a tied head is not among them
        array = value.detach().numpy()
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads:
            array = _interleaved(array, getattr(model.config, heads))
        stored = kind if value.dim() == 2 else gguf.GGMLQuantizationType.F32
        data = quantize(array, stored)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=stored)
        meant = dequantize(data, stored)
        if heads:
            meant = _halves(meant, getattr(model.config, heads))
        value.data.copy_(torch.from_numpy(meant.copy()))


def _interleaved(array, heads):
    """Rows of each head from (first halves, second halves) to pairs: llama.cpp rotates neighbours."""
    rows, columns = array.shape
    return array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _halves(array, heads):
    rows, columns = array.shape
    return array.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
