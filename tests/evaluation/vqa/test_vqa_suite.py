"""The VQA suite end to end on random models of both families: plain lm-eval without this package, and the command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import picture, tiny_model, tiny_pi0_model, tiny_pi0_processor, tiny_processor
from tiny_vlms import tiny_vla_pair
from vqa_files import write_all

from gen_vla.commands.main import main
from gen_vla.evaluation.vqa.suite import TASKS, TASKS_FOLDER, run_vqa


pytest.importorskip("lm_eval", reason="lm-eval is not installed; run: pip install 'gen-vla[eval]'")

QUESTIONS = 4
FAMILIES = ("openvla", "pi0", "gemma3", "qwen2_5_vl", "smolvlm")
# lm-eval where importing this package fails: a model's own code and the tasks' folder have to do. Its own task files,
# which take 20 seconds to read, are left out.
WITHOUT_PACKAGE = """
import json
import sys
from functools import partialmethod
sys.modules["gen_vla"] = None
from lm_eval.tasks import TaskManager
TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)
from lm_eval.__main__ import cli_evaluate
for sys.argv in json.loads(sys.argv[1]):
    cli_evaluate()
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("questions"), QUESTIONS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, llama_like, gemma_like, tiny_strings) -> dict[str, Path]:
    """A saved random model of each family."""
    made = {
        "openvla": (tiny_model(llama_like, tiny_strings), tiny_processor(llama_like, tiny_strings)),
        "pi0": (tiny_pi0_model(gemma_like, tiny_strings), tiny_pi0_processor(gemma_like, tiny_strings)),
        **{family: tiny_vla_pair(family, tmp_path_factory.mktemp("base")) for family in FAMILIES[2:]},
    }
    saved = {family: tmp_path_factory.mktemp(family) for family in made}
    for family, pair in made.items():
        for part in pair:
            part.save_pretrained(saved[family])
    return saved


@pytest.fixture(params=FAMILIES)
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.mark.slow
def test_plain_lm_eval_needs_nothing_of_this_package(folders, questions, tmp_path):
    """All in one interpreter, which takes longer to start than to answer."""
    arguments = ["lm_eval", "--model", "hf-multimodal", "--device", "cpu", "--batch_size", "4"]
    arguments += ["--apply_chat_template", "--include_path", str(TASKS_FOLDER)]
    arguments += ["--metadata", json.dumps({"local": str(questions)})]
    arguments += ["--tasks", ",".join(f"gen_vla_{task}" for task in TASKS)]
    calls = []
    for family in (families := ("openvla", *FAMILIES[2:])):
        model = f"pretrained={folders[family]},trust_remote_code=True,dtype=float32"
        calls.append([*arguments, "--model_args", model, "--output_path", str(tmp_path / family)])
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    for family in families:
        (file,) = (tmp_path / family).glob("*/results_*.json")
        check_plain(json.loads(file.read_text(encoding="utf-8"))["results"])


def check_plain(results: dict[str, Any]) -> None:
    assert set(results) == {f"gen_vla_{task}" for task in TASKS}
    assert {f"{name},none" for name in ("accuracy", "f1", "adversarial_recall", "random_unparsable")} <= set(
        results["gen_vla_pope"]
    )
    assert results["gen_vla_pope"]["unparsable,none"] == 1.0  # random letters are neither yes nor no
    assert results["gen_vla_textvqa"]["soft_accuracy,none"] == 0.0
    assert results["gen_vla_gqa"]["sample_len"] == QUESTIONS


