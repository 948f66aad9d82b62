"""Generate the embedded suite's data and train its reference model.

Everything is drawn from one seed: an invented town register (facts), digit
puzzles (transforms) and short template stories. No outside text is used.

    python train.py data     # rewrite the JSONL files of the tasks and the calibration sets
    python train.py train    # rewrite the tokenizer and the model as well

Both write into the suite this file lies in unless ``--suite`` names another folder.
The same seed, versions, thread count and CPU type give the same weights; another CPU
type may round differently, so compare scores there, not hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SUITE = Path(__file__).resolve().parents[1]
SEED = 20260
STEPS = 1000
THREADS = 2
LEARNING_RATE = 2e-3
VOCABULARY = 768
# Rows of each kind in a step; few facts, so that the model stays unsure of some.
PUZZLES, FACTS, STORIES = 80, 18, 3
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100

TRANSFORM_DOCS = 1500
STORY_DOCS = 1000
EVALUATED_PEOPLE = 400
OTHER_PEOPLE = 40
CALIBRATION_TEXTS = 192

FIRST_START = ("Al", "Bre", "Cor", "Da", "El", "Fen", "Gri", "Hal", "Is", "Jo", "Ka", "Lu", "Mi")
FIRST_END = ("dan", "ra", "vin", "lo", "mer", "sa", "tha", "nic", "bel", "ro")
LAST_START = ("Tol", "Ver", "Mar", "Pen", "Quil", "Ros", "Stan", "Thorn", "Ul", "Wex", "Yar", "Zel")
LAST_END = ("van", "by", "low", "dell", "mont", "wick", "ster", "gate", "nik", "oso")

CITIES = tuple(
    f"{front} {back}"
    for front in ("Port", "Upper", "Old", "East", "Lake")
    for back in ("Kessan", "Morrow", "Tallis", "Brindle", "Ondar")
)
COLOURS = tuple(
    f"{shade} {colour}"
    for shade in ("pale", "dark", "bright", "dusty")
    for colour in ("green", "blue", "red", "amber", "violet", "grey")
)
JOBS = tuple(
    f"{thing} {role}"
    for thing in ("glass", "bridge", "clock", "cheese", "paper", "barley")
    for role in ("maker", "painter", "merchant", "inspector")
)
PETS = tuple(
    f"{look} {animal}"
    for look in ("spotted", "tiny", "sleepy", "long-haired")
    for animal in ("cat", "goose", "rabbit", "pony", "lizard", "ferret")
)


@dataclass(frozen=True)
class Attribute:
    """One attribute of a person: its values and the phrases that state it."""

    name: str
    values: tuple[str, ...]
    phrases: tuple[str, ...]


# The first phrase of each attribute is the one the multiple-choice task asks with.
ATTRIBUTES = (
    Attribute("city", CITIES, ("lives in", "has a house in")),
    Attribute("colour", COLOURS, ("always wears", "likes the colour")),
    Attribute("job", JOBS, ("works as a", "earns a living as a")),
    Attribute("pet", PETS, ("keeps a", "goes for walks with a")),
)


@dataclass(frozen=True)
class Example:
    """A training text in two parts; the loss is taken on ``answer`` alone."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Person:
    """An invented person, with how often the training texts speak of them."""

    name: str
    values: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class World:
    """All that is drawn before training starts."""

    people: tuple[Person, ...]
    transforms: tuple[dict[str, Any], ...]
    facts: tuple[dict[str, Any], ...]
    stories: tuple[dict[str, Any], ...]
    calibration: tuple[dict[str, Any], ...]

    @property
    def held_out(self) -> frozenset[str]:
        """Prompts and stories that no training text may repeat."""
        prompts = {str(doc["prompt"]) for doc in self.transforms}
        return frozenset(prompts | {str(doc["text"]) for doc in self.stories})


def draw_transform(rng: random.Random) -> tuple[str, Example]:
    """Draw one digit puzzle: add two numbers, reverse digits or sort digits."""
    kind = rng.choices(("add", "reverse", "sort"), (4, 3, 3))[0]
    if kind == "add":
        left, right = rng.randint(100, 999), rng.randint(10, 99)
        return kind, Example(f"add {left}+{right}=", str(left + right))
    digits = "".join(rng.choices("0123456789", k=rng.randint(5, 8)))
    answer = digits[::-1] if kind == "reverse" else "".join(sorted(digits))
    return kind, Example(f"{kind} {digits}=", answer)


