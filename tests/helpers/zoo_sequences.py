"""Models of sequences: recurrent nets, transformers, language models, temporal convolutions."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree


class LSTMClassifier(nn.Module):
    """Sentiment of padded sentences: an embedding with padding, a packed bidirectional LSTM of two
    layers with dropout, the last state of both directions.
    """

    def __init__(self, vocabulary: int = 30, width: int = 12, n_classes: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, dropout=0.2, bidirectional=True)
        self.output = nn.Linear(2 * width, n_classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.lstm(packed)
        return self.output(torch.cat([hidden[-2], hidden[-1]], dim=1))


class GRUTagger(nn.Module):
    """One label per token, and the states: a GRU, sequence first, with a cell on top."""

    def __init__(self, vocabulary: int = 30, width: int = 12, n_tags: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, num_layers=2, dropout=0.1)
        self.start = nn.Parameter(torch.zeros(width))
        self.cell = nn.GRUCell(width, width)
        self.tags = nn.Linear(width, n_tags)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(tokens).transpose(0, 1))
        above, state = [], self.start.expand(states.shape[1:])
        for step in states:
            state = self.cell(step, state)
            above.append(state)
        return self.tags(torch.stack(above)).permute(1, 2, 0)


class PackedTagger(nn.Module):
    """An RNN tagger that packs its input and pads its output."""

    def __init__(self, vocabulary: int = 30, width: int = 8, n_tags: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, max_norm=2.0)
        self.rnn = nn.RNN(width, width, batch_first=True, nonlinearity="relu")
        self.tags = nn.Linear(width, n_tags)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )
        return self.tags(states).transpose(1, 2)


class Translator(nn.Module):
    """PyTorch's own `nn.Transformer`, encoder and decoder, with sinusoidal positions in a buffer, a
    causal and a padding mask, and source, target and output sharing one embedding.
    """

    def __init__(self, vocabulary: int = 30, width: int = 16, length: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.transformer = nn.Transformer(
            width, 2, 2, 1, 2 * width, dropout=0.1, batch_first=True, norm_first=False
        )
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = self.embedding.weight
        at = torch.arange(length)[:, None] * 100 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.cat([at.sin(), at.cos()], dim=1))

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        n = target.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=target.device).triu(1)
        hidden = self.transformer(
            self._embed(source),
            self._embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.output(hidden).transpose(1, 2)

    def _embed(self, tokens: Tensor) -> Tensor:
        scale = math.sqrt(self.embedding.embedding_dim)
        return self.embedding(tokens) * scale + self.positions[: tokens.shape[1]]


class ModelOutput(OrderedDict):
    """A transformers output: a dataclass that is also a dict of the fields that are not None, or a
    tuple by number.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class CausalLMOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: tuple[tuple[Tensor, Tensor], ...] | None = None


# As transformers does for its own, for tools that look into nested outputs.
pytree.register_pytree_node(
    CausalLMOutput,
    lambda out: (list(out.values()), list(out)),
    lambda values, names: CausalLMOutput(**dict(zip(names, values, strict=True))),
)


@dataclass
class Config:
    """Settings that a model carries."""

    vocab_size: int = 40
    n_positions: int = 16
    n_embd: int = 16
    n_layer: int = 2
    n_head: int = 2
    dropout: float = 0.1
    initializer_range: float = 0.02
    use_cache: bool = False
    tie_word_embeddings: bool = True


class PreTrainedModel(nn.Module):
    """Machinery of a transformers model: a config, initialisation by kind of layer, tying, and
    properties that look at its own parameters.
    """

    _tied_weights_keys = ("lm_head.weight",)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def post_init(self) -> None:
        self.apply(self._init_weights)
        if self.config.tie_word_embeddings:
            self.get_output_embeddings().weight = self.get_input_embeddings().weight

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is transposed."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class CausalAttention(nn.Module):
    """Attention over past and present tokens; the causal mask is a buffer that is not saved."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n = config.n_positions
        mask = torch.ones(n, n, dtype=torch.bool).tril().view(1, 1, n, n)
        self.register_buffer("bias", mask, persistent=False)
        self.register_buffer("masked_bias", torch.tensor(-1e4), persistent=False)
        self.n_head = config.n_head
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, past=None, attention_mask=None):
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        seen = self.bias[..., k.shape[2] - q.shape[2] : k.shape[2], : k.shape[2]]
        scores = torch.where(seen, scores, self.masked_bias.to(scores.dtype))
        if attention_mask is not None:
            scores = scores + attention_mask
        y = self.attn_dropout(scores.softmax(-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2))), (k, v)


class GPT2Block(nn.Module):
    """Attention, then an MLP in a `ModuleDict`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.n_embd
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(config)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": Conv1D(4 * width, width),
                "act": nn.GELU(approximate="tanh"),
                "c_proj": Conv1D(width, 4 * width),
                "dropout": nn.Dropout(config.dropout),
            }
        )

    def forward(self, x, past=None, attention_mask=None):
        y, present = self.attn(self.ln_1(x), past=past, attention_mask=attention_mask)
        x, y = x + y, self.ln_2(x + y)
        for layer in self.mlp.values():
            y = layer(y)
        return x + y, present


