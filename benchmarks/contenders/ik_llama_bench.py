"""ik_llama.cpp as a contender: its own binaries measure, their figures are read. Needs `gguf`, to write the model.

`llama-bench` does one user's works, `llama-batched-bench` those of several, if it lies beside; `llama-quantize`, beside
too, makes the formats of the same GGUF file that llama.cpp's contender starts from. Each work is a process, which
opens the model and warms up before its own clock runs. It draws the random tokens of its prompts itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders.contender import Answered, Compiled, Contender
from benchmarks.plan import MAX_STEP_TOKENS

# Format -> what may be the fastest of so many bits: llama.cpp's own and one of ik_llama.cpp's.
QUANTS = {
    "bf16": ("BF16",),
    "int8": ("Q8_0", "Q8_K_R8"),
    "int4": ("Q4_0", "IQ4_KS"),
    "int4-head8": ("Q4_0", "IQ4_KS"),
}
HEADS = {"int8": "Q8_0", "int4": "Q4_0", "int4-head8": "Q8_0"}  # format -> quant of embedding and head
TRIAL_TOKENS = (128, 16)  # of prompt and answer, by which the settings are chosen
OWN_OPTIONS = ("-rtr", "-gp")  # in llama-bench's help; llama.cpp's has neither


@dataclass(frozen=True)
class Settings:
    """repack: rows are interleaved when the model is opened (-rtr)."""

    quant: str
    repack: bool
    flash_attention: bool

    @property
    def note(self) -> str:
        repacked = ", repacked" if self.repack else ""
        return f"{self.quant}{repacked}, flash attention {'on' if self.flash_attention else 'off'}"


def check_binary(path: Path) -> None:
    """Raises ValueError, which says what is wrong, unless `path` is ik_llama.cpp's llama-bench."""
    try:
        done = subprocess.run([path, "--help"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"{path} can't be run: {getattr(error, 'strerror', None) or 'it does not end'}") from None
    options = set(re.findall(r"(?<!\S)-+[\w-]+", done.stdout))
    if missing := [option for option in OWN_OPTIONS if option not in options]:
        raise ValueError(f"{path} isn't ik_llama.cpp's llama-bench: its --help has no {' and no '.join(missing)}")
    if not (path.parent / "llama-quantize").is_file():
        raise ValueError(f"llama-quantize isn't beside {path}; build both: cmake --build . --target llama-quantize")


class IkLlamaContender(Contender):
    """The settings that answered a trial soonest: quant, repacking, flash attention. Chosen when compiling."""

    formats = tuple(QUANTS)

    _attentions_of_many: tuple[bool, ...] = (
        True,
        False,
    )  # flash attention for several users: what is still to be tried, or was faster

    @property
    def serves_many(self) -> bool:
        return self._beside("llama-batched-bench").is_file()

    def version(self) -> str:
        if self.program is None:
            raise ImportError("its llama-bench isn't named")
        nothing = ["-p", "0", "-n", "0", "-o", "md"]  # no work: its last line names the build
        build = re.search(r"build: (\S+)", _run([str(self.program), *nothing]).stdout)
        return f"ik_llama.cpp {build[1] if build else 'unknown'}"

    def compile(self, checkpoint: Path, format_name: str, out: Path, max_positions: int, threads: int) -> Compiled:
        from benchmarks.contenders.gguf_file import write_gguf

        self._threads = threads
        out.mkdir(parents=True)
        first, *others = QUANTS[format_name]
        whole = out / "BF16.gguf"
        bf16_bytes = write_gguf(checkpoint, whole)
        header_bytes = whole.stat().st_size - bf16_bytes
        self._quantize(whole, first, format_name)
        compiled_s = time.perf_counter()
        for quant in others:
            self._quantize(whole, quant, format_name)
        best = self._fastest(out, QUANTS[format_name])
        num_bytes = (out / f"{best.quant}.gguf").stat().st_size - header_bytes
        for quant in {"BF16", *QUANTS[format_name]} - {best.quant}:
            (out / f"{quant}.gguf").unlink()
        (out / "settings.json").write_text(json.dumps(dataclasses.asdict(best)))
        head = f", embedding and head {HEADS[format_name]}" if format_name in HEADS else ""
        return Compiled(str(out), num_bytes, best.note + head, trial_s=time.perf_counter() - compiled_s)

    def load(self, path: Path, threads: int, positions: int, users: int) -> None:
        self._folder, self._threads = path, threads
        self._settings = Settings(**json.loads((path / "settings.json").read_text()))

    def answer(self, prompts: list[list[int]], num_generate: int) -> Answered:
        users, num_prompt = len(prompts), len(prompts[0])
        if users > 1:
            return self._answer_many(users, num_prompt, num_generate)
        seconds = self._bench(self._folder, self._settings, num_prompt, num_generate)
        return Answered(*seconds, num_generate - 1, [])

    def _answer_many(self, users: int, num_prompt: int, num_generate: int) -> Answered:
        """With flash attention or without, whichever was faster the first time: with it, builds abort on several users.
        Raises RuntimeError when none answers."""
        found: dict[bool, Answered] = {}
        failures: list[RuntimeError] = []
        for flash_attention in self._attentions_of_many:
            try:
                found[flash_attention] = self._batched_bench(flash_attention, users, num_prompt, num_generate)
            except RuntimeError as error:
                failures.append(error)
        if not found:
            raise failures[-1]
        best = min(found, key=lambda kind: found[kind].decode_s)
        self._attentions_of_many = (best,)
        return found[best]

    def _batched_bench(self, flash_attention: bool, users: int, num_prompt: int, num_generate: int) -> Answered:
        """The row of llama-batched-bench's table: PP, TG, B, N_KV, T_PP s, S_PP t/s, T_TG s, S_TG t/s, T s, S t/s."""
        settings, steps = self._settings, num_generate - 1
        command = [str(self._beside("llama-batched-bench")), "-m", str(self._folder / f"{settings.quant}.gguf")]
        command += ["-npp", str(num_prompt), "-ntg", str(steps), "-npl", str(users)]
        command += ["-c", str(users * (num_prompt + steps)), "-ub", str(MAX_STEP_TOKENS)]
        command += ["-t", str(self._threads), "-tb", str(self._threads)]
        command += ["-fa", "on" if flash_attention else "off", *(["-rtr"] if settings.repack else [])]
        table = _run(command, self._folder).stderr
        row = re.search(rf"^\| *{num_prompt} \| *{steps} \| *{users} \|.*", table, re.MULTILINE)
        if row is None:
            raise RuntimeError(f"llama-batched-bench printed no row of {users} users; its options have changed")
        cells = [cell.strip() for cell in row[0].strip("|").split("|")]
        return Answered(float(cells[4]), float(cells[6]), users * steps, [])

    def _quantize(self, whole: Path, quant: str, format_name: str) -> None:
        if quant == "BF16":
            return
        head, out = HEADS[format_name].lower(), whole.with_name(f"{quant}.gguf")
        command = [str(self._beside("llama-quantize")), "--allow-requantize", "--pure"]
        command += [
            "--token-embedding-type",
            head,
            "--output-tensor-type",
            head,
            str(whole),
            str(out),
            quant,
            str(self._threads),
        ]
        _run(command, whole.parent)

    def _fastest(self, folder: Path, quants: tuple[str, ...]) -> Settings:
        """The settings whose better one of two trials is the shortest."""
        choices = [Settings(*choice) for choice in itertools.product(quants, (False, True), (False, True))]
        found = [(sum(self._bench(folder, settings, *TRIAL_TOKENS)), settings) for settings in choices * 2]
        return min(found, key=lambda one: one[0])[1]

    def _bench(self, folder: Path, settings: Settings, num_prompt: int, num_generate: int) -> tuple[float, float]:
        """Seconds of the prompt and of all tokens after the first."""
        command = [str(self.program), "-m", str(folder / f"{settings.quant}.gguf"), "-t", str(self._threads)]
        command += ["-rtr", str(int(settings.repack)), "-fa", str(int(settings.flash_attention))]
        command += ["-ub", str(MAX_STEP_TOKENS), "-r", "1", "-o", "json", "-p", str(num_prompt), "-n", "0"]
        command += ["-gp", f"{num_prompt},{num_generate - 1}"] if num_generate > 1 else []
        rows: list[dict[str, Any]] = json.loads(_run(command, folder).stdout)
        prompt_s, *answer_s = (row["samples_ns"][0] / 1e9 for row in rows)
        return prompt_s, sum(answer_s)

    def _beside(self, name: str) -> Path:
        assert self.program is not None
        return self.program.parent / name


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What it printed. Raises RuntimeError with its last line, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    print(done.stderr, end="", flush=True)  # to the log
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise RuntimeError(f"{Path(command[0]).name} ended with exit code {done.returncode}: {last}")
    return done
