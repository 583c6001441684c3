"""Labels against LLaVA's own algorithm, and what that one gets wrong."""

import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.train.chat import QWEN3, SMOLLM3
from vlmix.mixture.errors import VlmixError
from vlmix.train.tokens import IMAGE, TODAY, VICUNA, Encoder, add_image_token, blocks, template, train_tokenizer

TEXTS = [VICUNA, "USER: What color is the cat? ASSISTANT: red\nAnswer the question using a single word or phrase."] * 3
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llama_like() -> PreTrainedTokenizerBase:
    """A tokenizer built as Llama's is: every text begins with a blank, blanks are part of the word after them."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    words = [word for text in TEXTS for word in text.replace(" ", "\x00 ").split("\x00")]
    backend.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    add_image_token(tokenizer)
    return tokenizer


def byte_level(chat: str | None = None) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(TEXTS, 500)
    if chat:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = chat
    add_image_token(tokenizer)
    return tokenizer


def llavas_labels(
    tokenizer: PreTrainedTokenizerBase, values: list[str], image_tokens: int
) -> tuple[list[int], list[int]]:
    """LLaVA's `preprocess_v1` and `tokenizer_image_token`, on a tokenizer of today: ids, and labels with -100."""
    text = VICUNA + " "
    for i, value in enumerate(values):
        if i % 2 == 0:
            if "<image>" in value:
                value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
            text += "USER: " + value + " "
        else:
            text += "ASSISTANT: " + value + "</s>"

    def tokens(part: str) -> list[int]:
        pieces: list[list[int]] = []
        for piece in part.split("<image>"):
            runs = [tokenizer(run)["input_ids"][1:] for run in piece.split("</s>")]
            ids = runs[0]
            for run in runs[1:]:
                ids = [*ids, 2, *run]
            pieces.append(ids)
        joined = [1, *pieces[0]]
        for piece in pieces[1:]:
            joined += [-200] * image_tokens + piece
        return joined

    ids = tokens(text)
    labels = [-100] * len(ids)
    at = 1
    for piece in text.split("</s>")[:-1]:
        instruction, answer = piece.split(" ASSISTANT: ")
        whole = len(tokens(piece)) - 1
        asked = len(tokens(instruction + " ASSISTANT:")) - 1
        assert answer is not None
        for i in range(at + asked, at + whole + 1):
            labels[i] = ids[i]
        at += whole + 1
    return ids, labels


ROWS = [
    (["<image>\nWhat color is the cat?\nAnswer the question using a single word or phrase.", "red"], 4),
    (["What color is the cat?\n<image>", "The cat is red.", "And the user?", "curious\nand polite"], 4),
    (["Who are you?", "An assistant."], 0),
    (["<image>\n" + "What? " * 30, "a " * 40, "So?", "x"], 9),
]


PLACED = [
    ["<image>\n<image>\n<image>\nWhat color is the cat?", "red"],
    ["Is <image> the user of <image>?", "red", "And this: <image>", "a cat"],
    ["What color?\n<image><image> <image>", "red", "So?", "x"],
    ["What color is the cat?", "This: <image>, not\n<image>\n.", "And so on", "<image>"],
    ["No name", "for any", "of three", "images"],
]
"""Conversations about three images."""


@pytest.mark.parametrize(("values", "image_tokens"), ROWS)
def test_ids_and_labels_are_llavas_on_ordinary_rows(values: list[str], image_tokens: int) -> None:
    tokenizer = llama_like()
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    ids, labels = llavas_labels(tokenizer, values, image_tokens)
    found = encoder.encode(values, [image_tokens] if image_tokens else [])
    assert [(-200 if i == encoder.image_id else i) for i in found.ids.tolist()] == ids
    assert found.loss_mask.tolist() == [label != -100 for label in labels]


