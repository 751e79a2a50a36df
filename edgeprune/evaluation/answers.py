"""What the text of an answer says: the normalisations and extractions of the official evaluations."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGH"

_NUMBERS = {
    "none": "0",
    **{
        word: str(number)
        for number, word in enumerate(
            ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
        )
    },
}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The reference code hands a flag where a count belongs, so only so many full stops are removed.
_MOST_FULL_STOPS = 32

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock 'ow's'at oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
you're you've
""".split()  # noqa: SIM905 - a hundred quoted words are hard to read


def _spellings() -> dict[str, str]:
    """Words of which one apostrophe is left out, and the word as it should be."""
    found = {}
    for word in _CONTRACTED:
        for at, letter in enumerate(word):
            if letter == "'":
                found[word[:at] + word[at + 1 :]] = word
    # The reference's one entry the other way round.
    return {**found, "somebody'd": "somebodyd"}


_SPELLINGS = _spellings()


def vqa_normalised(answer: str) -> str:
    """The normalisation of the VQA evaluation.

    Punctuation becomes a space, or nothing where it stands beside a space anywhere in the answer or the
    answer holds a number with a comma; full stops go unless a digit follows; lower case; number words to ten
    become digits; articles go; contractions get their apostrophe. Source: VQA evaluation,
    https://visualqa.org/evaluation.html, and what its published code does.
    """
    text = re.sub(r"[\n\t]", " ", answer).strip()
    removed = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if removed or beside_space else " ")
    result = _FULL_STOP.sub("", result, count=_MOST_FULL_STOPS)
    words = (_NUMBERS.get(word, word) for word in result.lower().split())
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def evalai_normalised(answer: str) -> str:
    """The normalisation of TextVQA's and the EvalAI servers' answer processor.

    As `vqa_normalised`, after lower case, without commas and question marks, and with 's as its own word.
    Source: TextVQA challenge, https://textvqa.org, evaluation of its reference implementation (Pythia).
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_normalised(text.strip())


def plain(answer: str) -> str:
    """Lower case, without a full stop at the end: how LLaVA hands its answers to GQA's exact match."""
    return answer.strip().rstrip(".").lower()


def pope_says_yes(answer: str) -> bool:
    """POPE's reading of an answer: no if its first sentence has the word no or not, else yes.

    Source: POPE, arXiv 2305.10355, its published evaluation.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def mme_label(answer: str) -> str:
    """MME's reading of an answer: "yes", "no", or "other" by its first four letters.

    Source: MME, arXiv 2306.13394, its published evaluation.
    """
    start = answer.strip().lower()[:4]
    return next((label for label in ("yes", "no") if label in start), "other")


def scienceqa_letter(answer: str) -> str | None:
    """The option letter A to E of an answer to ScienceQA: "B", "B. text" or "The answer is B.".

    Source: LLaVA's evaluation of ScienceQA, https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md.
    """
    letters = LETTERS[:5]
    if answer and answer[0] in letters and (len(answer) == 1 or answer[1:3] == ". "):
        return answer[0]
    said: list[str] = re.findall(r"The answer is ([A-Z]).", answer)
    return said[0] if len(said) == 1 and said[0] in letters else None


def option_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The option that an answer names, by its letter or else by its text; None where that is not clear.

    A letter counts as a word by itself. "A" in an answer of more than three words is taken for the article.
    Source: the matching step of MMBench, arXiv 2307.06281. What it leaves open, MMBench asks a language
    model; here it stays open.
    """
    letters = LETTERS[: len(choices)]
    words: list[str] = re.findall(r"\w+", answer)
    named = {word for word in words if len(word) == 1 and word in letters}
    if "A" in named and len(words) > 3:
        named.discard("A")
    if len(named) == 1:
        return named.pop()
    if named:
        return None
    meant = [
        letter
        for letter, choice in zip(letters, choices, strict=True)
        if choice.strip() and choice.strip().casefold() in answer.casefold()
    ]
    return meant[0] if len(meant) == 1 else None
