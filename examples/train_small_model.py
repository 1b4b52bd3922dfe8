"""The parts of train_small.py that need torch: task, model, and what is measured."""

from __future__ import annotations

import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

from convbasis.torch import ConvAttention, conv_attention

VOCABULARY, PERIOD, NOISE = 16, 48, 0.1
LAYERS, HEADS, EMBED_DIM, ROTARY_BASE = 2, 4, 64, 1000.0
LEARNING_RATE = 5e-3


def say(text):
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


class ExactAttention(ConvAttention):
    """The same layer by torch's exact attention."""

    def attend(self, query, key, value, is_causal):
        heads_first = (heads.transpose(1, 2) for heads in (query, key, value))
        return F.scaled_dot_product_attention(*heads_first, is_causal=is_causal).transpose(1, 2)


class ObservedAttention(ConvAttention):
    """The same layer by strips; keeps which heads were computed exactly after all."""

    def attend(self, query, key, value, is_causal):
        how = {"is_causal": is_causal, "layout": "bshd", "return_exact_mask": True}
        out, self.exact_mask = conv_attention(query, key, value, **how)
        return out


ATTENTIONS = {"conv": ConvAttention, "exact": ExactAttention}


class Block(nn.Module):
    """A transformer block whose attention looks at positions alone.

    One learned vector is the query of all positions and another the key: rotated by position,
    their product depends on the lag alone, whatever is learned.
    """

    def __init__(self, attention):
        super().__init__()
        self.query, self.key = (nn.Parameter(torch.randn(EMBED_DIM)) for _ in range(2))
        self.attention = attention(EMBED_DIM, HEADS, batch_first=True, rotary_base=ROTARY_BASE)
        self.norm_value, self.norm_mlp = nn.LayerNorm(EMBED_DIM), nn.LayerNorm(EMBED_DIM)
        self.mlp = nn.Sequential(
            nn.Linear(EMBED_DIM, 2 * EMBED_DIM), nn.GELU(), nn.Linear(2 * EMBED_DIM, EMBED_DIM)
        )

    def forward(self, x):
        query, key = self.query.expand_as(x), self.key.expand_as(x)
        x = x + self.attention(query, key, self.norm_value(x), is_causal=True)[0]
        return x + self.mlp(self.norm_mlp(x))


def build_model(attention, seed):
    """A causal transformer, (batch, n) tokens -> (batch, n, VOCABULARY) logits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, EMBED_DIM),
        *(Block(attention) for _ in range(LAYERS)),
        nn.LayerNorm(EMBED_DIM),
        nn.Linear(EMBED_DIM, VOCABULARY),
    )


def draw_tokens(n, generator):
    """(1, n + 1) tokens: a fresh random pattern of PERIOD repeated, a share NOISE redrawn."""
    pattern = torch.randint(VOCABULARY, (1, PERIOD), generator=generator)
    tokens = pattern.repeat(1, n // PERIOD + 1)[:, : n + 1]
    redrawn = torch.rand(tokens.shape, generator=generator) < NOISE
    return torch.where(
        redrawn, torch.randint(VOCABULARY, tokens.shape, generator=generator), tokens
    )


def least_loss(n):
    """Expected loss of who guesses in the first period and knows the pattern after it."""
    wrong = NOISE / VOCABULARY  # probability of each other token
    right = 1 - (VOCABULARY - 1) * wrong
    known = -right * math.log(right) - (1 - right) * math.log(wrong)
    return ((PERIOD - 1) * math.log(VOCABULARY) + (n - PERIOD + 1) * known) / n


class Learner:
    """A model with its optimizer."""

    def __init__(self, attention, seed):
        self.model = build_model(attention, seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def step(self, tokens):
        """One step of training; returns the loss and the seconds."""
        begin = time.perf_counter()
        logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), time.perf_counter() - begin


def learners(seed):
    """One learner by strips and one by exact attention, of the same initial weights."""
    return {name: Learner(attention, seed) for name, attention in ATTENTIONS.items()}


def train(n, steps, seed):
    """Train both side by side on the same batches.

    Returns losses and seconds of each step, {"conv": [...], "exact": [...]} both, and how many
    heads of the trained model go through strips.
    """
    pair, generator = learners(seed), torch.Generator().manual_seed(seed + 1)
    losses, seconds = ({name: [] for name in pair} for _ in range(2))
    for step in range(1, steps + 1):
        tokens = draw_tokens(n, generator)
        for name, learner in pair.items():
            loss, taken = learner.step(tokens)
            losses[name].append(loss)
            seconds[name].append(taken)
        if step % 10 == 0 or step in (1, steps):
            latest = ", ".join(f"{name} {values[-1]:.4f}" for name, values in losses.items())
            say(f"step {step} of {steps}: loss {latest}")
    return losses, seconds, heads_on_strips(pair["conv"].model, tokens[:, :-1])


def heads_on_strips(model, tokens):
    """Of all heads of the model, those that this sequence did not send to exact attention."""
    observed = build_model(ObservedAttention, seed=0)
    observed.load_state_dict(model.state_dict())
    with torch.no_grad():
        observed(tokens)
    blocks = (module for module in observed if isinstance(module, Block))
    return sum(int((~block.attention.exact_mask).sum()) for block in blocks)


def fastest_steps(n, seed, turns):
    """Seconds of the fastest step of each, over turns of one step each; one more warms up."""
    pair, generator = learners(seed), torch.Generator().manual_seed(seed + 1)
    seconds = {name: [] for name in pair}
    for _ in range(turns + 1):
        tokens = draw_tokens(n, generator)
        for name, learner in pair.items():
            seconds[name].append(learner.step(tokens)[1])
    return {name: min(values[1:]) for name, values in seconds.items()}


def compare_speed(sizes, seed):
    """Tokens per second over n: {"conv": [...], "exact": [...]}."""
    speed = {name: [] for name in ATTENTIONS}
    for n in sizes:
        say(f"steps at n = {n:,} ...")
        turns = min(max(2**15 // n, 3), 20)
        for name, seconds in fastest_steps(n, seed, turns).items():
            speed[name].append(n / seconds)
    return speed
