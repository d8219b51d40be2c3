# SPDX-License-Identifier: Apache-2.0
"""One calibration pass: every statistic of both stages, from the router's true choices.

While the pass runs, the ``forward`` of each experts module is replaced, on the instance, by one that computes
the same output expert by expert and takes its sums on the way. So the routing is the model's own (groups,
correction biases, masks included), each expert sees only the tokens routed to it, and what is held besides is
one output per routed pair and matrices of [tokens, experts].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import torch

from stun_ext._inference import evaluation_mode, input_device
from stun_ext.models import ExpertMatrix, MoELayer, MoEModel
from stun_ext.statistics import LayerStatistics, Statistics

#: Tokens of a layer kept for the experts that no token is routed to.
STARVED_SAMPLE = 256

#: Elements of one dense [tokens, experts] float64 block (32 MiB).
_DENSE_ELEMENTS = 1 << 22

#: Elements of one temporary of the experts' activations: on the CPU what its caches hold, elsewhere enough
#: that launches do not count (64 MiB in float32).
_CPU_CHUNK_ELEMENTS = 1 << 18
_CHUNK_ELEMENTS = 1 << 24

#: Odd integer nearest to 2⁶⁴ / golden ratio, as int64: n·_GOLDEN mod 2⁶⁴ spreads n = 0, 1, 2, … evenly.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def collect(
    moe: MoEModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    linears: Mapping[str, torch.nn.Linear] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Run the model over ``batches`` once and measure what method.md's criteria and masks need.

    The sums are taken on the device of each layer, counts as exact integers, the rest in float64 (squared
    inputs: float32 within one batch and expert, added up in float64). The same batches give the same bits in
    every run with the same number of threads. The language-model head is not run. Weights, gradients,
    training flags and forward methods are afterwards what they were, also after an exception or Ctrl-C.

    Args:
        moe: the analysed model; ``moe.layers`` may be empty when only ``linears`` are wanted.
        batches: keyword arguments of the model's forward, one mapping per batch: ``input_ids`` int64
            ``[B, T]`` (or ``inputs_embeds`` ``[B, T, H]``) and optionally ``attention_mask`` ``[B, T]``;
            tokens whose mask is 0 are computed but not counted. Consumed lazily, once. ``labels`` are
            ignored.
        linears: plain linear modules by name whose squared inputs are summed in the same pass.
        progress: called after each batch with (batches done, their total or 0 when ``batches`` has no
            length).

    Returns:
        Statistics on the CPU, ``source`` empty.

    Raises:
        ValueError: a family whose experts cannot be observed (before any forward pass), no batches, a
            malformed batch, a layer or linear that the model never ran, or statistics that are not finite.
    """
    linears = {} if linears is None else linears
    _refuse_unsupported(moe)
    collectors = [_LayerCollector(layer) for layer in moe.layers]
    inputs = {name: _InputCollector(name, linear) for name, linear in linears.items()}
    if not collectors and not inputs:
        raise ValueError(
            "[collect] nothing to measure: the model has no routed experts and no linears were named"
        )
    runner = _without_head(moe, linears.values())
    device = input_device(moe.model)
    total = len(batches) if isinstance(batches, Sized) else 0
    num_samples = num_tokens = 0

    with evaluation_mode(moe.model), _observed(collectors, inputs.values()):
        for done, batch in enumerate(batches, start=1):
            arguments, real, shape = _prepare(batch, device, done - 1)
            for observer in (*collectors, *inputs.values()):
                observer.start_batch(real, shape[0] * shape[1])
            runner(**arguments, use_cache=False)
            if done == 1:  # a layer that the first batch does not reach would waste the whole pass
                _refuse_unreached(moe.family, collectors, inputs)
            num_samples += shape[0]
            num_tokens += shape[0] * shape[1] if real is None else int(real.sum())
            if progress is not None:
                progress(done, total)
        if num_samples == 0:
            raise ValueError("[collect] batches must hold at least one batch, got none")
        layers = [collector.result() for collector in collectors]
    statistics = Statistics(
        layers=layers,
        linears={name: collector.result() for name, collector in inputs.items()},
        num_samples=num_samples,
        num_tokens=num_tokens,
    )
    _refuse_non_finite(moe, statistics)
    return statistics


