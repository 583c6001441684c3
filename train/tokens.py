"""From conversations to token ids and labels, by construction.

A template lays a conversation out as pieces whose role is known: what is asked, what is answered, what closes the
answer. The runs of text between special tokens are tokenized whole, and a token is a target if it begins inside an
answer. Nothing is searched in the text: `</s>`, `ASSISTANT:` or `<image>` written by a user are ordinary characters.
"""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.record import is_blank
from vlmix.mixture.render import tokens_in_place

IMAGE = "<image>"
TODAY = date(2025, 7, 1)
"""For chat templates that tell the LM the date, as SmolLM3's: prompts of every run and every day are the same."""
# In place of the function that transformers gives to templates, which takes no other one.
_STRFTIME = "".join(
    [
        "{% macro strftime_now(format) %}{{ format",
        *(f" | replace('%{code}', '{TODAY.strftime(f'%{code}')}')" for code in "aAbBdmyYHIMSpj"),
        " }}{% endmacro +%}",
    ]
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


Scheme = Literal["always", "first"]

_SENTENCES = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


_JINJA = r"""
{% set found = namespace(images=0) %}
{% for m in messages if m['content'] is not string %}
{% for c in m['content'] if c['type'] == 'image' %}{% set found.images = found.images + 1 %}{% endfor %}
{% endfor %}
{% set several = several_images | default(found.images > 1) %}
{% macro content(m) %}
{% if m['content'] is string %}{{ m['content'] }}{% else %}
{% set led = namespace(by=true) %}
{% for c in m['content'] %}
{% if c['type'] == 'text' %}{{ c['text'] }}{% set led.by = false %}
{% elif c['type'] == 'image' and several %}<image>{% if led.by and not loop.last %}{{ "\n" }}{% endif %}
{% endif %}
{% endfor %}
{% endif %}
{% endmacro %}
{% macro question(m) %}
{% set text = content(m) if $questions else '' %}
{% if m['content'] is not string and not (several and $questions) %}
{% for c in m['content'] if c['type'] == 'image' %}
<image>{% if $questions and (text or not loop.last) %}{{ "\n" }}{% endif %}
{% endfor %}
{% endif %}
{{ text }}
{% endmacro %}
{{ $opening }}
{% for m in messages %}
{% if m['role'] == 'user' %}
{% if not loop.first %}{{ $next_question }}{% endif %}{{ question(m) }}{{ $question_end }}
{% elif m['role'] == 'assistant' %}
{{ $answer_prefix }}{{ content(m) }}{{ $answer_end }}
{% else %}
{{ raise_exception('only user and assistant turns') }}
{% endif %}
{% endfor %}
"""
"""Several images stand in their places, those that a message begins with on lines of their own; a single one before its
question. `several_images` tells a part of a conversation which of the two the whole has."""


@dataclass(frozen=True)
class Template:
    """opening Q question_end lead A answer_end [next_question Q question_end lead A answer_end …], special tokens
    written out. Trained are lead, A and answer_end; at inference the model continues after question_end."""

    opening: str
    question_end: str
    answer_prefix: str
    answer_end: str
    next_question: str
    questions: bool = True
    """False: of a question only its image stands (LLaVA's `plain`)."""

    def jinja(self) -> str:
        """The same as a chat template in Jinja, for transformers' processors."""
        literals = {name: json.dumps(value) for name, value in vars(self).items()}
        return string.Template("".join(map(str.strip, _JINJA.splitlines()))).substitute(literals)


def template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """`vicuna` (LLaVA's v1), `bare` (the same without its system message), `plain` (stage one) or `chat` (that of the
    tokenizer).

    Raises VlmixError if the tokenizer has no end token, or no chat template that lays turns out one after the other.
    """
    if name == "plain":
        return Template("", "", "", "\n", "", questions=False)
    if name in ("vicuna", "bare"):
        if tokenizer.eos_token is None:
            raise VlmixError(f"the tokenizer has no end token, which the {name} template closes answers with")
        system = f"{VICUNA} " if name == "vicuna" else ""
        return Template(f"{system}USER: ", " ASSISTANT:", " ", str(tokenizer.eos_token), "USER: ")
    return _chat(tokenizer)


def _chat(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The LM's own layout. An LM that can think is asked not to: each answer follows what its template puts there for
    that, such as an empty thought."""
    if not tokenizer.chat_template:
        raise VlmixError("the LM's tokenizer has no chat template; take `template: vicuna`")
    marks = [f"\ue000{i}\ue001" for i in range(4)]  # private characters, which no template writes by itself
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks)]
    rest, parts = _laid_out(tokenizer, turns), []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        parts.append(before)
        if not found:
            raise VlmixError("the LM's chat template does not show every turn; take `template: vicuna`")
    opening, between = parts[0], parts[2]
    asked = _laid_out(tokenizer, turns[:1], add_generation_prompt=True)
    thinking = _laid_out(tokenizer, turns[:1], add_generation_prompt=True, enable_thinking=True)
    begun, _, question_end = asked.partition(marks[0])
    thinking_end = thinking.partition(marks[0])[2]

    def may_stand(part: str) -> bool:
        # Qwen3's shows the empty thought of the last answer alone. In training every answer is one that is asked for.
        without = thinking_end != question_end and thinking_end.startswith(part) and question_end.startswith(part)
        return part == question_end or without

    if begun != opening or not may_stand(parts[1]) or not may_stand(parts[3]):
        raise VlmixError("the LM's chat template changes with what follows a turn; take `template: vicuna`")
    closing = [token for token in tokenizer.all_special_tokens if between.startswith(token)]
    if not closing:
        raise VlmixError("the LM's chat template does not close answers with a special token; take `template: vicuna`")
    end = max(closing, key=len)
    return Template(opening, question_end, "", end, between[len(end) :])


def _laid_out(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    *,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
) -> str:
    chat_template = tokenizer.get_chat_template()
    if "strftime_now" in chat_template:
        chat_template = _STRFTIME + chat_template
    return str(
        tokenizer.apply_chat_template(
            turns,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )
    )


class Encoded(NamedTuple):
    """Token ids [T] int64 and which of them are targets [T] bool."""

    ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]


class _Run(NamedTuple):
    """Text between special tokens, and the spans [start, end) of its characters that contribute to the loss."""

    text: str
    spans: list[tuple[int, int]]


class _Special(NamedTuple):
    """A special token; the image's stands for all of its tokens."""

    id: int
    trained: bool


_Piece = _Run | _Special


class Encoder:
    """Encodes conversations with one tokenizer and one template. May be pickled."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, layout: Template) -> None:
        if not tokenizer.is_fast:
            raise VlmixError("the tokenizer is not a fast one (tokenizer.json); vlmix needs the places of its tokens")
        self.layout = layout
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))
        self._special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if self._special.get(IMAGE) != self.image_id:
            raise VlmixError(f"the tokenizer has no special token {IMAGE}")
        probe = tokenizer("x")["input_ids"]
        begins = bool(probe) and probe[0] == tokenizer.bos_token_id
        # A chat template may write the begin token itself, as Llama 3's does.
        written = tokenizer.bos_token is not None and layout.opening.startswith(str(tokenizer.bos_token))
        self._begin = [probe[0]] if begins and not written else []
        plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True
        self._text = self._rest = plain
        splits = json.loads(plain.to_str())["pre_tokenizer"] or {}
        if splits.get("prepend_scheme") == "first":
            # Each run is tokenized by itself, so the first of its prompt has to be distinguished from the others.
            self._rest = Tokenizer.from_str(plain.to_str())
            self._rest.encode_special_tokens = True
            self._rest.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=splits["split"])

    def encode(self, values: Sequence[str], image_tokens: Sequence[int]) -> Encoded:
        """One conversation: its texts, questions and answers alternating, and how many tokens each of its images takes.

        One image stands once, before the first question that names it, as LLaVA moves it, or the first of all. Two or
        more stay where the texts name them. Raises VlmixError where the texts name more than there are.
        """
        return self.encode_many([values], [image_tokens])[0]

    def encode_many(
        self, conversations: Sequence[Sequence[str]], image_tokens: Sequence[Sequence[int]]
    ) -> list[Encoded]:
        """Many conversations, tokenized in parallel."""
        laid = [self._lay(values, len(tokens)) for values, tokens in zip(conversations, image_tokens)]
        first = [piece.text for pieces in laid for piece in pieces[:1] if isinstance(piece, _Run)]
        rest = [piece.text for pieces in laid for piece in pieces[1:] if isinstance(piece, _Run)]
        firsts = iter(self._text.encode_batch(first, add_special_tokens=False))
        rests = iter(self._rest.encode_batch(rest, add_special_tokens=False))
        return [self._assemble(pieces, firsts, rests, tokens) for pieces, tokens in zip(laid, image_tokens)]

    def _assemble(self, pieces: list[_Piece], firsts: Any, rests: Any, image_tokens: Sequence[int]) -> Encoded:
        ids: list[int] = list(self._begin)
        trained: list[bool] = [False] * len(ids)
        images = iter(image_tokens)
        for number, piece in enumerate(pieces):
            if isinstance(piece, _Run):
                run = next(rests if number else firsts)
                ids += run.ids
                trained += _inside(run.offsets, piece.spans)
            else:
                times = next(images, 0) if piece.id == self.image_id else 1
                ids += [piece.id] * times
                trained += [piece.trained] * times
        return Encoded(np.array(ids, dtype=np.int64), np.array(trained, dtype=np.bool_))

    def _lay(self, values: Sequence[str], images: int) -> list[_Piece]:
        layout, pieces = self.layout, _Pieces(self._special)
        pieces.literal(layout.opening)
        for i, parts in enumerate(_around_images(values, images)):
            asks = i % 2 == 0
            trained = not asks and not is_blank("".join(parts))  # an empty answer would teach silence
            if asks and i:
                pieces.literal(layout.next_question)
            for number, part in enumerate(parts):
                if number:
                    pieces.done.append(_Special(self.image_id, trained=False))
                elif not asks:
                    pieces.text(layout.answer_prefix, trained)
                if layout.questions or not asks:
                    pieces.text(part, trained)
            pieces.literal(layout.question_end if asks else layout.answer_end, trained)
        return pieces.done


def _around_images(values: Sequence[str], images: int) -> list[list[str]]:
    """The texts, each in the parts that its images leave of it."""
    if images > 1:
        found = [value.split(IMAGE) for value in tokens_in_place(list(values), images)]
        if (named := sum(map(len, found)) - len(found)) > images:
            raise VlmixError(f"a text names {named} images, its sample has {images}: {abridged(values[0], 60)!r}")
        return found
    # An image stands once, however often the text names it: there is one set of features for it.
    at = next((i for i in range(0, len(values), 2) if IMAGE in values[i]), 0) if images else -1
    found = []
    for i, value in enumerate(values):
        if images and i % 2 == 0 and IMAGE in value:
            value = value.replace(IMAGE, "").strip()
        found.append(["", f"\n{value}" if value else ""] if i == at else [value])
    return found


class _Pieces:
    """Pieces in the making: neighbouring texts become one run."""

    def __init__(self, special: dict[str, int]) -> None:
        self.special, self.done = special, list[_Piece]()

    def text(self, text: str, trained: bool = False) -> None:
        if not text:
            return
        if not self.done or not isinstance(self.done[-1], _Run):
            self.done.append(_Run("", []))
        last = self.done[-1]
        assert isinstance(last, _Run)
        span = [(len(last.text), len(last.text) + len(text))] if trained else []
        self.done[-1] = _Run(last.text + text, last.spans + span)

    def literal(self, text: str, trained: bool = False) -> None:
        """A part of the template, whose special tokens are meant as such."""
        while text:
            found = [(text.find(token), -len(token), token) for token in self.special if token in text]
            at, _, token = min(found, default=(len(text), 0, ""))
            self.text(text[:at], trained)
            if token:
                self.done.append(_Special(self.special[token], trained))
            text = text[at + len(token) :]


def _inside(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """Which tokens begin inside one of the spans, which stand in order. A token of no characters, such as a byte
    after the first of its character, goes with where it stands."""
    if not spans:
        return [False] * len(offsets)
    starts = np.array([start for start, _ in offsets], dtype=np.int64)
    edges = np.array(spans, dtype=np.int64).reshape(-1)
    inside: list[bool] = (np.searchsorted(edges, starts, side="right") % 2 == 1).tolist()
    return inside


def with_prefix(tokenizer: PreTrainedTokenizerBase, scheme: Scheme | None) -> PreTrainedTokenizerBase:
    """A tokenizer of Llama's SentencePiece kind, with the blank that it puts before text put where `scheme` says:
    before every run of text between special tokens ("always"), before the first of a prompt alone ("first"), or where
    it puts it already (None). Any other tokenizer comes back as it is.

    It comes back as a plain fast tokenizer, whose files say all: transformers' LlamaTokenizer builds its own anew when
    it is read back, by flags that do not survive being saved.
    """
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    splits = plain["pre_tokenizer"]
    sentences = plain["normalizer"] == _SENTENCES and splits is None
    if not sentences and not (splits and splits["type"] == "Metaspace" and splits["prepend_scheme"] != "never"):
        return tokenizer
    whole = sentences or (not splits["split"] and plain["normalizer"] is None)
    if scheme is None:
        pass
    elif scheme == "always" and whole:
        # Unlike Metaspace's, this blank stands also before text that begins with one, as SentencePiece's does.
        plain["normalizer"], plain["pre_tokenizer"] = _SENTENCES, None
    else:
        plain["normalizer"] = None if sentences else plain["normalizer"]
        plain["pre_tokenizer"] = {**_METASPACE, **(splits or {}), "prepend_scheme": scheme}
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)),
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        chat_template=tokenizer.chat_template,
        extra_special_tokens=[str(token) for token in tokenizer.extra_special_tokens],
        **named,
    )


def question_text(processor: Any, values: Sequence[str], images: int) -> str:
    """The prompt of a conversation that ends in a question, by a processor's chat template. One image stands in the
    first question, two or more where the texts name them."""
    turns = []
    for i, value in enumerate(tokens_in_place(list(values), images) if images > 1 else values):
        content = blocks(value) if images > 1 else [{"type": "text", "text": value}]
        shown = [{"type": "image"}] if images == 1 and not i else []
        turns.append({"role": "assistant" if i % 2 else "user", "content": [*shown, *content]})
    return str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def blocks(text: str) -> list[dict[str, str]]:
    """A text with image tokens in their places as the content of a chat message. An image that it begins with stands
    for a token and a newline; an empty text keeps them apart where there is none."""
    content: list[dict[str, str]] = []
    while text.startswith(f"{IMAGE}\n"):
        content.append({"type": "image"})
        text = text.removeprefix(f"{IMAGE}\n")
    for number, part in enumerate(text.split(IMAGE)):
        content += [{"type": "image"}] if number else []
        content += [{"type": "text", "text": part}] if part or (not number and text != IMAGE) else []
    return content


def adds_begin(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether the tokenizer may add its begin token to a prompt: it must not get a second one."""
    return not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token))


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes `<image>` a special token of the tokenizer, and gives it a padding token if it has none."""
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def train_tokenizer(texts: Any, size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `size` tokens, trained on an iterable of texts. Same texts, same tokenizer."""
    from tokenizers import decoders, models, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
