"""Distil the embedded suite's draft model from its reference model.

The draft reads the reference model's tokenizer and learns the distributions that it gives over two kinds of rows:
training texts of `../model/train.py` under a seed of their own, and the reference model's own greedy answers to random
tokens, which is what the synthetic prompts of a performance test are. No text of a task is read.

    python distil.py             # rewrite the draft model in this folder (minutes on one core)

The same seed, versions, thread count and CPU type give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

SUITE = Path(__file__).resolve().parents[1]
SEED = 20261
STEPS = 600
LEARNING_RATE = 3e-3
# Rows of each kind in a step.
PUZZLES, FACTS, STORIES, RANDOM = 32, 4, 1, 8
RANDOM_ROWS, RANDOM_PROMPT, RANDOM_ANSWER = 512, 16, 32
IGNORED = -100


def load_sibling() -> ModuleType:
    """Import `../model/train.py`, which draws the texts."""
    spec = importlib.util.spec_from_file_location("embedded_train", SUITE / "model" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def build_draft(reference: Any, seed: int) -> LlamaForCausalLM:
    """Create the untrained draft: the reference model's vocabulary, about a fifth of its parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=reference.config.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=reference.config.max_position_embeddings,
        tie_word_embeddings=False,
        bos_token_id=reference.config.bos_token_id,
        eos_token_id=reference.config.eos_token_id,
        pad_token_id=reference.config.pad_token_id,
    )
    return LlamaForCausalLM(config)


def answer_random_prompts(reference: Any, seed: int) -> torch.Tensor:
    """Let the reference model answer prompts of random tokens, greedily and past the end-of-sequence token."""
    rng = random.Random(f"{seed}/random")
    special = {reference.config.bos_token_id, reference.config.eos_token_id, reference.config.pad_token_id}
    vocabulary = [token for token in range(reference.config.vocab_size) if token not in special]
    prompts: Any = torch.tensor([rng.choices(vocabulary, k=RANDOM_PROMPT) for _ in range(RANDOM_ROWS)])
    rows = []
    with torch.inference_mode():
        for batch in prompts.split(64):
            tokens, cache, step = batch, None, batch
            for _ in range(RANDOM_ANSWER):
                outputs = reference(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, step = outputs.past_key_values, outputs.logits[:, -1].argmax(-1, keepdim=True)
                tokens = torch.cat((tokens, step), dim=1)
            rows.append(tokens)
    return torch.cat(rows).clone()


def divergence(draft: Any, reference: Any, tokens: torch.Tensor, counted: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the mean KL divergence from the reference model at the counted positions, and how often both agree."""
    with torch.no_grad():
        wanted = reference(input_ids=tokens, use_cache=False).logits.float()[counted]
    given = draft(input_ids=tokens, use_cache=False).logits.float()[counted]
    loss = torch.nn.functional.kl_div(
        given.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return loss, float((given.argmax(-1) == wanted.argmax(-1)).float().mean())


def distil(draft: LlamaForCausalLM, reference: Any, tokenizer: Any, steps: int, rate: float, seed: int) -> None:
    """Train with AdamW, a short warm-up and a linear decay to zero."""
    train = load_sibling()
    # The seed of the world is the reference model's: the same people, and the same texts held out.
    sampler = train.Sampler(train.build_world(train.SEED), seed)
    encoder = train.Encoder(tokenizer, seed)
    answers = answer_random_prompts(reference, seed)
    rng = random.Random(f"{seed}/rows")
    optimizer = torch.optim.AdamW(draft.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, (steps - step) / steps))
    draft.train()
    begun = time.monotonic()
    for step in range(steps):
        parts = []
        for examples in ([*sampler.transforms(PUZZLES), *sampler.facts(FACTS)], sampler.stories(STORIES)):
            tokens, targets = encoder(examples)
            # A position predicts the next token: what is counted stands one place before its target.
            counted = torch.zeros_like(tokens, dtype=torch.bool)
            counted[:, :-1] = targets[:, 1:] != IGNORED
            parts.append(divergence(draft, reference, tokens, counted))
        tokens = answers[rng.sample(range(len(answers)), RANDOM)]
        counted = torch.zeros_like(tokens, dtype=torch.bool)
        counted[:, RANDOM_PROMPT - 1 : -1] = True
        parts.append(divergence(draft, reference, tokens, counted))
        loss = torch.stack([part for part, _ in parts]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            told = "  ".join(
                f"{name} {float(part.detach()):.3f} ({agree:.2f})"
                for name, (part, agree) in zip(("short", "stories", "random"), parts, strict=True)
            )
            print(f"step {step:5d}  {time.monotonic() - begun:6.0f} s  {told}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Distil the draft model.")
    parser.add_argument("--folder", type=Path, default=SUITE / "draft", help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    source = SUITE / "model"
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
    draft = build_draft(reference, options.seed)
    print(f"{sum(p.numel() for p in draft.parameters()):,} parameters", flush=True)
    distil(
        draft,
        reference,
        AutoTokenizer.from_pretrained(source),
        options.steps,
        options.learning_rate,
        options.seed,
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    draft.to(torch.bfloat16)
    draft.generation_config.do_sample = False
    draft.save_pretrained(options.folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, options.folder / name)
    # transformers 5 writes a name that transformers 4 does not know; say both.
    path = options.folder / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), "rope_theta": 10000.0}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    digest = hashlib.sha256((options.folder / "model.safetensors").read_bytes()).hexdigest()
    print(f"model.safetensors sha256 {digest}", flush=True)


if __name__ == "__main__":
    main()