def _refuse_unsupported(moe: MoEModel) -> None:
    for layer in moe.layers:
        if not layer.supports_statistics:
            raise ValueError(
                f"[collect] the experts of family {moe.family!r} ({type(layer.experts).__name__} at "
                f"{layer.name}) do not take (hidden_states, top_k_index, top_k_weights), so their inputs "
                "cannot be observed; use calibration=False, which decides from router rows and weight "
                "magnitudes alone"
            )


def _refuse_unreached(
    family: str, collectors: list[_LayerCollector], inputs: Mapping[str, _InputCollector]
) -> None:
    missing = [collector.layer.name for collector in collectors if not collector.calls]
    missing += [name for name, collector in inputs.items() if not collector.calls]
    if missing:
        raise ValueError(
            f"[collect] the model (family {family!r}) ran without calling the forward of "
            f"{', '.join(missing)}, so nothing was measured there (a fused kernel that replaces the block, "
            "or a layer that this input does not use); load the model without such kernels, leave the module "
            "out, or use calibration=False"
        )


def _refuse_non_finite(moe: MoEModel, statistics: Statistics) -> None:
    for layer, measured in zip(moe.layers, statistics.layers, strict=True):
        tensors = [measured.norm_sq_sum, measured.gram, *measured.input_sq_norm.values()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ValueError(
                f"[collect] {layer.name} got or gave values that are not finite on the calibration tokens; "
                "load the model in bfloat16 or float32, or check its weights"
            )
    for name, tensor in statistics.linears.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"[collect] the inputs of {name} are not finite on the calibration tokens")


def _without_head(moe: MoEModel, linears: Iterable[torch.nn.Module]) -> torch.nn.Module:
    """The model without its head when everything observed lies below: logits cost time, and memory B·T·V."""
    model = moe.model
    base = getattr(model, "base_model", model)
    if not isinstance(base, torch.nn.Module):
        return model
    inside = {id(module) for module in base.modules()}
    observed = [*(layer.experts for layer in moe.layers), *linears]
    return base if all(id(module) in inside for module in observed) else model


def _prepare(
    batch: Mapping[str, torch.Tensor], device: torch.device, index: int
) -> tuple[dict[str, Any], torch.Tensor | None, tuple[int, int]]:
    """Forward arguments on ``device``, the flat mask of real tokens (None: all), and (B, T)."""
    if not isinstance(batch, Mapping) or not ("input_ids" in batch or "inputs_embeds" in batch):
        held = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"[collect] batch {index} must be a mapping with 'input_ids', got {held}")
    tokens = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
    if tokens.dim() < 2 or tokens.shape[0] * tokens.shape[1] == 0:
        raise ValueError(
            f"[collect] batch {index} must hold [sequences, tokens], got shape {list(tokens.shape)}"
        )
    shape = (int(tokens.shape[0]), int(tokens.shape[1]))
    arguments = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name not in ("labels", "use_cache")
    }
    mask = batch.get("attention_mask")
    if mask is None or bool((mask != 0).all()):
        return arguments, None, shape
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"[collect] batch {index}: attention_mask must have shape {list(shape)}, got {list(mask.shape)}"
        )
    real = (mask != 0).flatten().to(device)
    if not bool(real.any()):
        raise ValueError(f"[collect] batch {index} holds padding only")
    return arguments, real, shape


@contextlib.contextmanager
def _observed(collectors: Iterable[_LayerCollector], inputs: Iterable[_InputCollector]) -> Iterator[None]:
    """Install the overriding forwards and the hooks, and put back exactly what was there."""
    with contextlib.ExitStack() as stack:
        for collector in collectors:
            attributes = collector.layer.experts.__dict__
            # An instance may already carry a forward of its own: accelerate's device hooks do.
            if "forward" in attributes:
                stack.callback(attributes.__setitem__, "forward", attributes["forward"])
            else:
                stack.callback(attributes.pop, "forward", None)
            attributes["forward"] = collector.forward
        for observer in inputs:
            stack.callback(observer.linear.register_forward_pre_hook(observer.hook).remove)
        yield


