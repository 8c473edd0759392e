"""Chat templates come from strangers: what they may not do, and what requests may not make of them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import MODEL, running_server

from qwench import QwenchConfig, compile_checkpoint

ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages['__class__'] }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['os'] }}",
    "{{ strftime_now.__code__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ range.__class__ }}",
    "{{ dict.__base__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '%s'.__mod__ }}",
    "{{ messages.append({}) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{{ messages[0].pop('content') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{% set messages[0].content = 'x' %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os') }}",
    "{{ config }}{{ undefined_name.x }}",
]
BEGINNING = "{% set big = 10000000000 %}{% macro recurse(n) %}{{ recurse(n + 1) }}{% endmacro %}"
EXPENSIVE = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(10000) %}{{ 'x' * 1000000 }}{% endfor %}",
    "{{ 'x' * big }}",
    "{{ 10 ** big }}",
    "{{ recurse(0) }}",
    "{{ 'x'|center(big) }}",
]

Variant = Callable[[str], Path]
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def with_template(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The model's tokenizer with another chat template."""

    def make(template: str) -> Path:
        folder = tmp_path_factory.mktemp("variant")
        for path in artifact.glob("tokenizer*"):
            shutil.copy(path, folder / path.name)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
        return folder

    return make


@pytest.fixture(scope="module")
def process(with_template: Variant) -> Callable[[str], Any]:
    """A text process without the process, for a template."""
    from qwench.serve.processes.text_process import TextProcess
    from qwench.text.tokenizer import Tokenizer

    return lambda template: TextProcess(Tokenizer(with_template(template)))


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_for_more_than_it_is_given(process: Any, template: str) -> None:
    task = {"task": "chat", "arguments": {"messages": MESSAGES, "template": {}, "max_tokens": 2048}}
    answer = process(template).answer(task)
    # Refused, or nothing came of it: an attribute that the sandbox hides is undefined, which renders as nothing.
    assert "error" in answer or answer["result"] == []
    assert MESSAGES == [{"role": "user", "content": "Hello"}]


def test_what_a_request_writes_is_never_a_template(process: Any) -> None:
    plain = process("{{ messages[0].content }}")
    for payload in ESCAPES:
        messages = [{"role": "user", "content": payload}]
        task = {"task": "chat", "arguments": {"messages": messages, "template": {}, "max_tokens": 2048}}
        ids = plain.answer(task)["result"]
        decode = {"task": "decode", "arguments": {"ids": ids}}
        assert plain.answer(decode)["result"] == payload


def test_templates_that_take_for_ever_or_all_memory(tmp_path: Path) -> None:
    """One model with all of them; the request says into which to fall."""
    branches = "{% if messages[0].content == 'Hello' %}hello"
    for i, template in enumerate(EXPENSIVE):
        branches += f"{{% elif messages[0].content == '{i}' %}}{template}"
    checkpoint, model = tmp_path / "checkpoint", tmp_path / "model"
    shutil.copytree(MODEL, checkpoint)
    path = checkpoint / "tokenizer_config.json"
    template = f"{BEGINNING}{branches}{{% endif %}}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    compile_checkpoint(checkpoint, model, QwenchConfig(weights="int8"))
    with running_server(model, "--threads", "1", "--text-limit", "1") as server, server.client() as http:
        for i in range(len(EXPENSIVE)):
            start = time.monotonic()
            body = {"messages": [{"role": "user", "content": str(i)}], "max_tokens": 1}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400, (EXPENSIVE[i], answer.text)
            assert time.monotonic() - start < 15
            # The next request finds a fresh process.
            good = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1})
            assert good.status_code == 200, good.text
        assert http.get("/ready").status_code == 200


def test_only_listed_variables_reach_the_template(server: Any) -> None:
    with server.client() as http:
        for name in ("chat_template", "messages", "tools", "raise_exception", "range", "__class__", "bos_token"):
            body = {"messages": MESSAGES, "max_tokens": 1, "chat_template_kwargs": {name: "x"}}
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400 and name in answer.json()["error"]["message"]
        body = {"messages": MESSAGES, "max_tokens": 1, "chat_template_kwargs": {"enable_thinking": False}}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
