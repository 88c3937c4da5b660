"""`gen-vla evaluate serving`: load from outside, and broken messages, in small."""

import json
import os

from tiny_models import tiny_model, tiny_processor

from gen_vla.commands.main import main
from gen_vla.serving.mutations import run_mutations


def test_a_thousand_broken_messages_get_a_sentence(chunking, serve):
    _, port = serve(chunking)
    found = run_mutations(f"127.0.0.1:{port}", 1000, os.getpid())
    assert found["faults"] == []
    assert found["replies"] + found["sentences"] == 1000
    assert found["sentences"] > 500
    assert found["megabytes"] - found["megabytes_after_a_tenth"] < 50


def test_answers_that_are_no_sentence_are_faults(tiny_openvla, serve):
    server, port = serve(tiny_openvla)
    batcher, answered = server.policy_server.actions, []
    run = batcher.run

    def broken_after_the_first(requests):
        if answered:
            raise RuntimeError("out of memory")
        answered.append(requests)
        return run(requests)

    batcher.run = broken_after_the_first
    found = run_mutations(f"127.0.0.1:{port}", 40)
    assert found["faults"]
    assert any("500" in fault or "the model failed" in fault for fault in found["faults"])


def test_the_command(llama_like, tiny_strings, tmp_path, capsys):
    tiny_model(llama_like, tiny_strings).save_pretrained(tmp_path / "model")
    tiny_processor(llama_like, tiny_strings).save_pretrained(tmp_path / "model")
    command = ["evaluate", "serving", str(tmp_path / "model"), "--clients=1,3", "--seconds=0.5", "--mutations=50"]
    assert main([*command, "--output", str(tmp_path / "results.json")]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["alone"]) == {"1", "8"}
    assert all(results["clients"][count]["actions_per_second"] > 0 for count in ("1", "3"))
    assert results["mutations"]["faults"] == []
    assert results["mutations"]["megabytes"] > 10
    assert "3 robots" in capsys.readouterr().out
