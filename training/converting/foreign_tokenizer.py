"""The tokenizer of another project's checkpoint, with padding and the image placeholder."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import PreTrainedTokenizerFast

from gen_vla.modeling.conversion_plan import ConversionError


IMAGE_TOKEN = "<image>"
LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"}
GEMMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


def load_tokenizer(
    source: str | Path | None, special_tokens: dict[str, str], text_config: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer with padding and the image placeholder, both inside the model's vocabulary.

    Its `tokenizer.json` is taken as it is. Nothing else of its configuration is, which may name code of its own.
    """
    if source is None:
        raise ConversionError(
            "got a training run, which holds no tokenizer, and no tokenizer; pass --tokenizer with a folder or a name "
            "on the Hub, such as meta-llama/Llama-2-7b-hf"
        )
    folder = Path(source)
    file = folder / "tokenizer.json" if folder.is_dir() else Path(hf_hub_download(str(source), "tokenizer.json"))
    if not file.is_file():
        raise FileNotFoundError(
            f"got {source} without tokenizer.json, expected a fast tokenizer; pass --tokenizer, or, with "
            "tokenizer.model alone, write it where sentencepiece and protobuf are installed: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        **special_tokens,
        additional_special_tokens=[IMAGE_TOKEN],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    if len(tokenizer) > text_config.vocab_size:
        raise ConversionError(
            f"got a tokenizer of {len(tokenizer)} tokens, {IMAGE_TOKEN} included, and an embedding of "
            f"{text_config.vocab_size} rows, expected a row for each"
        )
    for name in ("bos", "eos", "pad"):
        got, expected = (getattr(owner, f"{name}_token_id") for owner in (tokenizer, text_config))
        if got != expected:
            raise ConversionError(
                f"got a tokenizer whose {name} token is {got}, expected {expected}; it belongs to another model"
            )
    return tokenizer
