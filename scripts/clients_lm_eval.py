"""lm-evaluation-harness against a running server, on a task of four questions; see scripts/clients.sh."""

import json
import pathlib
import sys
import tempfile

import lm_eval
from lm_eval.tasks import TaskManager

url, model, tokenizer = sys.argv[1:]
questions = [
    {"question": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0},
    {"question": "The sky is", "choices": [" green", " blue"], "answer": 1},
    {"question": "Ships sail at", "choices": [" night", " sea"], "answer": 1},
    {"question": "A cat is an", "choices": [" animal", " engine"], "answer": 0},
]
with tempfile.TemporaryDirectory() as folder:
    data = pathlib.Path(folder, "questions.jsonl")
    data.write_text("".join(json.dumps(q) + "\n" for q in questions))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": model,
            "base_url": f"{url}/v1/completions",
            "tokenizer": tokenizer,
            "num_concurrent": 2,
            "max_length": 512,
        },
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
samples = results["samples"]["tiny"]
assert len(samples) == len(questions)
for sample in samples:
    likelihoods = [float(response[0][0]) for response in sample["resps"]]
    assert len(likelihoods) == 2 and all(value < 0 for value in likelihoods), sample
    # Each stands for what is asked, not for one constant.
    assert likelihoods[0] != likelihoods[1]
assert 0 <= results["results"]["tiny"]["acc,none"] <= 1
print("ok: lm-eval local-completions")
