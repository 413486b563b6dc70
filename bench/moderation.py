"""How long a text is checked against the word lists: 20,000 terms, texts of 4,000 characters, one core.

    .venv/bin/python -m bench.moderation [--rounds 300] [--out bench/results/moderation.md]

Terms and texts are made from a fixed seed: English words, Chinese words of two to five characters, mixed.
The texts hold nothing that is found, which is the dear case: all readings are gone through. Every text is
checked in every round, in turn, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import statistics
import sys
import time
import unicodedata
from pathlib import Path

from danqing.service.lookalikes import simplified
from danqing.service.moderation import TextModerator
from danqing.service.wordlists import Entry, Rule

TERMS = 20_000
RULES = 100
CHARS = 4_000
MARK_MS = 1.0
_LATIN = "abcdefghijklmnoprstuvwy"
_HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
_CYRILLIC = str.maketrans("aeopcyx", "аеорсух")


def make_terms(rng: random.Random) -> list[Entry]:
    """Half English, half Chinese, of all levels. Each has a q or a 鿃, which no text has."""
    terms: set[str] = set()
    while len(terms) < TERMS:
        if rng.random() < 0.5:
            term = "".join(rng.choices(_LATIN, k=rng.randint(3, 8))) + "q"
            term = term if rng.random() < 0.7 else f"{term} {''.join(rng.choices(_LATIN, k=5))}"
        else:
            term = "".join(rng.choices(_HAN, k=rng.randint(1, 4))) + "\u9fc3"
        terms.add(term)
    # A tenth of them is nothing alone: parts of rules, by category.
    return [
        Entry(term, rng.randrange(3), "bench")
        if at % 10
        else Entry(term, 4, f"group{at // 10 % (RULES + 1)}")
        for at, term in enumerate(sorted(terms))
    ]


def make_texts(rng: random.Random, terms: list[Entry]) -> dict[str, str]:
    def english(chars: int) -> str:
        words = ("".join(rng.choices(_LATIN, k=rng.randint(2, 9))) for _ in range(chars))
        return " ".join(words)[:chars]

    parts = [term for term, _, category in terms if category == "group0" and term.isascii()]
    chinese = "".join("，" if rng.random() < 0.08 else rng.choice(_HAN) for _ in range(CHARS))
    plain = english(CHARS)
    traditional = {ord(target): chr(source) for source, target in simplified().items()}
    wide = "".join(chr(ord(char) + 0xFEE0) if char != " " else "\u3000" for char in plain)
    texts = {
        "English": plain,
        "Chinese": chinese,
        "English with all terms of one category": " ".join([*parts, english(CHARS)])[:CHARS],
        "half and half": (english(CHARS // 2) + chinese)[:CHARS],
        "full width": wide,
        "a zero-width joiner after each letter": "\u200d".join(plain)[:CHARS],
        "spelled out (a-b-c)": "-".join(plain.replace(" ", ""))[:CHARS],
        "Cyrillic lookalikes among Latin": plain.translate(_CYRILLIC),
        "cut up (ab-cde)": re.sub("([a-z]{2})([a-z]{3})", r"\1-\2", plain)[:CHARS],
        "cut up without a blank": "-".join(re.findall("[a-z]{2}", plain))[:CHARS],
        "a letter masked (ab*de)": re.sub("([a-z]{2})[a-z]([a-z]{2})", r"\1*\2", plain)[:CHARS],
        "traditional Chinese": chinese.translate(traditional),
        "digits for letters": plain.replace("o", "0").replace("i", "1").replace("e", "3"),
    }
    texts = {name: text.ljust(CHARS) for name, text in texts.items()}
    assert all(len(text) == CHARS for text in texts.values())
    return texts


def measure(rounds: int) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each check by text, and seconds that making the moderator took."""
    rng = random.Random(6)
    terms = make_terms(rng)
    texts = make_texts(rng, terms)
    started = time.thread_time()
    rules = [Rule((f"@group{at}", f"@group{at + 1}"), 0, "bench", "") for at in range(RULES)]
    moderator = TextModerator(
        entries=terms, rules=rules, allowed=["a phrase that is fine", "没有问题的话"]
    )
    made_s = time.thread_time() - started
    times: dict[str, list[float]] = {name: [] for name in texts}
    for _ in range(rounds):
        for name, text in texts.items():
            started = time.thread_time()
            found = moderator.find(text)
            times[name].append((time.thread_time() - started) * 1000)
            assert found is None
    return times, made_s


def report(times: dict[str, list[float]], made_s: float, rounds: int) -> str:
    lines = [
        "# Text moderation",
        "",
        f"`.venv/bin/python -m bench.moderation`: {TERMS:,} terms of three levels, a tenth of them parts of {RULES} rules, texts of {CHARS:,}",
        f"characters without a finding, {rounds} rounds. {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},",
        f"Unicode {unicodedata.unidata_version}. Milliseconds of the thread's own processor time for one text; the mark is {MARK_MS:g} ms.",
        "",
        "| text | median | 95 % | least |",
        "|---|---|---|---|",
    ]
    for name, found in times.items():
        found = sorted(found)
        p95 = found[int(len(found) * 0.95)]
        lines.append(f"| {name} | {statistics.median(found):.2f} | {p95:.2f} | {found[0]:.2f} |")
    lines += ["", f"Reading the lists into the moderator took {made_s:.2f} s.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    times, made_s = measure(options.rounds)
    text = report(times, made_s, options.rounds)
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
