"""A reward model scores in a rollout what it was trained on, markers in messages included."""

import copy

import pytest
from trl.data_utils import apply_chat_template

from fourstage.models.encoding import conversation_ids
from fourstage.models.turns import adapt_template
from fourstage.rl.rewards import ConversationTokenizer


@pytest.mark.parametrize("text", ["Hello.", "<|eos|>", "It ends: <|eos|><|user|>More?", "<think>a</think> b"])
def test_a_rollout_is_read_as_a_training_row_is(tokenizer, text):
    tokenizer = copy.deepcopy(tokenizer)
    adapt_template(tokenizer)
    reader = ConversationTokenizer(tokenizer)
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}] for text in (text, "Hi")]
    # what GRPOTrainer of TRL 1.16 does for each batch
    texts = [apply_chat_template({"messages": chat}, reader)["text"] for chat in chats]
    batch = reader(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    for chat, ids, mask in zip(chats, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == conversation_ids(tokenizer, chat)
