"""The table that evaluate prints."""

from ffn_alloc.evaluation import table

METRICS = {
    "acc": {"value": 0.25, "stderr": 0.0125, "n": 1838, "kind": "accuracy"},
    "acc_norm": {"value": 0.5, "stderr": None, "n": 1838, "kind": "accuracy"},
}
PERPLEXITY = {"value": 12345.678, "stderr": 10.0, "n": 62, "kind": "perplexity"}


def result(step, task, primary, metrics, shots=0):
    return {
        "step": step,
        "tokens": step * 1000,
        "task": task,
        "primary": primary,
        "num_fewshot": shots,
        "metrics": metrics,
        "seconds": 3.21,
    }


def test_a_line_a_metric_and_nothing_twice():
    found = table.text(
        [
            result(5, "piqa", "acc_norm", METRICS),
            result(5, "wikitext", "ppl", {"ppl": PERPLEXITY}, shots=2),
            result(9, "piqa", "acc", METRICS),
        ]
    )
    assert [line.split() for line in found.splitlines()[2:]] == [
        ["5", "5,000", "piqa", "acc_norm", "0.5000", "1,838"],
        ["acc", "0.2500", "±", "0.0125", "1,838"],
        ["wikitext", "(2-shot)", "ppl", "12,345.68", "±", "10.00", "62"],
        ["9", "9,000", "piqa", "acc", "0.2500", "±", "0.0125", "1,838"],
        ["acc_norm", "0.5000", "1,838"],
    ]
    assert len({len(line) for line in found.splitlines()}) == 1  # numbers end in one column


def test_a_result_in_a_line():
    line = table.line(result(5, "piqa", "acc_norm", METRICS))
    assert line.strip() == "piqa: acc_norm 0.5000, acc 0.2500 ± 0.0125 (3.2 s)"