def draw_story(rng: random.Random) -> str:
    """Draw one short story from templates; later sentences refer to earlier choices."""
    name = rng.choice(("Anna", "Ben", "Clara", "Dev", "Ella", "Finn", "Grace", "Hugo"))
    pronoun = "She" if name in ("Anna", "Clara", "Ella", "Grace") else "He"
    thing = rng.choice(("red kite", "wooden boat", "silver key", "paper lantern", "old map"))
    place = rng.choice(("the river", "the hill", "the market", "the forest", "the station"))
    when = rng.choice(("On Monday", "One morning", "After lunch", "Late at night", "In spring"))
    verb = rng.choice(("found", "lost", "bought", "made", "hid"))
    friend = rng.choice(("a neighbour", "a teacher", "a sailor", "a farmer", "a baker"))
    weather = rng.choice(("It was raining", "The sun was warm", "The wind was strong"))
    feeling = {"lost": "sad", "found": "glad", "bought": "proud", "made": "proud", "hid": "calm"}
    middle = rng.choice(
        (
            f"{weather}, so {pronoun.lower()} stayed near {place} for an hour.",
            f"{pronoun} met {friend} and told the whole story of the {thing}.",
            f"{friend.capitalize()} asked about the {thing}, and {name} smiled.",
        )
    )
    end = rng.choice(
        (
            f"{pronoun} went home and felt {feeling[verb]}.",
            f"In the evening {name} was {feeling[verb]} and slept well.",
            f"{pronoun} will come back to {place} soon.",
        )
    )
    return f"{when} {name} {verb} a {thing} at {place}. {middle} {end}".replace(" a old", " an old")


def draw_people(rng: random.Random, count: int) -> Iterator[Person]:
    """Draw people with different names; later ones are spoken of less often."""
    names = [f"{a}{b} {c}{d}" for a in FIRST_START for b in FIRST_END for c in LAST_START for d in LAST_END]
    for index, name in enumerate(rng.sample(names, count)):
        values = tuple(rng.choice(attribute.values) for attribute in ATTRIBUTES)
        yield Person(name, values, 1.0 - 0.75 * index / count)


def fact_doc(rng: random.Random, person: Person, index: int) -> dict[str, Any]:
    """Build a four-way question; each wrong choice shares a word with the right one."""
    attribute, truth = ATTRIBUTES[index], person.values[index]
    words = set(truth.split())
    near = [v for v in attribute.values if v != truth and words & set(v.split())]
    choices = [truth, *rng.sample(near, 3)]
    rng.shuffle(choices)
    return {
        "prompt": f"{person.name} {attribute.phrases[0]}",
        "choices": choices,
        "label": choices.index(truth),
        "attribute": attribute.name,
    }


def draw_fact(rng: random.Random, person: Person) -> Example:
    """Draw one sentence about a person in any of its phrasings."""
    index = rng.randrange(len(ATTRIBUTES))
    phrase = rng.choice(ATTRIBUTES[index].phrases)
    return Example(f"{person.name} {phrase}", f" {person.values[index]}.")


def distinct(draw: Callable[[], str], count: int, taken: set[str]) -> list[str]:
    """Draw until ``count`` texts not in ``taken`` are found; adds them to ``taken``."""
    found: list[str] = []
    while len(found) < count:
        text = draw()
        if text not in taken:
            taken.add(text)
            found.append(text)
    return found


def build_world(seed: int) -> World:
    """Draw people, evaluation documents and calibration texts, all from the seed."""
    rng = random.Random(f"{seed}/people")
    drawn = list(draw_people(rng, EVALUATED_PEOPLE + OTHER_PEOPLE))
    # Every eleventh person is never asked about; calibration facts are about them.
    step = (EVALUATED_PEOPLE + OTHER_PEOPLE) // OTHER_PEOPLE
    others = drawn[step - 1 :: step]
    asked = [person for person in drawn if person not in others]

    rng = random.Random(f"{seed}/tasks")
    facts = [fact_doc(rng, person, i) for person in asked for i in range(len(ATTRIBUTES))]
    rng.shuffle(facts)
    taken: set[str] = set()
    transforms: list[dict[str, Any]] = []
    while len(transforms) < TRANSFORM_DOCS:
        kind, example = draw_transform(rng)
        if example.prompt not in taken:
            taken.add(example.prompt)
            doc = {"prompt": example.prompt, "answer": example.answer, "kind": kind}
            transforms.append(doc)
    stories = [{"text": text} for text in distinct(lambda: draw_story(rng), STORY_DOCS, taken)]

    rng = random.Random(f"{seed}/calibration")
    texts: list[str] = []
    while len(texts) < CALIBRATION_TEXTS:
        kind, example = draw_transform(rng)
        if example.prompt not in taken:
            taken.add(example.prompt)
            texts.append(example.prompt + example.answer + "\n")
            fact = draw_fact(rng, rng.choice(others))
            texts.append(fact.prompt + fact.answer + "\n")
            texts.extend(text + "\n" for text in distinct(lambda: draw_story(rng), 1, taken))
    return World(
        people=tuple(drawn),
        transforms=tuple(transforms),
        facts=tuple(facts),
        stories=tuple(stories),
        calibration=tuple({"text": text} for text in texts),
    )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def write_data(world: World, suite: Path) -> None:
    """Write the task documents and the calibration texts."""
    write_jsonl(suite / "data" / "transform.jsonl", world.transforms)
    write_jsonl(suite / "data" / "facts.jsonl", world.facts)
    write_jsonl(suite / "data" / "stories.jsonl", world.stories)
    write_jsonl(suite / "data" / "calibration.jsonl", world.calibration)
    # The mistake of the regression demo: a calibration file that is nothing but blank lines.
    write_jsonl(suite / "data" / "calibration_wrong.jsonl", [{"text": "\n"}] * 32)


