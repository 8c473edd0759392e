"""Embeddings and scores beside sentence-transformers itself, from the folders that it writes."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="the truth of these tests: pip install sentence-transformers")

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers_parity import load_truth, write_checkpoint

from qwench import LLM
from qwench.checkpoint.sentence_transformers import read_embedding_settings
from qwench.compiler.compiler import compile_checkpoint
from qwench.errors import CheckpointError, RequestError

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "qwench-tiny"
TEXTS = ["A fox.", "Once upon a time there was a small fox who lived by the sea.", "12 + 30 = 42", "naïve 世界"] * 3
TEXTS += ["word " * 60]
PROMPTS = {"query": "Instruct: find what answers it\nQuery: ", "document": "", "title": "Title: "}


def checkpoint(
    folder: Path, kind: Any = AutoModel, ends_with_eos: bool = False, chats: bool = False, **config: Any
) -> Path:
    """A random model with the default model's tokenizer. ends_with_eos: behind each text, as Qwen3-Embedding has it.
    chats: with its chat template, which sentence-transformers then writes every text in."""
    texts = json.loads((DEFAULT_MODEL / "tokenizer_config.json").read_text())
    pad = LibraryTokenizer.from_file(str(DEFAULT_MODEL / "tokenizer.json")).token_to_id(texts["pad_token"])
    write_checkpoint(folder, kind=kind, vocab_size=2048, pad_token_id=pad, max_position_embeddings=512, **config)
    shutil.copyfile(DEFAULT_MODEL / "tokenizer.json", folder / "tokenizer.json")
    if not chats:
        del texts["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    if ends_with_eos:
        tokenizer = LibraryTokenizer.from_file(str(folder / "tokenizer.json"))
        end = next(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def embedding_model(folder: Path, pooling: str, normalize: bool, **options: Any) -> SentenceTransformer:
    """Saved in `folder / "st"`, with prompts, and loaded in fp32."""
    prompts = options.pop("prompts", {})
    base = checkpoint(folder / "base", **options)
    load_truth(base, kind=AutoModel).save_pretrained(base)
    body = Transformer(str(base))
    modules = [body, Pooling(body.auto_model.config.hidden_size, pooling_mode=pooling), *([Normalize()] * normalize)]
    model = SentenceTransformer(modules=modules, device="cpu", **prompts)
    model.save(str(folder / "st"))
    return model


CASES: list[tuple[str, bool, dict[str, Any]]] = [
    ("lasttoken", True, {"prompts": {"prompts": PROMPTS, "default_prompt_name": "title"}}),
    ("mean", False, {"prompts": {"prompts": PROMPTS}}),
    ("mean", True, {"is_causal": False}),
    ("cls", True, {"is_causal": False, "head_dim": 24}),
    (
        "lasttoken",
        True,
        {"model_type": "qwen3", "head_dim": 32, "ends_with_eos": True, "prompts": {"prompts": PROMPTS}},
    ),
]
READS_CHATS = int(version("sentence-transformers").split(".")[0]) >= 6


@pytest.mark.parametrize("dtype", ["bf16", "bf16 activations"])
@pytest.mark.parametrize(("pooling", "normalize", "options"), CASES, ids=str)
def test_embeddings(pooling: str, normalize: bool, options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    if options.get("chats") and not READS_CHATS:
        pytest.skip("this release of sentence-transformers reads no text through a chat template")
    truth = embedding_model(tmp_path, pooling, normalize, **dict(options))
    more = {"activations": "bf16"} if dtype == "bf16 activations" else {}
    with LLM(tmp_path / "st", prefill_chunk_size=128, **more) as llm:
        names = [None, *(name for name in PROMPTS if options.get("prompts"))]
        for name in names:
            expected = truth.encode(TEXTS, prompt_name=name)
            got = llm.embed(TEXTS, prompt_name=name)
            assert cosines(got, expected).min() > (0.99999 if dtype == "bf16" else 0.999)
            if dtype == "bf16":
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        if options.get("prompts"):
            query, documents = truth.encode_query(TEXTS[0]), truth.encode_document(TEXTS[1:4])
            expected = truth.similarity(query, documents)[0].numpy()
            np.testing.assert_allclose(
                llm.score(TEXTS[0], TEXTS[1:4]), expected, atol=1e-4 if dtype == "bf16" else 0.02
            )


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_fewer_dimensions(tmp_path: Path) -> None:
    embedding_model(tmp_path, "mean", True)
    truth = SentenceTransformer(str(tmp_path / "st"), truncate_dim=24, device="cpu")
    expected = truth.encode(TEXTS, normalize_embeddings=True)
    with LLM(tmp_path / "st") as llm:
        got = llm.embed(TEXTS, dimensions=24)
    assert got.shape == expected.shape == (len(TEXTS), 24)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ends_with_eos", [False, True])
def test_scores_of_pairs(ends_with_eos: bool, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, AutoModelForSequenceClassification, ends_with_eos, num_labels=1)
    load_truth(folder, kind=AutoModelForSequenceClassification).save_pretrained(folder)
    truth = CrossEncoder(str(folder), device="cpu")
    pairs = [(TEXTS[0], text) for text in TEXTS]
    with LLM(folder) as llm:
        for activation in (True, False):
            fn = torch.nn.Sigmoid() if activation else torch.nn.Identity()
            expected = truth.predict(pairs, activation_fn=fn)
            np.testing.assert_allclose(llm.score(TEXTS[0], TEXTS, activation=activation), expected, atol=1e-4)
        with pytest.raises(RequestError, match="no documents"):
            llm.score("a", [])
        with pytest.raises(RequestError, match="texts, but one is a int"):
            llm.score("a", [5])  # type: ignore[list-item]


def test_rewards_read_the_chat_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = checkpoint(tmp_path, AutoModelForSequenceClassification, num_labels=1, chats=True)
    chats = [[{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": text}] for text in ("2", "three")]
    truth = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = [
            truth(tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)).logits for chat in chats
        ]
    with LLM(folder) as llm:
        np.testing.assert_allclose(llm.reward(chats), torch.cat(expected).numpy(), atol=1e-4)
        np.testing.assert_allclose(llm.reward(chats[1]), expected[1].numpy(), atol=1e-4)


def test_an_artifact_keeps_the_settings(tmp_path: Path) -> None:
    embedding_model(tmp_path, "mean", True, prompts={"prompts": PROMPTS, "default_prompt_name": "title"})
    artifact = compile_checkpoint(tmp_path / "st", tmp_path / "out")
    shutil.rmtree(tmp_path / "st")
    with LLM(artifact.path) as llm:
        assert llm.settings.pooling == "mean" and llm.settings.normalize
        assert llm.settings.prompts["query"] == PROMPTS["query"] and llm.settings.default_prompt == "title"


OLD_POOLING = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
               "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
               "pooling_mode_lasttoken": True, "include_prompt": True}  # fmt: skip
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def write_files(folder: Path, modules: Any, pooling: Any, prompts: Any = None) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def test_files_of_older_releases(tmp_path: Path) -> None:
    settings = read_embedding_settings(write_files(tmp_path, MODULES, OLD_POOLING))
    assert settings is not None and (settings.pooling, settings.normalize) == ("last", True)


@pytest.mark.parametrize(
    ("modules", "pooling", "prompts", "match"),
    [
        (MODULES, OLD_POOLING | {"pooling_mode_mean_tokens": True}, None, "the pooling is mean and lasttoken"),
        (MODULES, {"pooling_mode": "max"}, None, "the pooling is max; qwench reads one of lasttoken, mean, cls"),
        (MODULES, {"pooling_mode": "mean", "include_prompt": False}, None, "include_prompt is false"),
        (MODULES, [], None, "not a JSON object"),
        (MODULES[:1], {}, None, "lists Transformer; qwench reads"),
        (
            [*MODULES[:2], MODULES[2] | {"type": "sentence_transformers.models.Dense"}],
            {},
            None,
            "Pooling, Dense; qwench",
        ),
        ([MODULES[0] | {"type": "custom_st.Transformer"}], {}, None, "isn't one of sentence-transformers' own"),
        ({"a": 1}, {}, None, "isn't a list of modules"),
        ([MODULES[0], MODULES[1] | {"path": "9_Pooling"}], {}, None, "config.json is missing, but modules.json"),
        ([MODULES[0], MODULES[1] | {"path": "../1_Pooling"}], {}, None, "no name like '1_Pooling'"),
        (MODULES, {}, {"prompts": ["a"]}, "prompts must map names to texts"),
        (MODULES, {}, {"prompts": {}, "default_prompt_name": "query"}, "default_prompt_name is 'query'"),
    ],
)
def test_files_that_are_refused(modules: Any, pooling: Any, prompts: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_embedding_settings(write_files(tmp_path, modules, pooling, prompts))