@pytest.mark.parametrize("folder", FAMILIES[:2], indirect=True)
def test_the_model_gets_one_bos_and_its_own_prompt(folder):
    """What lm-eval hands to `generate`, decoded; the second question is longer, so the first is padded."""
    from lm_eval.models.hf_vlms import HFMultimodalLM

    harness: Any = HFMultimodalLM(str(folder), trust_remote_code=True, device="cpu", dtype="float32")  # type: ignore[call-arg]
    turns = [[{"role": "user", "content": f"<image>{text}"}] for text in ("Which?", "How many are two?")]
    prompts = [harness.apply_chat_template(turn) for turn in turns]
    inputs = harness.tok_batch_multimodal_encode(prompts, [[picture(0)], [picture(1)]])
    rows = [harness.tok_decode(row.tolist(), skip_special_tokens=False) for row in inputs["input_ids"]]
    asked = harness.processor.question_inputs([picture(0), picture(1)], ["Which?", "How many are two?"])
    assert inputs["input_ids"].tolist() == asked["input_ids"].tolist()
    assert inputs["attention_mask"].tolist() == asked["attention_mask"].tolist()
    assert [row.count("<s>") for row in rows] == [1, 1]
    assert [row.count("<image>") for row in rows] == [4, 4]
    assert rows[0].startswith("<PAD>")
    assert "Which?" in rows[0]
    assert "How many are two?" in rows[1]


def test_batches_change_nothing(folder, questions):
    alone, answers_alone = run_vqa(str(folder), ["scenes"], local=questions, batch_size=1)
    together, answers_together = run_vqa(str(folder), ["scenes"], local=questions, batch_size=3)
    assert answers_alone == answers_together
    assert alone["tasks"] == together["tasks"]
    assert [answer["task"] for answer in answers_alone] == ["scenes"] * QUESTIONS
    assert answers_alone[1]["question"] == "How many? Two?"
    assert answers_alone[0]["expected"] == "two"
    assert len({answer["answer"] for answer in answers_alone}) > 1, "questions make no difference"


@pytest.mark.parametrize("folder", ["openvla"], indirect=True)
def test_the_command_writes_figures_answers_and_a_picture(folder, questions, tmp_path, capsys):
    output = tmp_path / "vqa.json"
    arguments = ["evaluate", "vqa", str(folder), "--tasks", "pope,gqa", "--local", str(questions), "--limit", "3"]
    assert main([*arguments, "--batch-size", "2", "--output", str(output)]) == 0
    assert "pope/adversarial" in capsys.readouterr().out
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["suite"] == "vqa"
    assert results["protocol"]["chat_template"] is True
    assert results["data"] == {"pope": str(questions / "pope"), "gqa": str(questions / "gqa")}
    assert {figure["task"] for figure in results["tasks"]} == {
        "pope",
        "gqa",
        *(f"pope/{category}" for category in ("adversarial", "popular", "random")),
    }
    (gqa,) = [figure for figure in results["tasks"] if figure["task"] == "gqa"]
    assert (gqa["metric"], gqa["n"], gqa["value"], gqa["majority"]) == ("exact_match", 3, 0.0, 1.0)
    answers = [json.loads(line) for line in (tmp_path / "vqa_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 6  # three of each task
    assert [answer["picture"] for answer in answers] == [None] * 3 + ["n0", "n1", "n0"]
    assert gqa["pictures"] == 2
    assert (tmp_path / "vqa.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "textvqa,pop"], "got tasks pop, expected some of textvqa, pope, gqa, vizwiz, vsr, scenes"),
        (["--tasks", ","], "got tasks none"),
        (["--tasks", "gqa,gqa"], "expected each at most once"),
        (["--limit", "0"], "got a limit of 0, expected at least 1"),
        (["--batch-size", "0"], "got a batch size of 0"),
        (["--tasks", "scenes"], "Record held-out questions with: gen-vla record questions"),
        (["--tasks", "vsr"], "nor an answer from the Hub for cambridgeltl/vsr_zeroshot"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(arguments, message, capsys):
    assert main(["evaluate", "vqa", "no/such/model", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_lm_eval(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", "vqa", "no/such/model"]) == 2
    assert "run: pip install 'gen-vla[eval]'" in capsys.readouterr().err
