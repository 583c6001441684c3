"""What a builder itself gets wrong is an error, not a reject and not a sample."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmix.mixture.build.extract import conversations
from vlmix.mixture.build.source import Options, Source
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.record import Conversation, Round

SOURCE = Source(
    name="plants",
    title="Plants",
    homepage="https://example.org",
    license="CC BY 4.0",
    response_formats=("short_answer",),
    files=(),
    read=lambda *_: iter(()),
    parts={"ferns": ("CC0", "")},
)


def offered(tmp_path: Path, **changes: Any) -> list[Conversation]:
    talk = Conversation(
        id="plants/7",
        source=changes.get("source", "plants"),
        rounds=(Round("What?", "Fern", changes.get("format", "short_answer")),),
        image_at=changes.get("image_at", "front"),
    )
    return list(conversations(replace(SOURCE, read=lambda *_: iter([talk])), Options(), tmp_path, name="mine")[0])


@pytest.mark.parametrize(
    ("changes", "near"),
    [({"format": "shortanswer"}, "short_answer"), ({"source": "plant"}, "plants"), ({"image_at": "frnt"}, "front")],
)
def test_a_misspelt_word_of_the_contract_names_builder_record_and_nearest(
    tmp_path: Path, changes: dict[str, Any], near: str
) -> None:
    (wrong,) = changes.values()
    message = f"builder plants: plants/7: .*'{wrong}'; did you mean '{near}'"
    with pytest.raises(VlmixError, match=message):
        offered(tmp_path, **changes)


@pytest.mark.parametrize("label", ["plants", "ferns"])
def test_declared_labels_pass(tmp_path: Path, label: str) -> None:
    assert [talk.source for talk in offered(tmp_path, source=label)] == [label]


@pytest.mark.parametrize("label", ["mine", ["plants"]])
def test_other_labels_do_not(tmp_path: Path, label: Any) -> None:
    """The entry's name is a label of a collection's rows alone."""
    with pytest.raises(VlmixError, match="there is no source"):
        offered(tmp_path, source=label)
