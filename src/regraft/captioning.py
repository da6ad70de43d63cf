"""An LSTM that says words about a picture, one after the other (Vinyals et al. 2015), or looks again before each (Xu et al. 2015).

What enters is features [b, f], or a feature map [b, c, h, w] of n = h x w places. Words are whole numbers, of which vocabulary.py says the
first four. T steps are a text of up to T - 1 words and its end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regraft.vocabulary import BEGIN, END, PAD, SPECIAL, UNKNOWN

State = tuple[Tensor, Tensor]  # the LSTM's output and memory, [b, width] each
LEAST = 1e-6  # a probability is no nearer to 0 or 1 than this where its logit is told


class Decoder(nn.Module):
    """The chances of the next word, given the picture and the words before it."""

    def __init__(self, shape: tuple[int, ...], vocabulary: int, width: int, dropout: float, attention: bool) -> None:
        """`shape`: of what enters, without b. `vocabulary`: how many words there are, the special ones too. Draws from torch's stream."""
        super().__init__()
        self.width, self.dropout, self.attention = width, dropout, attention
        self.norm = nn.LayerNorm(shape[0])  # nets differ in how large their features are
        self.picture = nn.Linear(shape[0], width)
        self.word = nn.Embedding(vocabulary, width)
        self.cell = nn.LSTMCell(2 * width if attention else width, width)
        self.answer = nn.Linear(width, vocabulary)
        if attention:
            self.first = nn.Linear(width, 2 * width)
            self.key, self.query, self.energy = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
            self.gate, self.said, self.seen = nn.Linear(width, 1), nn.Linear(width, width), nn.Linear(width, width)

    def places(self, x: Tensor) -> Tensor:
        """[b, f] or [b, c, h, w] -> [b, 1, width], the mean of all places; with attention [b, n, 2 width]: what is at each place, and what
        it is found by."""
        spread = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x[:, None]  # [b, n, c]
        if not self.attention:
            return self.picture(self.norm(spread.mean(1, keepdim=True)))
        seen = self.picture(self.norm(spread))
        return torch.cat([seen, self.key(seen)], 2)

    def begin(self, places: Tensor) -> State:
        """Without attention the picture is the first thing that the LSTM is told (Vinyals et al., equation 10); with it, the mean of all
        places is where it starts (Xu et al., section 3.1.2)."""
        if not self.attention:
            return self.cell(places[:, 0])
        output, memory = self.first(places[..., : self.width].mean(1)).tanh().chunk(2, 1)
        return output, memory

    def step(self, word: Tensor, places: Tensor, state: State, kept: Tensor | None = None) -> tuple[Tensor, State, Tensor]:
        """The word before [b] -> logits [b, vocabulary], the state after it, and how much each place counted [b, n].

        `kept` [b, 2, width]: what dropout does to the word and to what answers; None: nothing.
        """
        embedded = self.word(word) if kept is None else self.word(word) * kept[:, 0]
        if not self.attention:
            state = self.cell(embedded, state)
            return self.answer(state[0] if kept is None else state[0] * kept[:, 1]), state, places.new_ones(places.shape[:2])
        seen, keys = places.chunk(2, 2)
        weights = self.energy((keys + self.query(state[0])[:, None]).tanh()).softmax(1)  # [b, n, 1]
        context = self.gate(state[0]).sigmoid() * (weights * seen).sum(1)  # section 4.2.1
        state = self.cell(torch.cat([embedded, context], 1), state)
        deep = embedded + self.said(state[0]) + self.seen(context)  # equation 7
        return self.answer(deep if kept is None else deep * kept[:, 1]), state, weights[..., 0]

    def follow(self, places: Tensor, words: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The chances of each next word along given ones: [b, L] -> log-probabilities [b, L + 1, vocabulary], weights [b, L + 1, n]

        `kept`: [b, L + 1, 2, width]
        """
        state = self.begin(places)
        chances, weights = [], []
        for at, word in enumerate([words.new_full((len(words),), BEGIN), *words.T]):
            logits, state, looked = self.step(word, places, state, None if kept is None else kept[:, at])
            chances.append(logits.float().log_softmax(-1))
            weights.append(looked)
        return torch.stack(chances, 1), torch.stack(weights, 1)

    def unlikelihood(self, places: Tensor, words: Tensor, kept: Tensor | None = None) -> Tensor:
        """Texts [b, L] -> [b]: the negative log-likelihood of each text with its end, each word after the right ones before it.

        Summed over the words (Vinyals et al., equation 1): means would make short texts more likely than they are.
        """
        most = int((words != PAD).sum(1).max())
        words = words[:, :most] if most else words[:, :1]  # what is behind the longest end costs nothing
        lengths = (words != PAD).sum(1)  # [b]
        chances, _ = self.follow(places, words, kept)
        steps = torch.arange(words.shape[1] + 1, device=words.device)
        padded = torch.cat([words, torch.full_like(words[:, :1], PAD)], 1)
        goal = torch.where(steps == lengths[:, None], END, padded)  # [b, L + 1]
        costs = -chances.gather(2, goal[..., None])[..., 0] * (steps <= lengths[:, None])
        return costs.sum(1)

    def masks(self, seeds: Tensor, texts: int, steps: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """What is random for each sample: which of its texts [b] (a part 0..1 of them), and what dropout keeps [b, steps, 2, width]."""
        which, kept = [], []
        for seed in seeds.tolist():
            draws = torch.Generator().manual_seed(seed)
            which.append(torch.rand((), generator=draws))
            kept.append(torch.rand(steps, 2, self.width, generator=draws) >= self.dropout)
        scaled = torch.stack(kept).to(device, torch.float32) / (1 - self.dropout) if self.dropout else None
        return torch.stack(which).to(device), scaled

    @torch.no_grad()
    def search(self, places: Tensor, beam: int, length: int, never: Tensor, once: bool = False) -> tuple[Tensor, Tensor]:
        """The likeliest texts of at most `length` words with their end, as far as a beam finds them: [b, beam, length] and their
        log-probabilities [b, beam], the best first, -inf for one that there is not.

        `never` [vocabulary]: words that are not said. `once`: no word is said twice.
        """
        b, vocabulary = len(places), self.answer.out_features
        places = places.repeat_interleave(beam, 0)
        state = self.begin(places)
        total = places.new_full((b, beam), -torch.inf, dtype=torch.float32)
        total[:, 0] = 0  # all begin alike: one is enough
        words = places.new_full((b, beam, length + 1), PAD, dtype=torch.int64)
        done = torch.zeros_like(total, dtype=torch.bool)
        last = words.new_full((b * beam,), BEGIN)
        rest = torch.where(torch.arange(vocabulary, device=places.device) == PAD, 0.0, -torch.inf)  # a text that has ended stays as it is
        for at in range(length + 1):
            logits, state, _ = self.step(last, places, state)
            chances = logits.float().log_softmax(-1).view(b, beam, vocabulary).masked_fill(never, -torch.inf)
            if once and at:
                chances = chances.scatter(2, words[..., :at], -torch.inf)
            if at == length:
                chances = chances.masked_fill(torch.arange(vocabulary, device=places.device) != END, -torch.inf)
            chances = torch.where(done[..., None], rest, chances)
            total, best = (total[..., None] + chances).flatten(1).topk(beam)  # [b, beam]
            origin, said = best // vocabulary, best % vocabulary
            words = words.gather(1, origin[..., None].expand_as(words))
            words[..., at] = said.masked_fill(said == END, PAD)
            done = done.gather(1, origin) | (said == END)
            rows = (origin + beam * torch.arange(b, device=places.device)[:, None]).flatten()
            state, last = (state[0][rows], state[1][rows]), said.flatten()
            if done.all():
                break
        return words[..., :length], total


class Captioner(nn.Module):
    """The head of captions: what enters -> words as numbers [b, length], 0 behind the end."""

    never: Tensor

    def __init__(self, decoder: Decoder, vocabulary: int, beam: int, length: int) -> None:
        super().__init__()
        self.decoder, self.beam, self.length = decoder, min(beam, vocabulary), length
        # A word that is unknown is right nowhere, so that it is never said.
        self.register_buffer("never", _never(vocabulary, PAD, BEGIN, UNKNOWN), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The likeliest caption that a beam finds: [b, length], float32"""
        return self._said(self.decoder.places(x)).float()

    def losses(self, x: Tensor, truth: Tensor, seeds: Tensor) -> Tensor:
        """References [b, R, L] -> [b]. One of them, drawn by the sample's seed, is learnt from in an epoch: over the epochs all are, for
        the price of one. In eval mode it is the mean over all of them."""
        decoder, (b, texts, length) = self.decoder, truth.shape
        truth = truth.masked_fill(truth >= len(self.never), UNKNOWN)
        there = truth.any(-1).int().sort(dim=1, descending=True, stable=True)  # [b, R]: which references there are, those first
        places = decoder.places(x)
        if not self.training:
            each = decoder.unlikelihood(places.repeat_interleave(texts, 0), truth.flatten(0, 1)).view(b, texts)
            return (each * truth.any(-1)).sum(1) / there.values.sum(1).clamp(min=1)
        part, kept = decoder.masks(seeds, texts, length + 1, x.device)
        number = (part * there.values.sum(1)).long()  # among those that are there
        chosen = there.indices.gather(1, number[:, None])
        return decoder.unlikelihood(places, truth[torch.arange(b, device=x.device), chosen[:, 0]], kept)

    @torch.no_grad()
    def looks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Captions [b, length] and how much each place of the map counted for each word [b, length, h, w]; 0 behind the end."""
        places = self.decoder.places(x)
        words = self._said(places)
        _, weights = self.decoder.follow(places, words)
        shape = x.shape[2:] if self.decoder.attention else (1, 1)
        return words, (weights[:, :-1] * (words != PAD)[..., None]).unflatten(2, shape)

    def _said(self, places: Tensor) -> Tensor:
        return self.decoder.search(places, self.beam, self.length, self.never)[0][:, 0]


class Tagger(nn.Module):
    """The head of tags as a sequence (Wang et al. 2016, CNN-RNN): each tag is told after those that are more frequent; -> logits [b, k]"""

    never: Tensor

    def __init__(self, decoder: Decoder, tags: int, beam: int, length: int) -> None:
        """`tags`: k, in the order in which they are told."""
        super().__init__()
        self.decoder, self.tags, self.beam, self.length = decoder, tags, min(beam, tags + 1), min(length, tags)
        self.register_buffer("never", _never(len(SPECIAL) + tags, PAD, BEGIN, UNKNOWN), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """A tag's probability is that of being told next, times that of what is told before, summed over all that the beam has followed: a
        wide beam gives the chance of its being in the sequence, a narrow one somewhat less; a tag that no path takes has one too."""
        decoder = self.decoder
        places = decoder.places(x)
        words, total = decoder.search(places, self.beam, self.length, self.never, once=True)  # [b, beam, length]
        chances, _ = decoder.follow(places.repeat_interleave(words.shape[1], 0), words.flatten(0, 1))
        chances = chances.view(*words.shape[:2], self.length + 1, -1)  # [b, beam, T, vocabulary]
        steps = torch.arange(self.length + 1, device=x.device)
        real = (steps <= (words != PAD).sum(-1, keepdim=True)) & total.isfinite()[..., None] & ~_shared(words)  # [b, beam, T]
        said = torch.nn.functional.one_hot(words, chances.shape[-1]).cumsum(2).bool()
        told = torch.cat([torch.zeros_like(said[:, :, :1]), said], 2)  # before each step: not told again
        before = chances[:, :, :-1].gather(3, words[..., None])[..., 0].cumsum(2)  # what is said behind the end is not asked for
        before = torch.cat([torch.zeros_like(before[..., :1]), before], 2)  # [b, beam, T]
        joint = (before[..., None] + chances).masked_fill(told | ~real[..., None], -torch.inf).exp()
        return joint.sum((1, 2))[:, len(SPECIAL) :].clamp(LEAST, 1 - LEAST).logit()

    def losses(self, x: Tensor, truth: Tensor, seeds: Tensor) -> Tensor:
        """0 or 1 for each tag [b, k] -> [b]"""
        order = torch.arange(self.tags, device=x.device)
        told = torch.where(truth > 0.5, order, self.tags).sort(1).values  # [b, k] those that hold, in order, then nothing
        words = torch.where(told < self.tags, told + len(SPECIAL), PAD)
        kept = self.decoder.masks(seeds, 1, self.tags + 1, x.device)[1] if self.training else None
        return self.decoder.unlikelihood(self.decoder.places(x), words, kept)


def _shared(words: Tensor) -> Tensor:
    """Texts [b, beam, L] -> [b, beam, L + 1]: whether an earlier text of the beam has the same first 0, 1, ... words"""
    alike = (words[:, :, None] == words[:, None]).cumprod(3).bool()  # [b, beam, beam, L]
    alike = torch.cat([torch.ones_like(alike[..., :1]), alike], 3)
    earlier = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).tril(-1)
    return (alike & earlier[..., None]).any(2)


def _never(vocabulary: int, *words: int) -> Tensor:
    """[vocabulary]"""
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[list(words)] = True
    return found
