"""Models that say what a test has them say."""

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

HOSTILE = "a\x1b[31mb\x07c\u009bd\u202ee\rf\x00g\x7fh"


def parrot(tokenizer, follows, context=4096):
    """A model whose likeliest next token is a function of the last: its layers add nothing, its head is a table."""
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=context, **shape)).eval()
    layer = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for last, following in follows.items():
            model.lm_head.weight[following] += model.model.embed_tokens.weight[last]
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def chain(tokenizer, text, first="<|assistant|>", end=True):
    """What follows what, for a parrot that says `text` after the token `first`, then ends, or begins again."""
    ids = [tokenizer.convert_tokens_to_ids(first), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len({*ids}) == len(ids) and tokenizer.decode(ids[1:]) == text
    return dict(zip(ids, [*ids[1:], tokenizer.eos_token_id if end else ids[1]], strict=True))
