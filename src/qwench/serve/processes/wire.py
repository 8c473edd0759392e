"""The messages between the processes of the server: JSON, each behind its length in 4 bytes.

JSON and not pickle: what a child sends can't become code. Knows no message but how SamplingParams are written.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import struct
import sys
from typing import Any

from qwench.log_lines import log_in_one_line_each
from qwench.runtime.sampling.sampling_params import SamplingParams
from qwench.runtime.structured_output.grammar import Grammar

Message = dict[str, Any]

LENGTH = struct.Struct(">I")


def pack(message: Message) -> bytes:
    """A frame: length and JSON."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


class Link:
    """A child's end of its socket. One thread may receive while another sends."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._file = self._socket.makefile("rb")

    def receive(self) -> Message | None:
        """The next message; None when the parent has gone."""
        try:
            header = self._file.read(LENGTH.size)
            body = self._file.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else b""
        except OSError:
            return None
        if not body:
            return None
        message: Message = json.loads(body)
        return message

    def send(self, message: Message) -> None:
        """Raises OSError when the parent has gone."""
        self._socket.sendall(pack(message))


def open_link() -> tuple[Link, Message]:
    """In the child: the link to the parent and the options it gave, from the command line.

    From here on SIGINT and SIGTERM are ignored: the parent handles them, and the child ends when the link closes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_in_one_line_each()
    return Link(int(sys.argv[1])), json.loads(sys.argv[2])


def params_to_json(params: SamplingParams) -> Message:
    """What differs from the defaults. logit_bias as pairs: the keys of a JSON object would be strings."""
    plain = SamplingParams()
    given = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
    given = {name: value for name, value in given.items() if value != getattr(plain, name)}
    if params.logit_bias:
        given["logit_bias"] = list(params.logit_bias.items())
    if params.grammar is not None:
        given["grammar"] = dataclasses.asdict(params.grammar)
    return given


def params_from_json(data: Message) -> SamplingParams:
    """Raises RequestError like SamplingParams itself."""
    grammar = None if data.get("grammar") is None else Grammar(**data["grammar"])
    return SamplingParams(**{**data, "logit_bias": dict(data.get("logit_bias", ())), "grammar": grammar})
