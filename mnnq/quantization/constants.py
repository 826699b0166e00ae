"""Constants besides the weights of layers: lookup tables become codes, others half floats if asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mnnq import _native
from mnnq.errors import MnnqError
from mnnq.ir.model import Model, Op
from mnnq.quantization import embedding
from mnnq.quantization.choices import block_reason, choose_block, without_data
from mnnq.quantization.config import LayerConfig, WeightConfig, WeightMethod
from mnnq.quantization.half import fits_half
from mnnq.report.quantization import LayerReport

#: Float constants below this many elements stay float under `WeightConfig.fp16_constants`: they save nothing,
#: and epsilons and masks do not survive.
MIN_HALF_ELEMENTS = 256

#: ``auto`` gives lookup tables at least this many bits unless an override names them: what a lookup loses, no layer
#: makes up for, and tables cost no time.
TABLE_BITS = 8


class Constants:
    """Writes the constants of a model as a configuration says."""

    def __init__(self, model: Model, config: WeightConfig) -> None:
        self.model, self.config = model, config
        self._names: set[str] | None = None

    def table(self, table: embedding.Table) -> LayerReport:
        """Quantize a lookup table as configured, and say what became of it."""
        const = table.const
        config = self.config.layer(table.subgraph, const.name)
        half = const.params.get("dataType") == "DT_HALF"
        count = int(np.prod(table.shape, dtype=np.int64))
        before = count * (2 if half else 4)
        reason = table.reason
        if not self.config.embeddings:
            reason = "embeddings are left float as asked"
        if config.coded and reason is None:
            return self._code_table(table, config, before)
        bits = 16 if half else 32
        if config.bits == 16 and not half:
            self._to_half(const)
            bits, reason = 16, None
        after = count * bits // 8
        if config.bits == 0:
            reason = None
        return LayerReport(
            const.name, "Embedding", table.shape, bits, None, config.block, None,
            "fp16" if bits == 16 else None, before, after, reason=reason, subgraph=table.subgraph,
        )  # fmt: skip

    def _code_table(self, table: embedding.Table, config: LayerConfig, before: int) -> LayerReport:
        rows, width = table.shape
        asked = config.bits
        named = any(
            "bits" in o.changes and o.matches(table.subgraph, table.const.name) for o in self.config.overrides
        )
        if config.method is WeightMethod.AUTO and not named:
            config = replace(config, bits=max(asked, TABLE_BITS))
        block = choose_block(config.block, width)
        reason = block_reason(config.block, block, width)
        if config.bits != asked:
            reason = "; ".join(
                filter(
                    None,
                    (
                        f"auto keeps lookup tables at {config.bits} bits, an override gives them {asked}",
                        reason,
                    ),
                )
            )
        matrix = embedding.float_values(table.const).reshape(rows, width)
        try:
            codes = _native.quantize_codes(
                matrix,
                bits=config.bits,
                symmetric=config.symmetric,
                block=block,
                method=without_data(config)[0],
                gain_correction=config.gain_correction,  # a lookup is no filter: nothing multiplies up
                fp16_scales=config.fp16_scales,
                threads=self.config.threads,
            )
        except MnnqError as error:
            error.node = error.node or table.const.name
            raise
        del matrix
        stats = codes["stats"]
        index = (codes["codes"].view(np.uint8) + np.uint8(1 << (config.bits - 1))).astype(
            np.uint8, copy=False
        )
        after = embedding.rewrite(
            table,
            index,
            codes["scale"],
            codes["min"],
            config.bits,
            fp16_scales=config.fp16_scales,
            fresh=self._fresh,
        )
        return LayerReport(
            name=table.const.name,
            op_type="Embedding",
            shape=(rows, width),
            bits=config.bits,
            scheme=config.scheme,
            block_asked=config.block,
            block_used=block,
            method=without_data(config)[0],
            bytes_before=before,
            bytes_after=after,
            sqnr_db=stats["sqnr_db"],
            relative_rms=stats["relative_rms"],
            reason=reason,
            subgraph=table.subgraph,
        )

    def others(self, tables: set[int]) -> list[LayerReport]:
        """Report large float constants that stay, as half floats if asked; `tables`: identities of those that are tables."""
        layers: list[LayerReport] = []
        for subgraph, ops, _ in self.model.graphs():
            users: dict[str, list[str]] = {}
            for op in ops:
                for name in op.inputs:
                    users.setdefault(name, []).append(f"{op.type} {op.name!r}")
            for op in ops:
                if (
                    op.type != "Const"
                    or id(op) in tables
                    or op.params.get("dataType", "DT_FLOAT") != "DT_FLOAT"
                ):
                    continue
                count = len(op.params.get("float32s", ()))
                halved = self.config.fp16_constants and count >= MIN_HALF_ELEMENTS and self._to_half(op)
                readers = users.get(op.outputs[0], [])
                ours = op.outputs[0].rpartition("__")[2] in ("scale", "min") and bool(tables)
                if count < embedding.MIN_ELEMENTS or ours:
                    continue
                reader = readers[0] if readers else "nothing"
                reason = f"a constant read by {reader}; only convolutions, linear layers and row lookups can hold codes"
                dims = tuple(int(d) for d in op.params.get("dims", ()))
                wanted_float = self.config.bits in (0, 16)
                layers.append(
                    LayerReport(
                        op.name,
                        "Const",
                        dims,
                        16 if halved else 32,
                        None,
                        None,
                        None,
                        "fp16" if halved else None,
                        4 * count,
                        (2 if halved else 4) * count,
                        reason=None if wanted_float else reason,
                        subgraph=subgraph,
                    )
                )
        return layers

    def _to_half(self, const: Op) -> bool:
        """Store a float constant as half floats; False when a value is too large for them."""
        values = np.asarray(const.params["float32s"], np.float32)
        if not fits_half(values):
            return False
        packed = np.asarray(_native.pack_half(values)["buffer"])
        del const.params["float32s"]
        const.params["uint8s"], const.params["dataType"] = packed.view(np.uint8), "DT_HALF"
        return True

    def _fresh(self, stem: str) -> str:
        if self._names is None:
            self._names = set(self.model.tensor_order)
            for _, op in self.model.all_ops():
                self._names.update(op.outputs)
        name, serial = stem, 0
        while name in self._names:
            serial += 1
            name = f"{stem}_{serial}"
        self._names.add(name)
        return name
