"""Loads models by name, as users do, and writes down what comes out.

    python -P hub_reader.py INPUTS.npz OUTPUT_FOLDER NAME[@REVISION]...      # writes OUTPUT_FOLDER/0.npz, 1.npz...

INPUTS.npz holds `image` uint8 [H, W, 3], `instruction` and `question`. HF_ENDPOINT says which Hub, HF_HUB_OFFLINE that
there is only the cache. The package itself cannot be imported here, installed or not.
"""

import sys
from typing import Any


sys.modules["gen_vla"] = None  # type: ignore[assignment]  # any import of it now fails

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402


LOADERS = ("AutoModel", "AutoModelForImageTextToText")


def main(inputs_file: str, output_folder: str, *names: str) -> None:
    """Reads them all in one interpreter, since starting one takes longer than reading."""
    data = dict(np.load(inputs_file))
    for number, name in enumerate(names):
        repo_id, _, revision = name.partition("@")
        np.savez(f"{output_folder}/{number}.npz", **read(repo_id, revision or "main", data))


def read(repo_id: str, revision: str, data: dict[str, Any]) -> dict[str, Any]:
    """What each way of loading gives; `untrusted` is what a user reads who does not ask for the code to be run."""
    image, settings = Image.fromarray(data["image"]), {"revision": revision, "trust_remote_code": True}
    processor = transformers.AutoProcessor.from_pretrained(repo_id, **settings)
    inputs = processor.action_inputs(image, str(data["instruction"]))
    outputs: dict[str, Any] = {}
    for name in LOADERS:
        model = getattr(transformers, name).from_pretrained(repo_id, **settings)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        outputs["module"] = np.array(type(model).__module__)  # its path names the commit that the code is of
        with torch.no_grad():
            outputs[f"logits {name}"] = model.eval()(**inputs).logits.numpy()
        outputs[f"action {name}"] = model.predict_action(**inputs, unnorm_key="tiny")
    answering: Any = transformers.pipeline("image-text-to-text", model=repo_id, **settings)
    content = [{"type": "image", "image": image}, {"type": "text", "text": str(data["question"])}]
    options = {"max_new_tokens": 4, "do_sample": False}
    messages = [{"role": "user", "content": content}]
    answer = answering(text=messages, generate_kwargs=options, return_full_text=False)
    outputs["answer"] = np.array(answer[0]["generated_text"])
    try:
        transformers.AutoModel.from_pretrained(repo_id, revision=revision)
    except ValueError as error:
        outputs["untrusted"] = np.array(str(error))
    return outputs


if __name__ == "__main__":
    main(*sys.argv[1:])
