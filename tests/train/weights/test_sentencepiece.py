"""LMs with Llama's kind of tokenizer: cut as SentencePiece cuts, trained as LLaVA trains, asked as trained."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer  # noqa: E402

from tests.train.nano import NANO, nano  # noqa: E402
from tests.train.test_export import make  # noqa: E402
from vlmix.mixture.errors import VlmixError  # noqa: E402
from vlmix.train import export  # noqa: E402
from vlmix.train.tokens import VICUNA, Encoder, add_image_token, adds_begin, question_text, template, with_prefix  # noqa: E402
from vlmix.train.weights.pretrained import load_tokenizer  # noqa: E402

TEXTS = [
    "What  is  in   the image?",
    "def f(x):\n    if x:\n\t\treturn x\n        return  0",
    "  two before, one after ",
    "½ é 漢字 😀👩‍🚀 ▁ \r\n\r\n",
    "USER: a cat ASSISTANT: </s> <image> [INST]",
    "",
    " ",
    "          ten",
]
ROWS = [
    (["<image>\nWhat color is the cat?\nAnswer the question using a single word or phrase.", "red"], True),
    (["What  color is\n    the cat?\n<image>", " The cat is red.", "And the user?", "curious\n\tand polite  "], True),
    (["Who are you?", "An assistant. 😀", "USER: what?", "x"], False),
    (["<image>", "A cat."], True),
]


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, bytes) of a protobuf message's fields, all of which are byte strings here."""

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value, at

    at = 0
    while at < len(data):
        tag, at = number(at)
        size, at = number(at)
        yield tag, data[at : at + size]
        at += size


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with tokenizer.model alone. As in Llama's, runs of blanks have low ids and the lowest scores."""
    folder = tmp_path_factory.mktemp("lm")
    corpus = [VICUNA, "USER: What color is the cat? ASSISTANT: The image is red", "    return  x", *TEXTS[:3]] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    path = folder / "tokenizer.model"
    fields = list(records(path.read_bytes()))
    pieces = [data for tag, data in fields if tag == 0x0A]

    def blanks(data: bytes) -> bool:
        text = next(value for tag, value in records(data[:-5]) if tag == 0x0A).decode()
        return len(text) > 1 and not text.strip("▁")

    normal = pieces[259:]
    low = [
        data[: data.rindex(b"\x15")] + b"\x15" + struct.pack("<f", -1e9 - i)
        for i, data in enumerate(normal)
        if blanks(data)
    ]
    assert low
    pieces = [*pieces[:259], *low, *(data for data in normal if not blanks(data))]

    def field(tag: int, data: bytes) -> bytes:
        size, out = len(data), bytes([tag])
        while size > 127:
            out, size = out + bytes([size & 127 | 128]), size >> 7
        return out + bytes([size]) + data

    rest = [(tag, data) for tag, data in fields if tag != 0x0A]
    path.write_bytes(b"".join(field(0x0A, data) for data in pieces) + b"".join(field(tag, data) for tag, data in rest))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {**NANO["model"]["lm"], "vocab_size": 420, "tie_word_embeddings": False}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    return folder


def oracle(lm: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(lm / "tokenizer.model"))


def test_a_model_file_alone_is_cut_as_sentencepiece_cuts_it(lm: Path) -> None:
    tokenizer, model = load_tokenizer(str(lm)), oracle(lm)
    for text in TEXTS[:4] + TEXTS[5:]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.encode(text), text
        assert tokenizer.decode(model.encode(text), skip_special_tokens=True) == model.decode(model.encode(text))
    assert tokenizer("a")["input_ids"][0] == model.bos_id()
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("<s>", "</s>", 4096)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([VICUNA] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="unigram",
        vocab_size=44,
        minloglevel=2,
    )
    with pytest.raises(VlmixError, match="not a BPE model of Llama's kind"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(VlmixError, match="not a SentencePiece model"):
        load_tokenizer(str(tmp_path))


def llavas(model: Any, values: list[str], image: bool) -> tuple[list[int], list[int]]:
    """Ids and labels of LLaVA 1.5, written from its description: the image goes to the front of its question, the
    whole prompt is cut at `<image>` and each part tokenized by itself; in every round as many
    tokens are masked as its instruction has, which leaves the answer and `</s>`. -200 stands for the image, -100 for
    what is masked.

    Text between special tokens goes to SentencePiece by itself, as the slow tokenizer of transformers 4.31 sends it.
    """
    turns = []
    for value in values:
        if image and "<image>" in value:
            value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
        turns.append(value)
    prompt = VICUNA + " "
    for question, answer in zip(turns[::2], turns[1::2]):
        prompt += f"USER: {question} ASSISTANT: {answer}</s>"

    def tokens(text: str) -> list[int]:
        out: list[int] = [model.bos_id()]
        for number, chunk in enumerate(text.split("<image>") if image else [text]):
            out += [-200] * bool(number)
            for place, run in enumerate(chunk.split("</s>")):
                out += [model.eos_id()] * bool(place)
                out += model.encode(run) if run else []
        return out

    ids = tokens(prompt)
    labels = list(ids)
    labels[0] = -100
    at = 1
    for round_ in prompt.split("</s>")[:-1]:
        whole = len(tokens(round_ + "</s>")) - 1
        instruction = len(tokens(round_.split(" ASSISTANT: ")[0] + " ASSISTANT: ")) - 2
        labels[at : at + instruction] = [-100] * instruction
        at += whole
    return ids, labels


@pytest.fixture
def real_rows(real: Path) -> list[tuple[list[str], bool]]:
    with (real / "mix665k" / "examples.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row.get("record", row) for row in rows]
    return [([turn["value"] for turn in row["conversations"]], "image" in row) for row in rows]


def check_rows(lm: Path, rows: list[tuple[list[str], bool]]) -> int:
    tokenizer, model = with_prefix(load_tokenizer(str(lm)), "always"), oracle(lm)
    add_image_token(tokenizer)
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    for values, image in rows:
        ids, labels = llavas(model, values, image)
        found = encoder.encode(values, [1] * image)
        assert [-200 if i == encoder.image_id else i for i in found.ids.tolist()] == ids, values
        assert found.loss_mask.tolist() == [label != -100 for label in labels], values
    return len(rows)


def test_ids_and_labels_are_llavas(lm: Path) -> None:
    assert check_rows(lm, ROWS) == 4


def test_ids_and_labels_are_llavas_on_real_rows(lm: Path, real_rows: list[tuple[list[str], bool]]) -> None:
    plain = [
        (values, image)
        for values, image in real_rows
        # what LLaVA's own search for markers goes wrong on, or leaves untrained
        if all(values) and not any(mark in value for value in values for mark in ("</s>", " ASSISTANT: "))
    ]
    assert check_rows(lm, plain) > 20


FORMS = {
    "model alone": None,
    "fast, not legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": False},
    "fast, legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": True},
    "fast, unsaid": {"tokenizer_class": "LlamaTokenizerFast"},
    "plain fast": {"tokenizer_class": "PreTrainedTokenizerFast"},
}


