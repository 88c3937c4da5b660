"""Loads Hub repositories by every auto class and writes down what comes out; runs on transformers 4 and 5.

    python -P repository_reader.py INPUTS.npz OUTPUT_FOLDER NAME[@REVISION]...      # OUTPUT_FOLDER/0.npz, 1.npz...

NAME is a repository's or a folder. The interpreter needs torch, transformers, numpy and Pillow; the package itself
cannot be imported there, installed or not. Tests start it by `read_repositories` and compare with `use`.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image


LOADERS = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq")
QUESTION = "How many?"
GREEDY = {"do_sample": False, "max_new_tokens": 4}


def main(inputs_file: str, output_folder: str, *names: str) -> None:
    """Reads them all in one interpreter, since starting one takes longer than reading."""
    sys.modules["gen_vla"] = None  # type: ignore[assignment]  # any import of it now fails
    torch.set_num_threads(1)
    data = dict(np.load(inputs_file))
    for number, name in enumerate(names):
        np.savez(f"{output_folder}/{number}.npz", **load_and_use(name, data))


def load_and_use(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Everything that readers have to agree on; `untrusted` is what a user is told who does not trust the code."""
    repository, _, revision = name.partition("@")
    settings = {"revision": revision or "main", "trust_remote_code": True}
    five = transformers.__version__ >= "5"
    processor = transformers.AutoProcessor.from_pretrained(repository, **settings)
    outputs: dict[str, Any] = {"version": np.array(transformers.__version__)}
    for loader in LOADERS[:2] if five else LOADERS:
        model, info = getattr(transformers, loader).from_pretrained(repository, output_loading_info=True, **settings)
        problems = {kind: found for kind, found in info.items() if found}
        assert not problems, f"{loader}: {problems}"
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert not model.training
        if model.config.frozen:
            assert not any(weight.requires_grad for weight in frozen_weights(model))
        acted = act(model, processor, data)
        for key in acted.keys() & outputs.keys():
            np.testing.assert_array_equal(acted[key], outputs[key], err_msg=loader)
        outputs |= {**acted, "class": np.array(f"{type(model)}")}  # its module names the commit that the code is of
    if not has_words(model):  # type: ignore[reportPossiblyUnbound]
        return outputs
    outputs |= answer(model, processor, data)  # type: ignore[reportPossiblyUnbound]
    if is_stock(model):  # type: ignore[reportPossiblyUnbound]
        outputs["pipeline"] = ask_stock_pipeline(repository, processor, Image.fromarray(data["images"][0]), settings)
    elif five and not Path(repository).is_dir():
        outputs |= ask_pipeline(repository, Image.fromarray(data["images"][0]), settings)
    return outputs


def has_words(model: Any) -> bool:
    """Whether it generates text; `can_generate` is true of every model that an auto class loaded."""
    return model.config.model_type != "pi0_flow"


def is_stock(model: Any) -> bool:
    """Whether it is a model of transformers inside, with the stock processor."""
    return model.config.model_type == "vla_plus"


def frozen_weights(model: Any) -> list[Any]:
    """Those of the encoder that never moves."""
    if not is_stock(model):
        return list(model.model.vision_tower.get_submodule(model.config.frozen).parameters())
    frozen = model.vlm.model.frozen_vision
    return [weight for name, weight in frozen.named_parameters() if not name.startswith(frozen.projectors)]


def act(model: Any, processor: Any, data: dict[str, Any]) -> dict[str, Any]:
    """What a model makes of two observations, and of the first one alone."""
    images, instructions = [Image.fromarray(image) for image in data["images"]], list(map(str, data["instructions"]))
    inputs = processor.action_inputs(images, instructions)
    outputs = {name: tensor.numpy() for name, tensor in inputs.items()}
    torch.manual_seed(0)  # flow matching begins with noise
    with torch.no_grad():
        outputs["logits"] = model(**inputs).logits.numpy()
    torch.manual_seed(0)
    prediction = model.predict_actions(**inputs, unnorm_key="tiny")
    outputs |= {"actions": prediction.actions, "texts": np.array(prediction.text)}
    if has_words(model):
        outputs |= {"tokens": prediction.token_ids, "probabilities": prediction.digit_probabilities}
    torch.manual_seed(0)
    outputs["one"] = model.predict_action(**processor.action_inputs(images[0], instructions[0]))
    return outputs


