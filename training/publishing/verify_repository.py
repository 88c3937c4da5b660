"""Checks a Hub repository folder as it is loaded on a user's computer: without this package.

    python -P verify_repository.py FOLDER EXPECTED.npz

The auto classes must load it with `trust_remote_code` and use every tensor in it; its logits, answer and actions must
be those of the checkpoint it came from. `assembling.verify` runs this in an interpreter of its own, in which `gen_vla`
cannot be imported; exit code 1 and a message on failure.

EXPECTED.npz holds `images` uint8 [B, cameras, H, W, 3], `instructions` [B], `logits` float32 [B, V] at the last
position (of a flow, the velocity at the last step, with torch's seed at 0), for a model that generates text `answer`
int64 [1, L] (prompt and answer to "what is this?" about the first picture), and, for a model that acts, `actions` [B]
(the action strings; of a flow, with torch's seed at 0 again).
"""

import sys
from typing import Any


sys.modules["gen_vla"] = None  # type: ignore[assignment]  # any import of it now fails

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor  # noqa: E402


TOLERANCE = 1e-4  # float32 on one machine; a wrong or missing tensor is off by far more


def main(folder: str, expected_file: str) -> None:
    expected = np.load(expected_file)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    pictures = [[Image.fromarray(image) for image in row] for row in expected["images"]]
    state: dict[str, Any] = {}
    if processor.takes_state:  # that of the first data set for each of the two rows
        key = min(processor.state_statistics)
        state = {"state": [processor.neutral_state(key)] * 2, "unnorm_key": key}
    inputs = processor.action_inputs(pictures, list(expected["instructions"]), **state)
    seen = {name: values for name, values in inputs.items() if name != "state"}  # which is for `predict_actions`
    settings: dict[str, Any] = {"trust_remote_code": True, "dtype": torch.float32, "output_loading_info": True}
    for loader in (AutoModel, AutoModelForImageTextToText):
        model: Any = None  # the one before goes first: two large ones may not fit into memory
        loaded: Any = loader.from_pretrained(folder, **settings)
        model, info = loaded
        del loaded
        model.eval()
        if problems := {kind: sorted(map(str, found))[:3] for kind, found in info.items() if found}:
            sys.exit(f"{loader.__name__} got {problems}, expected the file's tensors to be the model's")
        if not type(model).__module__.startswith("transformers_modules."):
            sys.exit(f"{loader.__name__} gave {type(model)}, expected the class in the folder")
        torch.manual_seed(0)
        with torch.no_grad():
            logits = model(**seen).logits[:, -1].numpy()
        worst = float(np.abs(logits - expected["logits"]).max())
        if not worst <= TOLERANCE:
            sys.exit(f"got logits that differ by {worst:.2e} from the checkpoint's, expected at most {TOLERANCE}")
    check_generation(model, processor, inputs, expected)  # type: ignore[reportPossiblyUnbound]


def check_generation(model: Any, processor: Any, inputs: Any, expected: Any) -> None:
    if "answer" in expected:
        question = processor.question_inputs(Image.fromarray(expected["images"][0, 0]), "what is this?")
        answer = model.generate(**question, max_new_tokens=4, do_sample=False).tolist()
        if answer != expected["answer"].tolist():
            sys.exit(f"got the answer {answer}, expected {expected['answer'].tolist()}")
    if "actions" in expected:
        key = min(model.config.norm_stats)
        torch.manual_seed(0)
        texts = model.predict_actions(**inputs, unnorm_key=key).text
        if texts != expected["actions"].tolist():
            sys.exit(f"got actions {texts}, expected {expected['actions'].tolist()}")
        if model.config.action_config["representation"] != "flow":  # whose texts are for people
            for text in texts:
                processor.action_strings.decode(text)


if __name__ == "__main__":
    main(*sys.argv[1:3])
