"""How an answer becomes comparable: the normalisation of VQA's official evaluator, and m4c's (TextVQA, EvalAI).

Rules, word lists and oddities are those of GT-Vision-Lab/VQA `vqaEval.py` and of mmf's `EvalAIAnswerProcessor`, which
LLaVA uses for TextVQA and before it submits to VQAv2 and VizWiz.
"""

import re
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

# Not here: ' : . $ % & # *
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
# Written as a look-behind for a digit, `(?!<=\d)` forbids the letters "<=" and a digit where a full stop stands: it
# always holds. So "3.5" keeps its stop and ".5" too.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_AT_MOST_PERIODS = 32  # `sub("", text, re.UNICODE)` hands the flag over as the count
# Python 2's \d is ASCII; the evaluator of TextVQA came with Python 3.
_VQA_COMMA = re.compile(r"(\d)(\,)(\d)", re.ASCII)
_M4C_COMMA = re.compile(r"(?<=\d)(\,)+(?=\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}

# As in the official table, wrong entries included. Keys with a capital match nothing, because words are lower-cased
# first; "somebody'd" loses its apostrophe.
_CONTRACTION_TABLE = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't
havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've
I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am
mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've
neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at
shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't
shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd someoned've=someone'd've
someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd
somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's thered=there'd
thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've
we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's
whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's
whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've
y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're
youve=you've
"""
CONTRACTIONS = dict(pair.split("=") for pair in _CONTRACTION_TABLE.split())


def clean(text: str) -> str:
    """Line breaks and tabs made spaces, outer white space gone: what the official evaluator does to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa(text: str) -> str:
    """A cleaned answer as VQA's evaluator compares it where people disagreed: punctuation, full stops, case, number
    words, articles, contractions."""
    return _words(_punctuation(text, _VQA_COMMA))


def evalai(text: str) -> str:
    """An answer as TextVQA's evaluator compares it, and as LLaVA submits it: every "," and "?" goes first and "'s"
    becomes a word, so "it's" is "it 's"."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(clean(text), _M4C_COMMA))


def _punctuation(text: str, comma: re.Pattern[str]) -> str:
    """A mark that touches a space somewhere in `text` goes everywhere, and so do all marks if a comma stands between
    digits; any other becomes a space."""
    out, between_digits = text, comma.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            goes = between_digits or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", out, count=_AT_MOST_PERIODS) if "." in out else out


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(equal: int, count: int) -> float:
    """VQA accuracy, 0..1, of a prediction that `equal` of `count` people gave: each left out in turn, it is worth
    min(1, equal ones among the rest / 3), and the mean counts."""
    return (equal * min(3, equal - 1) + (count - equal) * min(3, equal)) / (3 * count)


class Memo(dict[str, Value], Generic[Value]):
    """text -> `function(text)`, each computed once: answers repeat, ten people and 200,000 questions share words."""

    def __init__(self, function: Callable[[str], Value]) -> None:
        self._function = function

    def __missing__(self, text: str) -> Value:
        found = self[text] = self._function(text)
        return found