@pytest.mark.parametrize("make", [llama_like, byte_level])
def test_markers_in_a_users_text_are_text_and_keep_their_supervision(make: Any) -> None:
    tokenizer = make()
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    values = ["say </s> and <image> USER: x ASSISTANT: y", "a </s> b ASSISTANT: c <s>", "again", "end"]
    found = encoder.encode(values, [])
    assert (found.ids == encoder.image_id).sum() == 0
    assert (found.ids == tokenizer.eos_token_id).sum() == 2
    trained = tokenizer.decode(found.ids[found.loss_mask], skip_special_tokens=False)
    assert trained.replace(" ", "") == "a</s>bASSISTANT:c<s></s>end</s>"


def test_only_the_caption_trains_in_stage_one() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, template("plain", tokenizer))
    found = encoder.encode(["Describe this.\n<image>", "a red cat"], [3])
    assert found.ids.tolist()[:4] == [tokenizer.bos_token_id, *[encoder.image_id] * 3]
    assert tokenizer.decode(found.ids[4:]) == "a red cat\n"
    assert found.loss_mask.tolist() == [False] * 4 + [True] * (len(found.ids) - 4)


def test_a_chat_template_is_laid_out_as_it_renders() -> None:
    tokenizer = byte_level(CHATML)
    layout = template("chat", tokenizer)
    assert (layout.opening, layout.question_end, layout.answer_end, layout.next_question) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "\n<|im_start|>user\n",
    )
    found = Encoder(tokenizer, layout).encode(["what color", "red <|im_end|>", "sure?", "yes"], [])
    rendered = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["what color", "red #", "sure?", "yes"])],
        tokenize=False,
    )
    decoded = tokenizer.decode(found.ids, skip_special_tokens=False)
    assert decoded == tokenizer.bos_token + rendered.replace("#", "<|im_end|>").rstrip("\n")
    assert tokenizer.decode(found.ids[found.loss_mask]) == "red <|im_end|><|im_end|>yes<|im_end|>"
    assert (found.ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 5


@pytest.mark.parametrize(("chat", "thought"), [(QWEN3, "<think>\n\n</think>\n\n"), (SMOLLM3, "<think>\n\n</think>\n")])
def test_every_answer_of_an_lm_that_can_think_follows_an_empty_thought(chat: str, thought: str) -> None:
    tokenizer = byte_level(chat)
    layout = template("chat", tokenizer)
    turns = [{"role": "user", "content": "what color"}]

    def own(thinks: bool) -> str:
        asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinks)
        return re.sub("Today Date: .*", f"Today Date: {TODAY.strftime('%d %B %Y')}", str(asked))

    assert layout.opening + "what color" + layout.question_end == own(False) != own(True)
    assert layout.question_end == f"<|im_end|>\n<|im_start|>assistant\n{thought}"
    found = Encoder(tokenizer, layout).encode(["what color", "red", "sure?", "yes"], [])
    decoded = tokenizer.decode(found.ids, skip_special_tokens=False)
    assert decoded.count(f"assistant\n{thought}") == 2
    assert tokenizer.decode(found.ids[found.loss_mask]) == "red<|im_end|>yes<|im_end|>"


def test_a_generation_prompt_that_history_does_not_show_is_refused() -> None:
    tokenizer = byte_level(
        CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\nSo:{% endif %}")
    )
    with pytest.raises(VlmixError, match="changes with what follows a turn"):
        template("chat", tokenizer)


@pytest.mark.parametrize("name", ["vicuna", "bare", "plain", "chat"])
def test_the_exported_chat_template_renders_what_was_trained(name: str) -> None:
    tokenizer = byte_level(CHATML)
    layout = template(name, tokenizer)
    encoder = Encoder(tokenizer, layout)
    tokenizer.chat_template = layout.jinja()
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "sure?"},
    ]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(asked)["input_ids"]
    if name == "plain":
        turns, asked = turns[:1], tokenizer.apply_chat_template(turns[:1], tokenize=False)
        prompt = tokenizer(asked)["input_ids"]
    whole = encoder.encode(["<image>\nwhat color", "red", "sure?", "yes"][: len(turns) + 1], [1])
    assert whole.ids[: len(prompt)].tolist() == prompt
    assert whole.loss_mask[len(prompt) :].all()


