"""The provider onnx: ONNX Runtime on the CPU, in the process that calls it.

A model is a folder: model.onnx, tokenizer.json, and for embedding model.json.

Importing this module is cheap; numpy, onnxruntime and tokenizers are loaded by
`Embedder.load`. Figures in this file: one thread of a 2-vCPU Xeon with AVX-512 VNNI,
ONNX Runtime 1.31.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import ragstone
from ragstone.models.port import (
    Check,
    EmbeddedQuestion,
    ModelRefused,
    ModelSpec,
    ModelUnavailable,
    TextTooLong,
    no_check,
)
from ragstone.models.tokens import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "model.json"
PREPACKED_FILE = "model.prepacked.onnx"
PREPACKED_DATA_FILE = "model.prepacked.data"
PREPACKED_STAMP_FILE = "model.prepacked.json"

# Padded tokens in one run(). Throughput is flat from 512 to 1,024 (11.0k to 10.1k tokens/s),
# while the longest run grows from 65 to 136 ms; a run can't be interrupted.
BATCH_TOKENS = 512

# What a run costs beside its tokens, in tokens: some .4 ms.
RUN_TOKENS = 4

# Characters tokenized between two calls of check(): 16 ms of English, 76 of Chinese.
CHECK_CHARACTERS = 50_000

# No more of a text is tokenized than this before its length is judged; English has
# four to five characters a token.
CHARACTERS_PER_TOKEN = 64

_SIMD_FLAGS = (
    "sse", "ssse", "avx", "amx", "fma", "f16c", "gfni",
    "asimd", "sve", "sme", "i8mm", "bf16",
)  # fmt: skip
_CPU_KEYS = {"vendor_id", "cpu family", "model", "CPU implementer", "CPU part"}
_CPU_FLAG_KEYS = {"flags", "Features"}

# What the CPU is decides whether a prepacked model fits, and which arithmetic is used.
_CPU = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu"))


class OnnxProvider:
    """Where the files of a model are, and what runs them.

    `location` is a folder, relative to the installed models or absolute.
    """

    def embedder(self, model: ModelSpec) -> Embedder:
        return Embedder.load(folder(model))

    def reranker(self, model: ModelSpec) -> Reranker:
        return Reranker.load(folder(model), model.max_tokens)

    def token_counter(self, model: ModelSpec) -> Tokenizer:
        return _tokenizer(folder(model))

    def files(self, model: ModelSpec) -> Sequence[Path]:
        return [folder(model), *_CPU]

    def token_files(self, model: ModelSpec) -> Sequence[Path]:
        return [folder(model) / TOKENIZER_FILE]

    def problem(self, model: ModelSpec, check: Check) -> str | None:
        for name in (MODEL_FILE, TOKENIZER_FILE):
            if not os.access(folder(model) / name, os.R_OK):
                return f"{folder(model) / name} cannot be read"
        found = _sha256(folder(model) / MODEL_FILE, check)
        if found == model.sha256:
            return None
        return (
            f"{MODEL_FILE} has sha256 {found[:16]}…, rag.models says {model.sha256[:16]}…:"
            " vectors of different models cannot be compared"
        )

    def drawback(self, model: ModelSpec) -> str | None:
        if self.embedder(model).prepacked:
            return None
        return (
            "it is loaded from the plain file, which takes 30 MB more memory a session:"
            " the prepacked file was made on another CPU or is missing"
        )


def folder(model: ModelSpec) -> Path:
    """The folder of a model's files."""
    return ragstone.INSTALL_DIR / "models" / model.location


@dataclass(frozen=True, slots=True)
class PrepackStamp:
    """What a prepacked file was made from and for; it is used only where all of it still holds."""

    model_sha256: str
    onnxruntime: str
    cpu: str