class _Observer:
    """What both collectors share: the current batch's mask and the count of calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._real: torch.Tensor | None = None
        self._num_positions = 0

    def start_batch(self, real: torch.Tensor | None, num_positions: int) -> None:
        """``real``: bool ``[B·T]``, False at padding, or None without padding."""
        self._real, self._num_positions = real, num_positions

    def _mask(self, rows: int, name: str, device: torch.device) -> torch.Tensor | None:
        self.calls += 1
        if self._real is None:
            return None
        if rows != self._num_positions:
            raise ValueError(
                f"[collect] {name} got {rows} rows for a batch of {self._num_positions} positions, so "
                "padding cannot be told from text there; pass batches without padding"
            )
        return self._real.to(device)


class _InputCollector(_Observer):
    """Σ x_j² over the inputs of one plain linear module."""

    def __init__(self, name: str, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.name, self.linear = name, linear
        self._sum = torch.zeros(linear.in_features, dtype=torch.float64, device=linear.weight.device)

    def hook(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook."""
        x: torch.Tensor = args[0].reshape(-1, args[0].shape[-1])
        real = self._mask(x.shape[0], self.name, x.device)
        if real is not None:
            x = x[real]
        self._sum += x.to(_statistics_dtype(x)).square().sum(dim=0)

    def result(self) -> torch.Tensor:
        return self._sum.float().cpu()


def tokens_behind_norms(statistics: LayerStatistics, experts: Sequence[int]) -> int:
    """Tokens summed in the experts' norms: those routed to them, or the sample that starved ones were run on."""
    sample = min(STARVED_SAMPLE, statistics.num_tokens)
    return max(1, sum(int(statistics.token_count[e]) or sample for e in experts))


