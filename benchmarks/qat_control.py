"""Ask whether QAT learns to live with rounding, or whether any further training would do as well.

    python benchmarks/qat_control.py      # about six minutes of CPU

The control is the embedded model, trained without rounding on the same texts with the same steps, rate and seed, then
quantized as PTQ does it. All five answer the puzzles of suites/embedded: BF16, PTQ, QAT, and the control before and after
quantization. Exits with 1 unless QAT is above the quantized control, by a paired bound of 5 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.engines.checkpoint.finetune import finetune
from pytest_inferperf.engines.checkpoint.texts import read_texts
from pytest_inferperf.engines.launch import open_engine
from pytest_inferperf.evaluate.run import evaluate
from pytest_inferperf.gates.paired import sign_flip_bounds
from pytest_inferperf.model.case import EngineSpec, Task

SUITE = Path(__file__).resolve().parents[1] / "suites" / "embedded"
TASK = Task(name="embedded_puzzles", path=str(SUITE / "tasks" / "embedded_puzzles.yaml"))
BF16 = EngineSpec(
    model=str(SUITE / "model"),
    served_model_name="inferperf-tiny-llama",
    calib_dataset=str(SUITE / "data/calibration.jsonl"),
)
PTQ = replace(BF16, quant="NVFP4", kv_cache_dtype="nvfp4")
QAT = replace(PTQ, recipe="qat", qat_dataset=str(SUITE / "data" / "qat.jsonl"), qat_steps=300, qat_learning_rate=3e-4)
"""As in suites/embedded/test_qat.py."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, answer, print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    with tempfile.TemporaryDirectory() as name:
        cache, control = Path(name) / "cache", Path(name) / "control"
        train_without_rounding(control)
        plain = replace(BF16, model=str(control), served_model_name="control")
        answers = {
            label: answer(spec, cache)
            for label, spec in (
                ("BF16", BF16),
                ("PTQ", PTQ),
                ("QAT", QAT),
                ("trained, BF16", plain),
                ("trained, then PTQ", replace(PTQ, model=str(control), served_model_name="control")),
            )
        }
    print(f"{'':20}{'score':>8}{'lost':>7}{'gained':>8}   against BF16, {len(answers['BF16'])} puzzles")
    for label, right in answers.items():
        pairs = list(zip(answers["BF16"], right, strict=True))
        lost, gained = sum(one > two for one, two in pairs), sum(one < two for one, two in pairs)
        print(f"{label:20}{100 * sum(right) / len(right):>8.2f}{lost:>7}{gained:>8}")
    above = [one - two for one, two in zip(answers["QAT"], answers["trained, then PTQ"], strict=True)]
    lower, upper = sign_flip_bounds(above, [1.0] * len(above), 0.05)
    print(f"QAT above the control, both quantized: {100 * lower:+.2f} to {100 * upper:+.2f} points")
    return 0 if lower > 0 else 1


def train_without_rounding(folder: Path) -> None:
    """Write the embedded model, trained as QAT trains it, but in plain float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(BF16.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BF16.model)
    finetune(
        model,
        tokenizer,
        read_texts(QAT.qat_dataset, keyword="qat_dataset"),
        steps=QAT.qat_steps,
        learning_rate=QAT.qat_learning_rate,
        limit=model.config.max_position_embeddings,
        progress=lambda _line: None,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer(spec: EngineSpec, cache: Path) -> tuple[float, ...]:
    """Return the outcome of each puzzle."""
    with open_engine(spec, cache_dir=cache) as engine:
        return tuple(evaluate(engine, TASK).outcomes)


if __name__ == "__main__":
    sys.exit(main())