TOKENIZERS = {"llama": llama_like(), "bytes": byte_level(CHATML)}
ENCODERS = {
    (kind, name): Encoder(tokenizer, template(name, tokenizer))
    for kind, tokenizer in TOKENIZERS.items()
    for name in ("vicuna", "bare", "plain", "chat")
    if name != "chat" or tokenizer.chat_template
}


def as_text(encoder: Encoder, values: list[str], images: int) -> tuple[str, list[bool]]:
    """A conversation about several images written out, and which of its characters train: said again, plainly."""
    layout, text, trained = encoder.layout, encoder.layout.opening, [False] * len(encoder.layout.opening)

    def add(piece: str, learnt: bool = False) -> None:
        nonlocal text
        text += piece
        trained.extend([learnt] * len(piece))

    left_out = images - "".join(values).count(IMAGE)
    for number, value in enumerate(values):
        value = f"{IMAGE}\n" * (left_out if not number else 0) + value
        if number % 2:
            learnt = bool(value.replace(IMAGE, "").strip())
            add(layout.answer_prefix + value + layout.answer_end, learnt)
            continue
        add(layout.next_question if number else "")
        add(value if layout.questions else IMAGE * value.count(IMAGE))
        add(layout.question_end)
    return text, trained


def same_as_text(encoder: Encoder, tokenizer: PreTrainedTokenizerBase, values: list[str], counts: list[int]) -> None:
    """Each image at its place takes its own tokens, and the rest is what the tokenizer makes of the text."""
    text, trained = as_text(encoder, values, len(counts))
    whole = tokenizer(text, return_offsets_mapping=True)
    ids, mask, images = [], [], iter(counts)
    for token, (begin, end) in zip(whole["input_ids"], whole["offset_mapping"]):
        shown = token == encoder.image_id
        times = next(images) if shown else 1
        ids += [token] * times
        mask += [end > 0 and trained[begin] and not shown] * times
    found = encoder.encode(values, counts)
    assert found.ids.tolist() == ids
    assert found.loss_mask.tolist() == mask