class _TokenSample:
    """At most `STARVED_SAMPLE` rows of a stream, spread evenly, whatever batches the stream comes in.

    Row n has priority n·golden mod 2⁶⁴ and the lowest priorities stay: those of the first N rows lie in
    near-equal steps for every N (the three-gap theorem), so the length need not be known beforehand.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._priority = torch.empty(0, dtype=torch.int64)
        self.rows: torch.Tensor | None = None

    def add(self, hidden_states: torch.Tensor, real: torch.Tensor | None) -> None:
        """Offer the rows of ``hidden_states`` ``[T, H]`` where ``real`` holds."""
        positions = None if real is None else torch.nonzero(real).flatten()
        count = hidden_states.shape[0] if positions is None else positions.shape[0]
        priority = torch.arange(self._seen, self._seen + count) * _GOLDEN  # wraps, as meant
        self._seen += count
        kept = self._priority.shape[0]
        merged = torch.cat([self._priority, priority])
        chosen = torch.argsort(merged, stable=True)[:STARVED_SAMPLE]
        old, new = chosen[chosen < kept], chosen[chosen >= kept] - kept
        if new.shape[0] == 0:
            return
        self._priority = merged[torch.cat([old, new + kept])]
        new = new.to(hidden_states.device)
        fresh = hidden_states.index_select(0, new if positions is None else positions.index_select(0, new))
        old_rows = [] if self.rows is None else [self.rows.index_select(0, old.to(hidden_states.device))]
        self.rows = torch.cat([*old_rows, fresh])


class _LayerCollector(_Observer):
    """Stands in for ``experts.forward`` of one layer and sums its statistics."""

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.layer = layer
        experts = layer.num_experts
        self._up = next(matrix for matrix in layer.matrices if matrix.input == "hidden")
        self._down = next(matrix for matrix in layer.matrices if matrix.input == "intermediate")
        device = self._down.parameter.device
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self._norms = zeros(3, experts)  # Σ‖f‖, Σ‖f‖², Σ g‖f‖
        self._gram = zeros(experts, experts)
        self._pairs = zeros(experts, experts)  # integers, exact in float64; the diagonal counts tokens
        # [0]: Σ x², [1]: Σ (g x)²
        self._input_sums = {m.name: zeros(2, experts, m.expert(0).shape[1]) for m in (self._up, self._down)}
        self._num_tokens = 0
        self._sample = _TokenSample()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Output of the experts ``[T, H]`` for tokens ``[T, H]``, expert ids and gate weights ``[T, k]``."""
        tokens, top_k = top_k_index.shape
        experts = self.layer.num_experts
        real = self._mask(tokens, self.layer.name, hidden_states.device)
        dtype = _statistics_dtype(hidden_states)

        # Pairs (token, expert) sorted by expert, an expert's padding after its real tokens, and the ids >= E
        # that expert parallelism gives to other ranks' experts behind everything.
        key = top_k_index.flatten().clamp(max=experts) * 2
        if real is not None:
            key += torch.repeat_interleave(~real, top_k)
        order = torch.argsort(key, stable=True)
        bounds = [0, *torch.bincount(key, minlength=2 * experts + 2).cumsum(0).tolist()]
        token = order // top_k
        gate = top_k_weights.flatten().index_select(0, order)
        gate_sq = gate.to(dtype).square()[:, None]

        outputs = hidden_states.new_zeros((tokens * top_k, self._down.expert(0).shape[0]))  # in sorted order
        norms = torch.zeros(tokens * top_k, dtype=dtype, device=hidden_states.device)
        sums = {
            name: torch.zeros(total.shape, dtype=dtype, device=total.device)
            for name, total in self._input_sums.items()
        }
        for first, last in self._chunks(bounds):
            chunk = slice(bounds[2 * first], bounds[2 * last])
            sizes = [bounds[2 * expert + 2] - bounds[2 * expert] for expert in range(first, last)]
            x = hidden_states.index_select(0, token[chunk])
            inner, y = self._run(range(first, last), sizes, x)
            outputs[chunk] = y
            torch.linalg.vector_norm(y, dim=1, dtype=dtype, out=norms[chunk])
            # Segments: each expert's real tokens, then its padding, which is left out of the sums.
            segments = [bounds[i + 1] - bounds[i] for i in range(2 * first, 2 * last)]
            for matrix, values in ((self._up, x), (self._down, inner)):
                _add_square_sums(values, gate_sq[chunk], segments, sums[matrix.name][:, first:last])
        for name, total in self._input_sums.items():
            total += sums[name]

        position = torch.empty_like(order)
        position[order] = torch.arange(tokens * top_k, device=order.device)
        position = position.view(tokens, top_k)
        self._add_pairs(top_k_index, top_k_weights, norms[position], real)
        self._sample.add(hidden_states, real)
        self._num_tokens += tokens if real is None else int(real.sum())
        # As the stock forward: weighted in the promoted dtype, summed in float32, cast back at the end.
        output = torch.zeros((tokens, outputs.shape[1]), dtype=dtype, device=outputs.device)
        for slot in range(top_k):
            output += outputs.index_select(0, position[:, slot]) * top_k_weights[:, slot, None]
        return output.to(hidden_states.dtype)

    def _chunks(self, bounds: list[int]) -> Iterator[tuple[int, int]]:
        """Runs of consecutive experts [first, last) whose activations fit a chunk, at least one each."""
        width = max(*self._up.expert(0).shape, self._down.expert(0).shape[0])
        on_cpu = self._down.parameter.device.type == "cpu"
        limit = (_CPU_CHUNK_ELEMENTS if on_cpu else _CHUNK_ELEMENTS) // width
        first = 0
        for last in range(1, self.layer.num_experts + 1):
            end = bounds[2 * min(last + 1, self.layer.num_experts)]
            full = (end - bounds[2 * first]) > limit
            if last == self.layer.num_experts or full:
                if bounds[2 * last] > bounds[2 * first]:
                    yield first, last
                first = last

    def _run(
        self, experts: Sequence[int], sizes: Sequence[int], x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the down projection, and outputs before the gate weight, of ``sizes`` rows per expert."""
        module: Any = self.layer.experts
        h = self._multiply(self._up, experts, sizes, x)
        inner: torch.Tensor = module._apply_gate(h) if module.has_gate else module.act_fn(h)
        y = self._multiply(self._down, experts, sizes, inner)
        if getattr(module, "has_post_expert_norm", False):
            y = module.post_expert_norm(y)
        return inner, y

    def _multiply(
        self, matrix: ExpertMatrix, experts: Sequence[int], sizes: Sequence[int], x: torch.Tensor
    ) -> torch.Tensor:
        """Each expert's rows times its matrix, plus its bias."""
        out = x.new_empty((x.shape[0], matrix.expert(0).shape[0]))
        rows = zip(torch.split(x, list(sizes)), torch.split(out, list(sizes)), strict=True)
        for expert, (given, result) in zip(experts, rows, strict=True):
            if len(given):
                torch.mm(given, matrix.expert(expert).T, out=result)
        if getattr(self.layer.experts, "has_bias", False):
            bias = getattr(self.layer.experts, f"{matrix.name}_bias")
            ids = torch.tensor(experts).repeat_interleave(torch.tensor(sizes))
            out += bias.index_select(0, ids.to(bias.device))
        return out

    def _add_pairs(
        self, index: torch.Tensor, gate: torch.Tensor, norm: torch.Tensor, real: torch.Tensor | None
    ) -> None:
        """Sums over (token, expert) pairs and pairs of pairs, through dense [tokens, E] blocks."""
        experts = self.layer.num_experts
        column = index.clamp(max=experts)  # column E swallows padding and sentinels
        if real is not None:
            column = column.masked_fill(~real[:, None], experts)
        norm = norm.to(torch.float64)
        weighted = norm * gate.to(torch.float64)
        step = max(1, _DENSE_ELEMENTS // (experts + 1))
        for start in range(0, index.shape[0], step):
            block = slice(start, start + step)

            def dense(values: torch.Tensor, block: slice = block) -> torch.Tensor:
                wide = values.new_zeros((values.shape[0], experts + 1))
                return wide.scatter_(1, column[block], values)[:, :experts]

            member = dense(torch.ones_like(norm[block]))
            self._pairs += member.T @ member
            plain = dense(norm[block])
            gated = dense(weighted[block])
            self._gram += gated.T @ gated
            self._norms += torch.stack([plain.sum(0), plain.square().sum(0), gated.sum(0)])

    def result(self) -> LayerStatistics:
        """The layer's statistics, after the starved experts have been run on the kept sample."""
        token_count = self._pairs.diagonal().round().to(torch.int64)
        coactivation = self._pairs.round().to(torch.int64).fill_diagonal_(0)
        starved: list[int] = torch.nonzero(token_count == 0).flatten().tolist()
        sample = self._sample.rows
        if starved and sample is not None:
            # No gate weight was given to these tokens, so 1 stands for it: both norms are then the same, and
            # gate-weighted Wanda treats such an expert as Wanda does.
            ones = torch.ones((sample.shape[0], 1), dtype=_statistics_dtype(sample), device=sample.device)
            for expert in starved:
                inner, _ = self._run([expert], [len(sample)], sample)
                for matrix, x in ((self._up, sample), (self._down, inner)):
                    sums = torch.zeros((2, 1, x.shape[1]), dtype=ones.dtype, device=x.device)
                    _add_square_sums(x, ones, [len(sample), 0], sums)
                    self._input_sums[matrix.name][:, expert] = sums[:, 0]
        norms, gram = self._norms.cpu(), self._gram.cpu()
        inputs = {name: sums.float().cpu() for name, sums in self._input_sums.items()}
        return LayerStatistics(
            token_count=token_count.cpu(),
            norm_sum=norms[0].clone(),
            norm_sq_sum=norms[1].clone(),
            weighted_norm_sum=norms[2].clone(),
            coactivation=coactivation.cpu(),
            gram=(gram + gram.T) / 2,  # a matrix product may round the two halves differently
            input_sq_norm={name: sums[0].clone() for name, sums in inputs.items()},
            gated_input_sq_norm={name: sums[1].clone() for name, sums in inputs.items()},
            num_tokens=self._num_tokens,
            starved=starved,
        )


def _statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """float32 for 16-bit and 32-bit activations (squares overflow float16), float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _add_square_sums(x: torch.Tensor, gate_sq: torch.Tensor, segments: list[int], out: torch.Tensor) -> None:
    """Add Σ x² to ``out[0]`` and Σ g²x² to ``out[1]``, over every second segment of the rows.

    Args:
        x: ``[rows, in]``.
        gate_sq: ``[rows, 1]``, dtype of ``out``.
        segments: lengths of consecutive runs of rows; those at odd places are padding.
        out: ``[2, len(segments) / 2, in]``.
    """
    # Elementwise and plain sums, not products with a mask: TF32 cannot touch them, nor NaN in padding.
    squares = x.to(out.dtype).square()
    for kind in range(2):
        if kind == 1:
            squares *= gate_sq
        if x.device.type == "cpu":
            for place, rows in enumerate(torch.split(squares, segments)[::2]):
                if len(rows):
                    out[kind, place] += rows.sum(dim=0)
        else:  # one launch instead of thousands; deterministic, each sum is taken by one thread in order
            lengths = torch.tensor(segments, device=x.device)
            out[kind] += torch.segment_reduce(
                squares, "sum", lengths=lengths, axis=0, unsafe=True, initial=0
            )[::2]
