import json

import pytest
import torch

from clipkit.towers.model_files import CONFIG_FILE
from clipkit.towers.open_clip import TokenCount, build_tokenizer
from tests.conftest import TINY_MODEL

TEXTS = ["", "a dog", "A red apple, to the LEFT of a green pear!!", "word " * 90, "naïve café 🍎 &amp; 日本", "!"]


def test_as_many_as_a_context_that_cuts_nothing_would_hold(tiny_model):
    tokenize, context = build_tokenizer(str(tiny_model))
    assert context == TINY_MODEL["text_cfg"]["context_length"]
    whole = tokenize(TEXTS, context_length=4096)
    ends = (whole == tokenize.eot_token_id).int().argmax(dim=1) + 1
    assert TokenCount(str(tiny_model))(TEXTS) == ends.tolist()
    assert TokenCount("ViT-B-32")(TEXTS) == ends.tolist()
    assert build_tokenizer("ViT-B-32")[1] == 77


def test_a_hugging_face_tokenizer_counts_too(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[END]": 2, "a": 3, "dog": 4}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.post_processor = tokenizers.processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    ).save_pretrained(tmp_path)
    text = TINY_MODEL["text_cfg"] | {"vocab_size": 5, "hf_tokenizer_name": "someone/words", "context_length": 4}
    (tmp_path / CONFIG_FILE).write_text(
        json.dumps({"model_cfg": TINY_MODEL | {"text_cfg": text}, "preprocess_cfg": {}})
    )
    tokenize, context = build_tokenizer(str(tmp_path))
    assert context == 4
    texts = ["a dog", "a a a dog dog dog", "", "a dog a"]
    whole = tokenize(texts, context_length=64)
    assert TokenCount(str(tmp_path))(texts) == (whole != 0).sum(dim=1).tolist() == [3, 7, 1, 4]
    cut = torch.tensor(TokenCount(str(tmp_path))(texts)) > context
    assert cut.tolist() == [False, True, False, False]


def test_no_such_model_is_said():
    with pytest.raises(ValueError, match="did you mean"):
        build_tokenizer("ViT-B-23")