def answer(model: Any, processor: Any, data: dict[str, Any]) -> dict[str, Any]:
    """What a model answers to a question, and how its processor writes questions."""
    outputs = {}
    image = Image.fromarray(data["images"][0])
    question = processor.question_inputs(image, QUESTION)
    for cache in (None, "static"):
        options = {} if cache is None else {"cache_implementation": cache}
        outputs[f"answer {cache}"] = model.generate(**question, **GREEDY, **options).numpy()
    outputs["text"] = np.array(processor.batch_decode(outputs["answer None"], skip_special_tokens=True))
    if is_stock(model):
        return outputs
    parts = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    for name, content in (("parts", parts), ("words alone", QUESTION)):
        messages = [{"role": "user", "content": content}]
        asked = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        outputs[f"messages of {name}"] = asked["input_ids"].numpy()
    text_only = processor(text=[processor.question_prompt(QUESTION), processor.question_prompt("Go?")])
    outputs["words"] = model.generate(**text_only, **GREEDY).numpy()
    return outputs


def ask_pipeline(repository: str, image: Image.Image, settings: dict[str, Any]) -> dict[str, Any]:
    """The answer of transformers' pipeline, and the refusal without trust in the repository's code."""
    pipeline: Any = transformers.pipeline("image-text-to-text", model=repository, **settings)
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    answered = pipeline(text=messages, generate_kwargs=GREEDY, return_full_text=False)
    try:
        transformers.AutoModel.from_pretrained(repository, revision=settings["revision"])
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    return {"pipeline": np.array(answered[0]["generated_text"]), "untrusted": np.array(refusal)}


def ask_stock_pipeline(repository: str, processor: Any, image: Image.Image, settings: dict[str, Any]) -> np.ndarray:
    """The answer of transformers' pipeline."""
    pipeline: Any = transformers.pipeline("image-text-to-text", model=repository, **settings)
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    asked: dict[str, Any] = {"text": [{"role": "user", "content": content}]}
    if not processor.chat_template:
        asked = {"images": image, "text": processor.image_token + QUESTION}
    return np.array(pipeline(**asked, generate_kwargs=GREEDY, return_full_text=False)[0]["generated_text"])


def example_inputs() -> dict[str, Any]:
    """Two pictures of the tests and two instructions."""
    from tiny_models import picture

    return {"images": np.stack([np.asarray(picture(seed)) for seed in (0, 1)]), "instructions": ["open it", "go"]}


def use(model: Any, processor: Any) -> dict[str, Any]:
    """What a repository of this model must give, on either generation of transformers."""
    data = example_inputs()
    return {**act(model, processor, data), **(answer(model, processor, data) if has_words(model) else {})}


def check_same(outputs: dict[str, Any], expected: dict[str, Any]) -> None:
    """That a fresh interpreter came to the numbers of a model's `use`."""
    assert expected.keys() <= outputs.keys()
    for name, value in expected.items():
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(outputs[name], value, rtol=0, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(outputs[name], value, err_msg=name)


def read_repositories(
    names: Sequence[str | Path],
    work: Path,
    variables: dict[str, str] | None = None,
    python: str | Path = sys.executable,
) -> list[dict[str, Any]]:
    """What an interpreter reads, by default offline; `variables` are its environment's."""
    work.mkdir(exist_ok=True)
    np.savez(work / "inputs.npz", **example_inputs())
    settings = {**os.environ, "HF_HUB_OFFLINE": "1"} if variables is None else variables
    settings = {**settings, "HF_MODULES_CACHE": str(work / "modules"), "OMP_NUM_THREADS": "1"}
    settings.pop("PYTHONPATH", None)
    command = [python, "-P", __file__, work / "inputs.npz", work, *names]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 300}
    finished = subprocess.run(list(map(str, command)), cwd=work, env=settings, **options)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [dict(np.load(work / f"{number}.npz")) for number in range(len(names))]


if __name__ == "__main__":
    main(*sys.argv[1:])