class GPT2LMHeadModel(PreTrainedModel):
    """GPT-2 as transformers has it: a head tied to the token embedding, a cache of keys and values,
    an attention mask, labels that make it return a loss, an output that is a dataclass and a dict.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer["wte"]

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: tuple | None = None,
        use_cache: bool | None = None,
        return_dict: bool = True,
    ):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        past = past_key_values or [None] * len(self.transformer["h"])
        start = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        at = torch.arange(start, start + input_ids.shape[1], device=self.device)
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None].to(self.dtype)
            attention_mask = (1 - attention_mask) * torch.finfo(self.dtype).min
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"](at)
        x, presents = self.transformer["drop"](x), []
        for block, own in zip(self.transformer["h"], past, strict=True):
            x, present = block(x, past=own, attention_mask=attention_mask)
            presents.append(present)
        logits = self.lm_head(self.transformer["ln_f"](x))
        loss = None
        if labels is not None:
            wanted = labels[:, 1:].reshape(-1)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted, ignore_index=-100)
        out = CausalLMOutput(loss, logits, tuple(presents) if use_cache else None)
        return out if return_dict else tuple(out.values())

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int) -> Tensor:
        """The most likely continuation, computed with the cache."""
        out = self(input_ids, use_cache=True)
        for _ in range(max_new_tokens):
            token = out.logits[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, token], dim=1)
            out = self(token, past_key_values=out.past_key_values, use_cache=True)
        return input_ids


class RMSNorm(nn.Module):
    """Llama's RMS norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class RotaryLM(nn.Module):
    """Meta's Llama: rotations of queries and keys from a table of complex numbers, grouped keys and
    values, RMS norms, gated MLPs, no bias anywhere.
    """

    def __init__(self, vocabulary: int = 40, width: int = 16, depth: int = 2, n: int = 16) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(RotaryBlock(width) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        size = width // 4
        frequencies = 100 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(n), frequencies)
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, self.freqs_cis[: tokens.shape[1]])
        return self.output(self.norm(x)).transpose(1, 2)


class RotaryBlock(nn.Module):
    """Four heads of queries, two of keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(width), RMSNorm(width)
        self.wq = nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, width // 2, bias=False) for _ in range(2))
        self.wo = nn.Linear(width, width, bias=False)
        self.w1, self.w3 = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.w2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, freqs_cis: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (
            w(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for w, heads in ((self.wq, 4), (self.wk, 2), (self.wv, 2))
        )
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * freqs_cis).flatten(
                -2
            )
            for t in (q, k)
        )
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).flatten(2))
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class TCN(nn.Module):
    """A temporal convolutional network (S. Bai et al., 2018): dilated causal convolutions under
    weight norm, which is a parametrisation.
    """

    def __init__(self, channels: int = 8, depth: int = 3, n_out: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            reach = 2 * 2**level
            conv = nn.Conv1d(channels if level else 2, channels, 3, dilation=2**level)
            layers += [nn.ConstantPad1d((reach, 0), 0.0), weight_norm(conv)]
            layers += [nn.ReLU(), nn.Dropout1d(0.1)]
        self.network = nn.Sequential(*layers)
        self.linear = weight_norm(nn.Linear(channels, n_out), dim=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x).transpose(1, 2))[..., 0]


class Attentive(nn.Module):
    """Attention pooling that keeps its last weights and activations for whoever wants to see them,
    as many a repository does.
    """

    def __init__(self, width: int = 12, n_classes: int = 3) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.head = nn.Linear(width, n_classes)
        self.attention: Tensor | None = None
        self.activations: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.attention = self.score(x).softmax(1)
        pooled = (self.attention * x).sum(1)
        self.activations["pooled"] = [pooled, self.head(pooled)]
        return self.activations["pooled"][1]


class MixtureOfExperts(nn.Module):
    """A switch layer: every token goes to one of the experts, and not every expert gets one."""

    def __init__(self, width: int = 12, experts: int = 4, n_classes: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gates, chosen = self.router(tokens).softmax(-1).max(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[:, 0]
            if len(mine):
                out = out.index_add(0, mine, expert(tokens[mine]) * gates[mine, None])
        return self.head((tokens + out).view_as(x).mean(1))