def in_form(lm: Path, folder: Path, form: dict[str, Any] | None) -> Path:
    folder.mkdir()
    for path in lm.iterdir():
        if form is None or not path.name.startswith("tokenizer"):
            (folder / path.name).write_bytes(path.read_bytes())
    if form is not None:
        load_tokenizer(str(lm)).backend_tokenizer.save(str(folder / "tokenizer.json"))
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps({**form, **named}))
    return folder


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_asked_with_the_tokens_it_was_trained_on(lm: Path, tmp_path: Path, form: str, scheme: str) -> None:
    folder = in_form(lm, tmp_path / "lm", FORMS[form])
    recipe = nano(model={"lm": str(folder), "tokenizer": None, "prepend_scheme": scheme})
    made = make(tmp_path, recipe)
    assert made.write() is not None
    processor, encoder = AutoProcessor.from_pretrained(made.folder), made.encoder
    made.tokenizer.save_pretrained(tmp_path / "again")
    again = Encoder(AutoTokenizer.from_pretrained(tmp_path / "again"), made.layout)
    seen = set()
    for values, image in ROWS:
        for end in range(1, len(values) + 1, 2):
            asked = [value.replace("<image>", "").strip() if "<image>" in value else value for value in values[:end]]
            ids = encoder.encode(values[:end], [1] * image).ids.tolist()
            prompt = question_text(processor, asked, image)
            assert processor.tokenizer(prompt)["input_ids"] == ids, prompt
            assert again.encode(values[:end], [1] * image).ids.tolist() == ids
            seen.add("</s>" in prompt)
            if scheme == "always":
                theirs = llavas(oracle(lm), [*values[:end], "x"], image)[0][: len(ids)]
                assert [-200 if i == encoder.image_id else i for i in ids] == theirs
    assert seen == {False, True}
    runs = processor.tokenizer("x</s>USER:", add_special_tokens=False)["input_ids"]
    after = processor.tokenizer.convert_ids_to_tokens(runs[runs.index(2) + 1])
    assert after.startswith("▁") == (scheme == "always")


def test_an_export_that_is_asked_otherwise_is_refused(lm: Path, tmp_path: Path, monkeypatch: Any) -> None:
    made = make(tmp_path, nano(model={"lm": str(lm), "tokenizer": None}))
    write = export._write_tokenizer

    def other(folder: Path, tokenizer: Any, layout: Any) -> None:
        write(folder, with_prefix(tokenizer, "first"), layout)

    monkeypatch.setattr(export, "_write_tokenizer", other)
    with pytest.raises(VlmixError, match="other tokens"):
        made.write()
    assert not made.folder.exists()


def test_empty_answers_teach_nothing(lm: Path) -> None:
    tokenizer = load_tokenizer(str(lm))
    add_image_token(tokenizer)
    for name in ("vicuna", "bare", "plain"):
        encoder = Encoder(tokenizer, template(name, tokenizer))
        assert not encoder.encode(["<image>\nWhat?", ""], [1]).loss_mask.any()
        assert not encoder.encode(["<image>\nWhat?", " \u200b"], [1]).loss_mask.any()
    found = Encoder(tokenizer, template("vicuna", tokenizer)).encode(["What?", "", "And?", "red"], [])
    assert tokenizer.decode(found.ids[found.loss_mask]) == "red</s>"


def test_prompts_that_write_their_begin_token_get_no_second(lm: Path) -> None:
    tokenizer = load_tokenizer(str(lm))
    assert not adds_begin(tokenizer, "<s>USER: x")
    assert adds_begin(tokenizer, "USER: x")
