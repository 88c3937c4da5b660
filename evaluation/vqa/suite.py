"""Is the vision-language model still in there? TextVQA, POPE, GQA, VizWiz, VSR and the recorded scenes, by lm-eval.

The protocol is lm-eval's `hf-multimodal` with the model's own chat template, greedy, without examples in the prompt.
Prompts and scoring are in `lm_eval_tasks/`; `vqa/results.py` sums the figures up.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from gen_vla.evaluation.policies.flow import check_answers
from gen_vla.evaluation.vqa.results import picture_of, task_figures
from gen_vla.training.provenance.origin import describe_machine


TASKS_FOLDER = Path(__file__).with_name("lm_eval_tasks")
PUBLISHED = ("textvqa", "pope", "gqa", "vizwiz", "vsr")
TASKS = (*PUBLISHED, "scenes")


def run_vqa(
    model: str,
    tasks: Sequence[str] = PUBLISHED,
    *,
    local: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 4,
    dtype: str = "auto",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Asks a model, a folder or a name on the Hub or in the cache, the questions of some of `TASKS`.

    Args:
        local: a folder with files for some or all tasks; see lm_eval_tasks/README.md.
        limit: at most this many questions per task, the first ones.
        batch_size: questions per call of `generate`.

    Returns:
        The results, ready for JSON, and every answer: `{"task", "question", "expected", "answer", "score",
        "picture"}`, the last one `None` where the data set does not name it.

    Raises:
        ValueError: for an unknown task, a number below 1, a model that writes no text, or without lm-eval.
        FileNotFoundError: if a task's data is not to be had; before the model is loaded.
    """
    check_arguments(tasks, limit, batch_size)
    simple_evaluate, manager_class = import_lm_eval()
    where = {"local": str(local)} if local else {}
    manager = manager_class(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=where)
    loaded = manager.load([f"gen_vla_{task}" for task in tasks])["tasks"]
    config = AutoConfig.from_pretrained(model, trust_remote_code=True)
    check_answers(config)
    evaluated = simple_evaluate(
        model="hf-multimodal",
        model_args={"pretrained": model, "trust_remote_code": True, "dtype": dtype},
        tasks=list(loaded.values()),
        task_manager=manager,
        batch_size=batch_size,
        device="cuda:0" if torch.cuda.is_available() else "cpu",
        limit=limit,
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = {task: evaluated["samples"][f"gen_vla_{task}"] for task in tasks}
    results = {
        "suite": "vqa",
        "model": model,
        "dtype": str(config.dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype,
        "environment": describe_machine(),
        "protocol": {
            "harness": f"lm-eval {version('lm-eval')}, hf-multimodal",
            "chat_template": True,
            "examples_in_prompt": 0,
            "decoding": "greedy",
            "batch_size": batch_size,
            "limit": limit,
        },
        "data": {task: data_source(loaded[f"gen_vla_{task}"].config, local) for task in tasks},
        "tasks": [figure for task in tasks for figure in task_figures(task, samples[task])],
    }
    return results, [answer for task in tasks for answer in list_answers(task, samples[task])]


def check_arguments(tasks: Sequence[str], limit: int | None, batch_size: int) -> None:
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"got tasks {', '.join(unknown) or 'none'}, expected some of {', '.join(TASKS)}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"got tasks {', '.join(tasks)}, expected each at most once")
    for name, number in (("limit", limit), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise ValueError(f"got a {name} of {number}, expected at least 1")


def import_lm_eval() -> tuple[Any, Any]:
    """lm-eval's `simple_evaluate` and `TaskManager`; a `ValueError` that says what to install without it."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"got no usable lm-eval ({error}), expected it to be installed; run: pip install 'gen-vla[eval]'"
        ) from error
    return simple_evaluate, TaskManager


def data_source(config: Any, local: str | Path | None) -> str:
    folder = Path(local or "") / config.dataset_kwargs["name"]
    return str(folder) if local and folder.is_dir() else config.dataset_kwargs["repository"]


def list_answers(task: str, samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        doc = sample["doc"]
        score = next(sample[name] for name in ("soft_accuracy", "exact_match", "accuracy") if name in sample)
        yield {
            "task": task,
            "question": doc.get("question") or doc.get("caption"),
            "expected": doc.get("answers") or sample["target"],
            "answer": sample["filtered_resps"][0],
            "score": float(score[0] == score[1]) if isinstance(score, tuple) else score,
            "picture": picture_of(doc),
        }