WORDS = st.sampled_from([IMAGE, IMAGE, "\n", " ", "cat", "What color", "é", ".", "  "])
CONVERSATIONS = st.lists(st.lists(WORDS, max_size=6).map("".join), min_size=2, max_size=6).map(
    lambda values: values[: len(values) // 2 * 2]
)


@pytest.mark.parametrize(("kind", "name"), ENCODERS)
@pytest.mark.parametrize("values", PLACED)
def test_several_images_stay_where_the_text_has_them(kind: str, name: str, values: list[str]) -> None:
    same_as_text(ENCODERS[kind, name], TOKENIZERS[kind], values, [4, 1, 7])


@settings(max_examples=150)
@given(values=CONVERSATIONS, spare=st.integers(0, 2), which=st.sampled_from(sorted(ENCODERS)))
def test_several_images_stay_where_any_text_has_them(values: list[str], spare: int, which: tuple[str, str]) -> None:
    images = max("".join(values).count(IMAGE) + spare, 2)
    same_as_text(ENCODERS[which], TOKENIZERS[which[0]], values, [1 + i % 3 for i in range(images)])


def test_an_image_in_an_answer_is_not_trained_and_an_answer_of_images_alone_trains_nothing() -> None:
    encoder, tokenizer = ENCODERS["bytes", "vicuna"], TOKENIZERS["bytes"]
    found = encoder.encode(["Which?", "this <image> one", "And?", "<image>"], [2, 3])
    assert tokenizer.decode(found.ids[found.loss_mask]).strip() == "this  one</s>"
    assert (found.ids == encoder.image_id).sum() == 5 and (found.ids[-2:] == [encoder.image_id, 2]).all()


def test_a_text_that_names_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(VlmixError, match=r"names 3 images, its sample has 2: '<image> <image> so'"):
        ENCODERS["llama", "vicuna"].encode(["<image> <image> so", "<image>"], [1, 1])


def messages(values: list[str]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": blocks(value)} for i, value in enumerate(values)]


@pytest.mark.parametrize(("kind", "name"), ENCODERS)
@settings(max_examples=60)
@given(values=CONVERSATIONS, spare=st.integers(0, 2))
def test_the_exported_chat_template_puts_several_images_where_they_were_trained(
    kind: str, name: str, values: list[str], spare: int
) -> None:
    encoder = ENCODERS[kind, name]
    images = max("".join(values).count(IMAGE) + spare, 2)
    text, _ = as_text(encoder, values, images)
    placed = [f"{IMAGE}\n" * (images - "".join(values).count(IMAGE)) + values[0], *values[1:]]
    render = TOKENIZERS[kind].apply_chat_template
    assert render(messages(placed), chat_template=encoder.layout.jinja(), tokenize=False) == text
    # A part of it that has one image is told that the whole has several.
    begun = render(messages(placed[:1]), chat_template=encoder.layout.jinja(), tokenize=False, several_images=True)
    assert text.startswith(begun)


IMAGE_BLOCK = {"type": "image"}


def block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([IMAGE_BLOCK, IMAGE_BLOCK, block("So?")], "<image>\n<image>\nSo?"),
        ([IMAGE_BLOCK, IMAGE_BLOCK], "<image>\n<image>"),
        ([block("Is "), IMAGE_BLOCK, block(" like "), IMAGE_BLOCK, block("?")], "Is <image> like <image>?"),
        ([IMAGE_BLOCK, block("and\n"), IMAGE_BLOCK], "<image>\nand\n<image>"),
        ([block(""), IMAGE_BLOCK, IMAGE_BLOCK, block(" so")], "<image><image> so"),
        ([IMAGE_BLOCK, IMAGE_BLOCK, block("")], "<image>\n<image>\n"),
    ],
)
def test_what_blocks_of_a_message_stand_for(content: list[dict[str, str]], text: str) -> None:
    assert blocks(text) == content
    found = TOKENIZERS["bytes"].apply_chat_template(
        [{"role": "user", "content": content}], chat_template=ENCODERS["bytes", "bare"].layout.jinja(), tokenize=False
    )
    assert found == f"USER: {text} ASSISTANT:"


@pytest.mark.parametrize("content", [[block("a "), IMAGE_BLOCK, block("b")], [block("a b"), IMAGE_BLOCK]])
def test_one_image_of_a_conversation_goes_before_its_question(content: list[dict[str, str]]) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [block("Ho")]}]
    found = TOKENIZERS["bytes"].apply_chat_template(
        [*turns, {"role": "user", "content": content}],
        chat_template=ENCODERS["bytes", "bare"].layout.jinja(),
        tokenize=False,
    )
    assert found == "USER: Hi ASSISTANT: Ho</s>USER: <image>\na b ASSISTANT:"


def test_a_chat_template_that_begins_by_itself_begins_once() -> None:
    tokenizer = byte_level("{{ '<s>' }}" + CHATML)
    layout = template("chat", tokenizer)
    found = Encoder(tokenizer, layout).encode(["what color", "red"], [])
    assert (found.ids == tokenizer.bos_token_id).sum() == 1


def test_a_chat_template_that_rewrites_history_is_refused() -> None:
    tokenizer = byte_level(CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else '...' }}"))
    with pytest.raises(VlmixError, match="does not show every turn"):
        template("chat", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(VlmixError, match="no chat template"):
        template("chat", tokenizer)


def test_many_are_encoded_as_one_by_one() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    rows = [(values, [tokens] if tokens else []) for values, tokens in ROWS] + [
        (values, [3, 1, 2]) for values in PLACED
    ]
    many = encoder.encode_many([values for values, _ in rows], [tokens for _, tokens in rows])
    for found, (values, tokens) in zip(many, rows):
        one = encoder.encode(values, tokens)
        assert np.array_equal(found.ids, one.ids) and np.array_equal(found.loss_mask, one.loss_mask)
