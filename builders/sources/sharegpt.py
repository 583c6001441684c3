"""ShareGPT: text-only chats (huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered).

The three steps are FastChat's: clean, drop what is no conversation, split at 2,048 tokens; of the splits only the first
is kept, as LLaVA-1.5 did ("truncated rather than splitting").
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.json_pieces import Share
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.io.tokenizer import TokenCounter
from vlmix.mixture.record import Conversation, Round, is_blank

_DUMPS = {
    "v3": ("ShareGPT_V3_unfiltered_cleaned_split.json",),
    "v3_no_imsorry": ("ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json",),
    "sg_90k": ("sg_90k_part1_html_cleaned.json", "sg_90k_part2_html_cleaned.json"),
}
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "chatgpt": "gpt", "bing": "gpt", "bard": "gpt"}
_CHUNK = re.compile(r"_(\d+)$")
_HTML = '<div class="markdown'
_TOKENS_PER_TURN = 6  # FastChat's allowance for role and separators

# What the site's buttons leave in copied text; FastChat removes the same, but also every "3 / 4" inside a sentence.
# Each with words that it cannot do without: to look for them takes a tenth of the time.
_RESIDUE = (
    ("Copy code", re.compile(r"```([\w+#-]*)Copy code"), r"```\1\n"),
    (" chars / ", re.compile(r"Copy\d+ chars / \d+ words"), ""),
    (" / ", re.compile(r"^[ \t]*\d+ / \d+[ \t]*$", re.MULTILINE), ""),
    ("Share Prompt", re.compile(r"Share Prompt$"), ""),
)


class ShareGptOptions(Options, frozen=True, kw_only=True):
    dump: Annotated[
        Literal["v3", "v3_no_imsorry", "sg_90k"],
        Meta(description="which public dump; the one that LLaVA started from is unknown"),
    ] = "v3"
    max_tokens: Annotated[
        int, Meta(ge=1, description="tokens of a chat; it is cut before the pair that exceeds them")
    ] = 2048
    tokenizer: Annotated[
        str | None,
        Meta(description="a Hugging Face tokenizer.json to count tokens with (Llama's for LLaVA); else an estimate"),
    ] = None
    clean: Annotated[
        bool, Meta(description="remove what the site's buttons left in the text ('Copy code', '1 / 1')")
    ] = True


class Chat(Struct):
    id: str
    conversations: list[dict[str, Any]]
    model: str | None = None


def read(raw: RawFolder, options: ShareGptOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """The first chunk of each chat that begins with a question and whose roles alternate."""
    count = _counter(raw, options.tokenizer)
    for name in _DUMPS[options.dump]:
        for chat in raw.elements(raw.require(name), Chat, raw.share):
            identity = f"sharegpt/{chat.id}"
            try:
                texts = _pairs(chat, options)
                texts = texts[: _cut(texts, count, options.max_tokens)]
            except _Unfit as unfit:
                # Whole chats stay out of the rejects: they are long, in the raw file, and may hold personal data.
                reject(identity, *unfit.why)
                continue
            chunk = chat.id if _CHUNK.search(chat.id) else f"{chat.id}_0"
            yield Conversation(
                id=f"sharegpt/{chunk}",
                source="sharegpt",
                rounds=tuple(Round(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)),
                extra=json.dumps({"id": chunk, "model": chat.model or "", "conversations": None}),
            )


class _Unfit(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.why = reason, detail


def _pairs(chat: Chat, options: ShareGptOptions) -> list[str]:
    """The texts of a chat, questions and answers alternating. Raises _Unfit if they do not."""
    if (chunk := _CHUNK.search(chat.id)) and int(chunk[1]) > 0:
        raise _Unfit("continuation", "a later chunk of a chat; only the first is used")
    turns = []
    for number, turn in enumerate(chat.conversations):
        role, text = turn.get("from"), turn.get("value")
        if role != "system" and not (isinstance(role, str) and role in _ROLES):
            raise _Unfit("unknown_role", f"turn {number} is from {role!r}")
        if not isinstance(text, str):
            raise _Unfit("bad_turn", f"turn {number} has no text in `value`")
        if _HTML in text:
            raise _Unfit("html", "raw HTML; use the html_cleaned files of the release")
        turns.append((_ROLES.get(role, "system"), _cleaned(text) if options.clean else text))
    while turns and turns[0][0] != "human":
        turns.pop(0)
    if turns and turns[-1][0] == "human":
        turns.pop()
    if len(turns) < 2:
        raise _Unfit("too_short", "no question with an answer")
    for number, (role, text) in enumerate(turns):
        if role != ("human", "gpt")[number % 2]:
            raise _Unfit("role_order", f"turn {number} of the conversation is from {role!r}")
        if is_blank(text):
            raise _Unfit("empty_text", f"turn {number} of the conversation shows nothing")
    return [text for _, text in turns]


def _cut(texts: list[str], count: Callable[[str], int], most: int) -> int:
    """How many of `texts` stand before the pair with which their tokens exceed `most`."""
    total = 0
    for start in range(0, len(texts), 2):
        total += sum(count(text) + _TOKENS_PER_TURN for text in texts[start : start + 2])
        if total > most:
            if start == 0:
                raise _Unfit("too_long", f"the first question and answer have {total} tokens, at most {most} are kept")
            return start
    return len(texts)


def _cleaned(text: str) -> str:
    for words, pattern, replacement in _RESIDUE:
        if words in text:
            text = pattern.sub(replacement, text)
    return text


def estimate_tokens(text: str) -> int:
    """Roughly the number of Llama's tokens: one per 3.6 ASCII characters, 1.5 per other character."""
    ascii_count = len(text.encode("ascii", "ignore"))
    return math.ceil(ascii_count / 3.6 + 1.5 * (len(text) - ascii_count))


def split(raw: RawFolder, options: ShareGptOptions, name: str) -> Sequence[Share | None]:
    """A dump of one file in shares."""
    names = _DUMPS[options.dump]
    return raw.shares(*names) if len(names) == 1 else (None,)


def _counter(raw: RawFolder, tokenizer: str | None) -> Callable[[str], int]:
    if tokenizer is None:
        return estimate_tokens
    counter = TokenCounter(tokenizer)
    if counter.path is not None:
        raw.opened.append(counter.path)
    return lambda text: counter([text])


SOURCE = Source(
    name="sharegpt",
    title="ShareGPT",
    homepage="https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered",
    license="card says Apache-2.0; the chats are their writers', may hold personal data",
    response_formats=("free",),
    files=(
        RawFile("ShareGPT_V3_unfiltered_cleaned_split.json", "chats, split"),
        RawFile("ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json", "`dump: v3_no_imsorry`", optional=True),
        RawFile("sg_90k_part{1,2}_html_cleaned.json", "`dump: sg_90k`: chats, whole", optional=True),
    ),
    read=read,
    split=split,
    options=ShareGptOptions,
)
