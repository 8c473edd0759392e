"""Compares a compiled model with its checkpoint: logits, every layer, every module alone, greedy text.

Prompts are taken a batch at a time, so that memory holds the values of a few hundred tokens, whatever their number.
Knows nothing of files and tables. Called by `qwench verify`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from qwench.artifact.artifact import Artifact
from qwench.checkpoint.spec import ModelSpec
from qwench.errors import ConfigError
from qwench.evaluate.compiled import CompiledModel
from qwench.evaluate.fidelity import LIMITS, Fidelity, Greedy, Limits, LogitScores, ModuleScores, Scores
from qwench.evaluate.modules import Module, ModuleRunner, end_modules, layer_modules
from qwench.evaluate.prompts import Prompt
from qwench.evaluate.truth import Truth
from qwench.targets.target import Float32, Int32

BATCH_TOKENS = 512  # of the prompts whose inner values are in memory at once
Report = Callable[[int, int], None]  # told the tokens done and in all


def check_same_model(artifact: Artifact, spec: ModelSpec) -> None:
    """Raises ConfigError unless a checkpoint's model has the shape that the artifact was compiled from."""
    compiled, spec = artifact.program.spec, artifact.config.model(spec)
    for field in dataclasses.fields(ModelSpec):
        if (ours := getattr(compiled, field.name)) != (theirs := getattr(spec, field.name)):
            raise ConfigError(
                f"{artifact.path} was compiled from another model: its {field.name} is {ours}, the checkpoint's "
                f"{theirs}; give the checkpoint that it was compiled from"
            )


def verify(
    artifact: Artifact, truth: Truth, prompts: Sequence[Prompt], *, num_threads: int, num_greedy: int = 32,
    others: Sequence[Truth] = (), limits: Limits | None = None, report: Report | None = None,
) -> Fidelity:  # fmt: skip
    """Everything about `artifact` beside `truth` on `prompts`.

    num_greedy: new tokens of each greedy answer; 0: none are made. others: models that are compared with the truth on
    the same tokens. limits: default: those of the artifact's weights format.
    """
    weights = str(artifact.config.weights)
    collected = _Collected()
    total, done = sum(len(p.token_ids) for p in prompts), 0
    with CompiledModel(artifact, num_threads) as model:
        for batch in _batches(prompts):
            _verify_batch(model, truth, [p.token_ids for p in batch], others, collected)
            done += sum(len(p.token_ids) for p in batch)
            if report is not None:
                report(done, total)
        greedy = _greedy(model, truth, prompts, num_greedy) if num_greedy else None
    return Fidelity(
        truth=truth.name,
        weights=weights,
        prompts=tuple((p.name, len(p.token_ids)) for p in prompts),
        logits=LogitScores.join(collected.logits),
        states=tuple(Scores.join(parts) for parts in collected.states.values()),
        modules=tuple(
            ModuleScores(m.kind, m.layer, m.result, Scores.join(parts)) for m, parts in collected.modules.items()
        ),
        greedy=greedy,
        limits=limits if limits is not None else LIMITS.get(weights, Limits()),
        others={name: LogitScores.join(parts) for name, parts in collected.others.items()},
    )


@dataclasses.dataclass
class _Collected:
    """Scores batch by batch."""

    logits: list[LogitScores] = dataclasses.field(default_factory=list)
    states: dict[int, list[Scores]] = dataclasses.field(default_factory=dict)
    modules: dict[Module, list[Scores]] = dataclasses.field(default_factory=dict)
    others: dict[str, list[LogitScores]] = dataclasses.field(default_factory=dict)


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """In their order, as many as BATCH_TOKENS hold; a longer one is alone."""
    batch: list[Prompt] = []
    for prompt in prompts:
        if batch and sum(len(p.token_ids) for p in [*batch, prompt]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(prompt)
    yield batch


def _verify_batch(
    model: CompiledModel, truth: Truth, sequences: Sequence[Int32], others: Sequence[Truth], into: _Collected
) -> None:
    trace = truth.trace(sequences)
    other_logits = {other.name: other.logits(sequences) for other in others}
    last = model.artifact.program.spec.num_layers - 1
    for ids, rows in zip(sequences, _rows_of(sequences), strict=True):
        logits, hidden = model.run(ids)
        into.logits.append(LogitScores.of(logits, trace["lm_head"][rows], ids))
        for layer, state in enumerate(hidden[1:]):
            true_state = trace["final_norm" if layer == last else f"layers.{layer}.mlp_add"]
            into.states.setdefault(layer, []).append(Scores.of(state, true_state[rows]))
        for name, theirs in other_logits.items():
            into.others.setdefault(name, []).append(LogitScores.of(theirs[rows], trace["lm_head"][rows], ids))
    _climb(ModuleRunner(model.artifact, model.num_threads), trace, sequences, into)


def _rows_of(sequences: Sequence[Int32]) -> Iterator[slice]:
    """Where each sequence's tokens are among all of them."""
    end = 0
    for ids in sequences:
        yield slice(end, end := end + len(ids))


def _climb(runner: ModuleRunner, trace: Mapping[str, Float32], sequences: Sequence[Int32], into: _Collected) -> None:
    """Each module on the truth's inputs."""
    program = runner.artifact.program
    embedding, head = end_modules(program)
    layers = [module for i in range(program.spec.num_layers) for module in layer_modules(program, i)]
    for module in (embedding, *layers, head):
        output = runner.run(module, trace[module.source] if module.source else None, sequences)
        into.modules.setdefault(module, []).append(Scores.of(output, trace[module.result]))


def _greedy(model: CompiledModel, truth: Truth, prompts: Sequence[Prompt], num_new: int) -> Greedy:
    """The truth reads our answers: where its likeliest token is another than ours, its own answer departs from ours."""
    limit = model.artifact.config.max_seq_len
    assert limit is not None
    fitting = [p for p in prompts if len(p.token_ids) < limit]
    answers = iter(model.answers([p.token_ids for p in fitting], num_new))
    divergences: list[int | None] = []
    gaps: list[float | None] = []
    for batch in _batches(fitting):
        pairs = [(p.token_ids, next(answers)) for p in batch]
        texts = [np.concatenate([prompt, answer[:-1]]) for prompt, answer in pairs]
        logits = truth.logits(texts)
        for (prompt, answer), rows in zip(pairs, _rows_of(texts), strict=True):
            at, gap = _divergence(logits[rows][len(prompt) - 1 :], answer)
            divergences.append(at)
            gaps.append(gap)
    return Greedy(num_new, tuple(divergences), tuple(gaps))


def _divergence(logits: Float32, answer: Int32) -> tuple[int | None, float | None]:
    """Where the truth's likeliest token is first another than the answer's, and by how much it leads there."""
    differs = np.flatnonzero(logits.argmax(axis=1) != answer)
    if not len(differs):
        return None, None
    at = int(differs[0])
    return at, float(logits[at].max() - logits[at, answer[at]])
