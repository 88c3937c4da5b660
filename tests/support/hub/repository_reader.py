"""Loads a Hub repository by every auto class and writes down what comes out; runs on transformers 4 and 5.

    python -P repository_reader.py INPUTS.npz OUTPUT_FOLDER REPOSITORY...      # writes OUTPUT_FOLDER/0.npz, 1.npz...

INPUTS.npz holds `images` uint8 [B, H, W, 3], `instructions` [B] and `question`. The interpreter needs torch,
transformers, numpy and Pillow; the package itself cannot be imported here, installed or not.
"""

import sys
from typing import Any


sys.modules["gen_vla"] = None  # type: ignore[assignment]  # any import of it now fails

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


torch.set_num_threads(1)
LOADERS = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq")


def main(inputs_file: str, output_folder: str, *repositories: str) -> None:
    """Reads them all in one interpreter, since starting one takes longer than reading."""
    data = dict(np.load(inputs_file))
    for number, repository in enumerate(repositories):
        np.savez(f"{output_folder}/{number}.npz", **read(repository, data))


def read(repository: str, data: dict[str, Any]) -> dict[str, Any]:
    """Everything the two generations have to agree on."""
    images, instructions = [Image.fromarray(image) for image in data["images"]], list(map(str, data["instructions"]))
    processor = transformers.AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    inputs = processor.action_inputs(images, instructions)
    outputs: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
    loaders = [name for name in LOADERS if name != "AutoModelForVision2Seq" or transformers.__version__ < "5"]
    for name in loaders:
        loader = getattr(transformers, name)
        model, info = loader.from_pretrained(repository, trust_remote_code=True, output_loading_info=True)
        problems = {kind: found for kind, found in info.items() if found}
        assert not problems, f"{name}: {problems}"
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            outputs[f"logits {name}"] = model.eval()(**inputs).logits.numpy()
    prediction = model.predict_actions(**inputs, unnorm_key="tiny")  # type: ignore[reportPossiblyUnbound]
    outputs |= {"tokens": prediction.token_ids, "actions": prediction.actions, "texts": np.array(prediction.text)}
    outputs["probabilities"] = prediction.digit_probabilities
    outputs["one"] = model.predict_action(**processor.action_inputs(images[0], instructions[0]))
    question = processor.question_inputs(images[0], str(data["question"]))
    for cache in (None, "static"):
        options = {} if cache is None else {"cache_implementation": cache}
        answer = model.generate(**question, do_sample=False, max_new_tokens=8, **options)
        outputs[f"answer {cache}"] = answer.numpy()
    outputs["text"] = np.array(processor.batch_decode(outputs["answer None"], skip_special_tokens=True))
    parts = [{"type": "image", "image": images[0]}, {"type": "text", "text": "How many?"}]
    for name, content in (("parts", parts), ("words alone", "How many?")):
        messages = [{"role": "user", "content": content}]
        asked = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        outputs[f"messages of {name}"] = asked["input_ids"].numpy()
    text_only = processor(text=[processor.question_prompt("How many?"), processor.question_prompt("Go?")])
    outputs["words"] = model.generate(**text_only, do_sample=False, max_new_tokens=4).numpy()
    outputs["version"] = np.array(transformers.__version__)
    return outputs


if __name__ == "__main__":
    main(*sys.argv[1:])
