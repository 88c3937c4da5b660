"""A small tokenizer with Llama's pre-tokenisation, trained on a recipe's own text.

The vocabulary's layout is Llama's: unk, BOS, EOS, 256 byte tokens, then merges, then PAD and the image placeholder. No
token holds a digit together with anything else, so that action strings are written one character at a time. Full-size
models bring the tokenizer of their language model instead.
"""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


SPECIAL = ("<unk>", "<s>", "</s>")
ACTION_CHARACTERS = "0123456789+-.,"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Trains a byte-pair tokenizer; raises `ValueError` if `vocab_size` leaves no room for a piece per character.

    Args:
        texts: what the model will read and write; a newline becomes Llama's byte piece `<0x0A>`.
        vocab_size: pieces in all, the 256 bytes and the special tokens included; fewer if the texts hold no more.

    Returns:
        A fast tokenizer with `<s>`, `</s>`, `<unk>`, `<PAD>` and `<image>`, which adds BOS.
    """
    reserved = len(SPECIAL) + 256 + 2
    if vocab_size < reserved + 100:
        raise ValueError(f"got vocab_size={vocab_size}, expected at least {reserved + 100}: {reserved} are reserved")
    pieces, merges = _learn_merges(texts, vocab_size - reserved)
    if len(pieces) > vocab_size - reserved:
        raise ValueError(
            f"got vocab_size={vocab_size} and texts with {len(pieces)} different characters, expected at least "
            f"{reserved + len(pieces)}"
        )
    vocab = {token: index for index, token in enumerate((*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))))}
    for piece in pieces:
        vocab.setdefault(piece, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<PAD>",
        additional_special_tokens=["<image>"],
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _learn_merges(texts: Iterable[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces in the order of their ids, and merges in the order they apply."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(Regex("\n+"), " ")  # newlines stay bytes, as in Llama
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"),
            pre_tokenizers.Split(Regex(r"[0-9+\-.,:?]"), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=sorted({*ACTION_CHARACTERS, "▁", ":", "?"})
    )
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    merges = json.loads(learner.to_str())["model"]["merges"]
    return sorted(vocab, key=lambda piece: vocab[piece]), [(left, right) for left, right in merges]