class Sampler:
    """Draws training examples; never one that an evaluation document repeats."""

    def __init__(self, world: World, seed: int) -> None:
        """Seed the stream of training texts."""
        self._rng = random.Random(f"{seed}/training")
        self._held_out = world.held_out
        self._people = world.people
        self._weights = [person.weight for person in world.people]

    def transforms(self, count: int) -> list[Example]:
        """Draw digit puzzles."""
        found: list[Example] = []
        while len(found) < count:
            _, example = draw_transform(self._rng)
            if example.prompt not in self._held_out:
                found.append(example)
        return found

    def facts(self, count: int) -> list[Example]:
        """Draw sentences about people, the well-known ones more often."""
        people = self._rng.choices(self._people, self._weights, k=count)
        return [draw_fact(self._rng, person) for person in people]

    def stories(self, count: int) -> list[Example]:
        """Draw stories."""
        found: list[Example] = []
        while len(found) < count:
            text = draw_story(self._rng)
            if text not in self._held_out:
                found.append(Example("", text))
        return found


def build_tokenizer(sampler: Sampler) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = [
        *sampler.transforms(2000),
        *sampler.facts(12000),
        *sampler.stories(2000),
    ]
    texts = [example.prompt + example.answer + "\n" for example in corpus]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Create the untrained network. Every linear input is a multiple of 128."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Encoder:
    """Turns examples into padded tensors of tokens and of targets (IGNORED: no loss)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        """Keep the tokenizer and seed the choice of leading BOS tokens."""
        self._tokenizer = tokenizer
        self._rng = random.Random(f"{seed}/bos")

    def __call__(self, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch. Half the rows start with BOS, so the model works either way."""
        prompts = self._ids([example.prompt for example in examples])
        answers = self._ids([example.answer + "\n" for example in examples])
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        rows: list[tuple[list[int], list[int]]] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            # A story has no prompt, so it needs BOS for its first token to be predicted.
            head = [bos] if not prompt or self._rng.random() < 0.5 else []
            tokens = [*head, *prompt, *answer, eos]
            targets = [IGNORED] * (len(head) + len(prompt)) + [*answer, eos]
            rows.append((tokens, targets))
        width = max(len(tokens) for tokens, _ in rows)
        pad = self._tokenizer.pad_token_id
        return (
            torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows]),
            torch.tensor([row + [IGNORED] * (width - len(row)) for _, row in rows]),
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [list(ids) for ids in encoded]


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's mean loss over its targets and whether all were the top choice."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    goal = targets[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), goal, ignore_index=IGNORED, reduction="none")
    counted = goal != IGNORED
    right = ((logits.argmax(-1) == goal) | ~counted).all(dim=1)
    return losses.sum(1) / counted.sum(1), right


def train(model: LlamaForCausalLM, encoder: Encoder, sampler: Sampler, steps: int, rate: float) -> None:
    """Train with AdamW, a short warm-up and a linear decay to zero."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, (steps - step) / steps))
    model.train()
    begun = time.monotonic()
    for step in range(steps):
        short = encoder([*sampler.transforms(PUZZLES), *sampler.facts(FACTS)])
        losses, right = loss_of(model, *short)
        story_losses, _ = loss_of(model, *encoder(sampler.stories(STORIES)))
        loss = losses[:PUZZLES].mean() + losses[PUZZLES:].mean() + 0.3 * story_losses.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step:5d}  {time.monotonic() - begun:6.0f} s  "
                f"transform {losses[:PUZZLES].mean():.3f} ({right[:PUZZLES].float().mean():.2f})  "
                f"facts {losses[PUZZLES:].mean():.3f} ({right[PUZZLES:].float().mean():.2f})  "
                f"stories {story_losses.mean():.3f}",
                flush=True,
            )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the Hugging Face folder in bfloat16, readable by transformers 4 and 5."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes names that transformers 4 does not know; say both.
    for name, extra in (
        ("config.json", {"rope_theta": 10000.0}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        path = folder / name
        content = {**json.loads(path.read_text(encoding="utf-8")), **extra}
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Generate the data and train the model.")
    parser.add_argument("command", choices=("data", "train"))
    parser.add_argument("--suite", type=Path, default=SUITE, help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()

    world = build_world(options.seed)
    write_data(world, options.suite)
    if options.command == "data":
        return
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    sampler = Sampler(world, options.seed)
    tokenizer = build_tokenizer(sampler)
    model = build_model(tokenizer, options.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, Encoder(tokenizer, options.seed), sampler, options.steps, options.learning_rate)
    folder = options.suite / "model"
    save(model, tokenizer, folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    print(f"model.safetensors sha256 {digest}", flush=True)


if __name__ == "__main__":
    main()