class Embedder:
    """A loaded model. Not thread-safe; one per process is meant."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tokenizer: Tokenizer,
        *,
        dimension: int,
        max_tokens: int,
        prepacked: bool,
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.prepacked = prepacked

    @classmethod
    def load(cls, model_dir: Path, *, threads: int = 1, prepacked: bool = True) -> Embedder:
        """Load the model in `model_dir`, from its prepacked file if that fits this machine.

        Raises ModelUnavailable if a file is missing or unusable.
        """
        card = _read_card(model_dir)
        with signals_blocked():
            _import_libraries()
            tokenizer = _tokenizer(model_dir)
            session = _prepacked_session(model_dir, card, threads) if prepacked else None
            is_prepacked = session is not None
            if session is None:
                session = _plain_session(model_dir, threads)
        return cls(
            session,
            tokenizer,
            dimension=card.dimension,
            max_tokens=card.max_tokens,
            prepacked=is_prepacked,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def count_tokens(self, text: str) -> int:
        """Number of tokens, special tokens included, however long the text is."""
        return self._tokenizer.count(text)

    def embed_passages(
        self, texts: Sequence[str], *, check: Check = no_check, truncate: bool = False
    ) -> np.ndarray:
        """See the port. No step between two calls of `check` takes 150 ms."""
        return self._embed(self._tokenize(texts, check, truncate), check)

    def embed_question(self, text: str, *, check: Check = no_check) -> EmbeddedQuestion:
        """See the port."""
        check()
        head = self._head(text)
        ids = self._tokenizer.encode(head)
        (vector,) = self._embed([self._cut(ids)], check)
        is_cut = len(ids) > self.max_tokens or len(head) < len(text)
        return EmbeddedQuestion(vector, is_cut)

    def _embed(self, tokens: Sequence[Sequence[int]], check: Check) -> np.ndarray:
        import numpy as np

        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        for rows in batches([len(ids) for ids in tokens], BATCH_TOKENS):
            check()
            vectors[rows] = self._run([tokens[row] for row in rows])
        return vectors

    def _tokenize(self, texts: Sequence[str], check: Check, truncate: bool) -> list[list[int]]:
        tokens: list[list[int]] = []
        characters = CHECK_CHARACTERS
        for text in texts:
            if characters >= CHECK_CHARACTERS:
                check()
                characters = 0
            tokens.append(self._encode(text, truncate))
            characters += len(text)
        return tokens

    def _encode(self, text: str, truncate: bool) -> list[int]:
        head = self._head(text)
        ids = self._tokenizer.encode(head)
        if truncate:
            return self._cut(ids)
        if len(ids) <= self.max_tokens and len(head) < len(text):
            ids = self._tokenizer.encode(text)
        if len(ids) > self.max_tokens:
            raise TextTooLong(len(ids), self.max_tokens)
        return ids

    def _head(self, text: str) -> str:
        """As much of the text as is tokenized before its length is judged."""
        return text[: self.max_tokens * CHARACTERS_PER_TOKEN]

    def _cut(self, ids: list[int]) -> list[int]:
        """The tokens that the model reads, the last special one included."""
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _run(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        import numpy as np

        shape = (len(tokens), max(map(len, tokens)))
        input_ids = np.zeros(shape, dtype=np.int32)
        attention_mask = np.zeros(shape, dtype=np.int32)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        vectors: np.ndarray = self._session.run(["embedding"], feed)[0]
        return vectors


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts, longest first, in groups whose padded size stays within `budget` tokens.

    A text longer than the budget is a group of its own. Where to cut is what costs least in all: a
    run costs its padded tokens and RUN_TOKENS.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    costs, starts = [0], [0]
    for end in range(1, len(order) + 1):
        first = end - 1
        candidates = []
        while first >= 0 and (first == end - 1 or (end - first) * lengths[order[first]] <= budget):
            padded = (end - first) * lengths[order[first]]
            candidates.append((costs[first] + RUN_TOKENS + padded, first))
            first -= 1
        cost, start = min(candidates)
        costs.append(cost)
        starts.append(start)
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(starts[cuts[-1]])
    for end, start in pairwise(cuts):
        yield order[start:end]


class Reranker:
    """A loaded cross-encoder: question and passage in, one score out, higher is better.

    Its graph takes input_ids, attention_mask and, where it has it, token_type_ids, all int64 or
    all int32 of shape (n, tokens), and returns (n,) or (n, 1).
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer, max_tokens: int
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    @classmethod
    def load(cls, model_dir: Path, max_tokens: int) -> Reranker:
        """Load the model in `model_dir`; raises ModelUnavailable if a file is missing."""
        with signals_blocked():
            _import_libraries()
            return cls(_plain_session(model_dir, 1), _tokenizer(model_dir), max_tokens)

    def scores(
        self, question: str, passages: Sequence[str], *, check: Check = no_check
    ) -> list[float]:
        """See the port. `check` is called before each run.

        Raises ModelRefused where the model gives anything but one score a passage.
        """
        beginning = question[: self._max_tokens * CHARACTERS_PER_TOKEN]
        pairs = [
            self._tokenizer.encode_pair(
                beginning, passage[: self._max_tokens * CHARACTERS_PER_TOKEN], self._max_tokens
            )
            for passage in passages
        ]
        scores = [0.0] * len(pairs)
        for rows in batches([len(ids) for ids, _ in pairs], BATCH_TOKENS):
            check()
            for row, score in zip(rows, self._run([pairs[row] for row in rows]), strict=True):
                scores[row] = float(score)
        return scores

    def _run(self, pairs: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
        import numpy as np

        inputs = {i.name: i for i in self._session.get_inputs()}
        kind = np.int32 if "int32" in inputs["input_ids"].type else np.int64
        shape = (len(pairs), max(len(ids) for ids, _ in pairs))
        feed = {
            name: np.zeros(shape, dtype=kind)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        for row, (ids, types) in enumerate(pairs):
            feed["input_ids"][row, : len(ids)] = ids
            feed["attention_mask"][row, : len(ids)] = 1
            feed["token_type_ids"][row, : len(ids)] = types
        (scores, *_) = self._session.run(None, {k: v for k, v in feed.items() if k in inputs})
        found = np.asarray(scores)
        if found.shape not in ((len(pairs),), (len(pairs), 1)):
            raise ModelRefused(
                f"the first output of {MODEL_FILE} has the shape {found.shape} for {len(pairs)}"
                " passages; a reranker gives one score a passage: (n,) or (n, 1)"
            )
        return found.reshape(len(pairs))


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block all signals, so that threads started inside never receive the server's."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def prepack(model_dir: Path) -> Path:
    """Write the copy of the model that this machine's CPU can map and use as it is.

    The stamp is removed first and written last: at every moment a reader finds a complete
    copy or uses the plain file. Raises ModelUnavailable if the model can't be used.
    """
    import tempfile

    card = _read_card(model_dir)
    _import_libraries()
    with tempfile.TemporaryDirectory(dir=model_dir, prefix=".prepack-") as temporary:
        work = Path(temporary)
        _save_prepacked(model_dir / MODEL_FILE, work)
        stamp = json.dumps(asdict(_stamp(card.model_sha256)), indent=2) + "\n"
        (work / PREPACKED_STAMP_FILE).write_text(stamp)
        (model_dir / PREPACKED_STAMP_FILE).unlink(missing_ok=True)
        for name in (PREPACKED_DATA_FILE, PREPACKED_FILE, PREPACKED_STAMP_FILE):
            publish(work / name, model_dir / name)
    return model_dir / PREPACKED_FILE


def publish(source: Path, target: Path) -> None:
    """Rename a finished file into place, readable by the server whatever the umask is."""
    source.chmod(0o644)
    os.replace(source, target)


@dataclass(frozen=True, slots=True)
class _Card:
    dimension: int
    max_tokens: int
    model_sha256: str


def _read_card(model_dir: Path) -> _Card:
    try:
        card = json.loads((model_dir / CARD_FILE).read_text(encoding="utf-8"))
        return _Card(int(card["dimension"]), int(card["max_tokens"]), card["model_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"cannot read {CARD_FILE}: {_reason(error, model_dir)}") from error


def _tokenizer(model_dir: Path) -> Tokenizer:
    try:
        return Tokenizer.load(model_dir / TOKENIZER_FILE)
    except (OSError, ValueError) as error:
        reason = _reason(error, model_dir)
        raise ModelUnavailable(f"cannot load {TOKENIZER_FILE}: {reason}") from error


def _reason(error: Exception, model_dir: Path) -> str:
    """What went wrong, without the folder: whoever searches reads it, too."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    return said.replace(f"{model_dir}/", "")


def _sha256(path: Path, check: Check) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
            check()
    return digest.hexdigest()


def quiet_libraries() -> None:
    """To be called before numpy or ONNX Runtime is imported: both read their environment then.

    ONNX Runtime otherwise starts a thread that sends telemetry to its maker, and keeps a database
    in the home folder of the server's account. A BLAS thread pool in every backend helps nobody.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _import_libraries() -> None:
    quiet_libraries()
    # Nothing of what importing makes is garbage, and looking for it takes a twentieth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        import numpy  # noqa: F401
        import onnxruntime
    finally:
        if collecting:
            gc.enable()

    # What matters is raised; warnings would go to the server's log for every session.
    onnxruntime.set_default_logger_severity(3)


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A memory pattern is kept for every shape there was. The arena keeps its peak, some 3 MB, and
    # spares a tenth of the time, which would go into getting memory and giving it back.
    options.enable_mem_pattern = False
    return options


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def _plain_session(model_dir: Path, threads: int) -> onnxruntime.InferenceSession:
    try:
        return _session(model_dir / MODEL_FILE, _session_options(threads))
    except Exception as error:  # the library's exceptions share no other base
        raise ModelUnavailable(f"cannot load {MODEL_FILE}: {_reason(error, model_dir)}") from error


def _prepacked_session(
    model_dir: Path, card: _Card, threads: int
) -> onnxruntime.InferenceSession | None:
    """None where there is no prepacked file, or it was made for other circumstances."""
    try:
        stamp = PrepackStamp(**json.loads((model_dir / PREPACKED_STAMP_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if stamp != _stamp(card.model_sha256):
        return None
    try:
        return _session(model_dir / PREPACKED_FILE, _session_options(threads))
    except Exception:  # the library's exceptions share no other base
        return None


def _save_prepacked(model: Path, target: Path) -> None:
    options = _session_options(threads=1)
    options.optimized_model_filepath = str(target / PREPACKED_FILE)
    prefix = "session.optimized_model_external_initializers_"
    # Relative to the graph's file, so the folder can be moved.
    options.add_session_config_entry(prefix + "file_name", PREPACKED_DATA_FILE)
    options.add_session_config_entry(prefix + "min_size_in_bytes", "1024")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    try:
        _session(model, options)
    except Exception as error:  # the library's exceptions share no other base
        raise ModelUnavailable(f"cannot prepack {model}: {error}") from error


def _stamp(model_sha256: str) -> PrepackStamp:
    import onnxruntime

    return PrepackStamp(model_sha256, onnxruntime.__version__, cpu_fingerprint())


def cpu_fingerprint(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model and vector instructions, which decide the prepacked layout.

    A virtual machine that moves to another host gets another fingerprint. Other flags are
    left out: a kernel update may show more of them.
    """
    facts = [os.uname().machine]
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            facts += _first_cpu(lines)
    except OSError:
        pass
    return "; ".join(facts)


def _first_cpu(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if not key:
            return
        if key in _CPU_KEYS:
            yield f"{key}={value}"
        elif key in _CPU_FLAG_KEYS:
            yield " ".join(sorted(f for f in value.split() if f.startswith(_SIMD_FLAGS)))
