import pytest

from vlmix.mixture.boxes import square_text
from vlmix.mixture.record import Conversation, ImageRef, Round, defect
from vlmix.mixture.render import count_words, render

SHORT = "Answer the question using a single word or phrase."


def conversation(*rounds: Round, **more: object) -> Conversation:
    return Conversation(id="x/1", source="x", images=(ImageRef("a.jpg", 640, 480),), rounds=rounds, **more)


def test_the_format_prompt_stands_on_the_first_turn_only() -> None:
    talk = conversation(Round("Why?", "Because", "short_answer"), Round("Who?", "He", "short_answer"))
    assert render(talk) == [f"<image>\nWhy?\n{SHORT}", "Because", "Who?", "He"]
    assert render(talk, "plain") == ["<image>\nWhy?", "Because", "Who?", "He"]
    assert render(talk, "instructblip") == [
        "<image>\nQuestion: Why? Short answer:",
        "Because",
        "Question: Who? Short answer:",
        "He",
    ]


def test_choices_keep_their_lines_in_every_turn_and_their_prompt_in_the_first() -> None:
    choice = Round("Which?", "b", "choice", choices=("a", "b", "b", "c"), correct=2)
    letter = "Answer with the option's letter from the given choices directly."
    assert render(conversation(choice, choice)) == [
        f"<image>\nWhich?\nA. a\nB. b\nC. b\nD. c\n{letter}",
        "C",
        "Which?\nA. a\nB. b\nC. b\nD. c",
        "C",
    ]
    assert render(conversation(choice), "plain") == ["<image>\nWhich?\nA. a\nB. b\nC. b\nD. c", "C"]
    assert render(conversation(choice), "instructblip")[1] == "b"


@pytest.mark.parametrize(
    ("tokens", "line"),
    [(("a", "b", "a"), "\nReference OCR token: a, b, a"), ((), "\nReference OCR token: "), (None, "")],
)
def test_the_ocr_line_is_there_without_tokens_and_gone_without_ocr(tokens: tuple[str, ...] | None, line: str) -> None:
    caption = Round("", "A sign.", "caption", ocr_tokens=tokens)
    assert render(conversation(caption))[0] == f"<image>\nProvide a one-sentence caption for the provided image.{line}"


def test_a_prompt_that_the_source_brings_along_is_kept() -> None:
    assert render(conversation(Round("Say it.", "a cat", "caption"), image_at="back")) == [
        "Say it.\n<image>",
        "a cat",
    ]


def test_regions_in_both_directions() -> None:
    box = (0.0, 0.0, 640.0, 80.0)
    there = conversation(Round("the sky", "", "grounding", boxes=(box,)))
    back = conversation(Round("", "The sky.", "region_caption", boxes=(box,)))
    text = "[0.0, 0.12, 1.0, 0.25]"
    prompt = "Please provide the bounding box coordinate of the region this sentence describes: the sky."
    assert render(there) == [f"<image>\n{prompt}", text]
    assert render(back) == [f"<image>\nPlease provide a short description for this region: {text}.", "The sky."]


@pytest.mark.parametrize(
    ("box", "size", "text"),
    [
        ((0, 0, 640, 480), (640, 480), "[0.0, 0.12, 1.0, 0.88]"),  # 80/640 and 560/640: halves go to even
        ((16, 0, 500, 375), (500, 375), "[0.03, 0.12, 1.0, 0.87]"),  # 62/500: the offset is an integer
        ((0, 0, 427, 640), (427, 640), "[0.17, 0.0, 0.83, 1.0]"),
        ((512, 0, 640, 128), (640, 640), "[0.8, 0.0, 1.0, 0.2]"),
        ((16, 16, 32, 32), (640, 640), "[0.03, 0.03, 0.05, 0.05]"),  # numpy.round says 0.02
    ],
)
def test_boxes_on_the_padded_square(box: tuple[float, ...], size: tuple[int, int], text: str) -> None:
    assert square_text(box, *size) == text


def test_text_only_conversations_get_no_image_token() -> None:
    talk = Conversation(id="x/1", source="x", rounds=(Round("Hi", "Hello"),))
    assert render(talk) == ["Hi", "Hello"]


def test_words_leave_the_image_token_out() -> None:
    assert count_words(["<image>\nWhat is this?", "A cat"]) == 5
    assert count_words(["What is this?\n<image>", "A cat"]) == 5


@pytest.mark.parametrize(
    ("qa", "code"),
    [
        (Round("Is <image> here?", "No"), "image_token"),
        (Round("Q", "\u200b"), "empty_text"),
        (Round("  ", "A", "short_answer"), "empty_text"),
        (Round("Q", "a", "choice", choices=("a",), correct=1), "bad_choice"),
        (Round("phrase", "", "grounding"), "no_box"),
    ],
)
def test_defects_are_named(qa: Round, code: str) -> None:
    found = defect(conversation(qa))
    assert found is not None and found[0] == code


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "a/../../b.jpg", "C:/x.jpg", "a\\b.jpg", "a\0.jpg"])
def test_paths_that_leave_the_root_are_refused(path: str) -> None:
    found = defect(Conversation(id="x/1", source="x", images=(ImageRef(path),), rounds=(Round("Q", "A"),)))
    assert found is not None and found[0] == "unsafe_path"


def test_a_box_needs_the_size_of_its_image() -> None:
    boxed = Conversation(
        id="x/1", source="x", images=(ImageRef("a.jpg"),), rounds=(Round("p", "", "grounding", boxes=((0, 0, 1, 1),)),)
    )
    found = defect(boxed)
    assert found is not None and found[0] == "no_image_size"
