"""Writes the table that moderation folds letters by (`service/assets/folding.txt`), from Unicode's data.

    apt-get download unicode-data && dpkg -x unicode-data_*.deb unicode
    pip download --no-deps confusable-homoglyphs && unzip confusable_homoglyphs-*.whl
    python -m tools.make_folding unicode/usr/share/unicode/Unihan_Variants.txt.bz2 confusable_homoglyphs/confusables.json

The package holds Unicode's confusables (UTS 39) as JSON. Both are under Unicode's licence
(`service/assets/folding.LICENSE.txt`).
"""

from __future__ import annotations

import bz2
import json
import re
import sys
import unicodedata
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src/danqing/service/assets/folding.txt"
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\ua4cf\ua960-\ua97f\uac00-\ud7ff]"
)
HEADER = """\
# Made by tools/make_folding.py from Unicode's data, changed: picked and folded. See folding.LICENSE.txt.
# simplified: traditional Chinese characters, each before its simplified one (Unihan, kSimplifiedVariant).
# latin: letters, case folded, each before the Latin one that it looks like (UTS 39, confusables).
"""


def plain(text: str) -> str:
    """Without case, width and accents, as folding does before it looks into the table."""
    letters = unicodedata.normalize("NFKD", text).casefold()
    bare = "".join(one for one in letters if unicodedata.category(one)[0] in "LN")
    return unicodedata.normalize("NFC", bare)


def simplified(path: Path) -> dict[str, str]:
    """Of the common block alone; where Unihan names several, the first that is another character."""
    found = {}
    for line in bz2.decompress(path.read_bytes()).decode().splitlines():
        row = re.fullmatch(r"U\+(\w+)\tkSimplifiedVariant\t(.+)", line)
        if row is None:
            continue
        source = chr(int(row[1], 16))
        targets = [chr(int(one, 16)) for one in re.findall(r"U\+(\w+)", row[2])]
        common = [one for one in targets if one != source and "\u4e00" <= one <= "\u9fff"]
        if common and "\u4e00" <= source <= "\u9fff":
            found[source] = common[0]
    # Some are simplified twice: folding a folded text must change nothing.
    for source, target in found.items():
        seen = {source}
        while target in found and target not in seen:
            seen.add(target)
            target = found[target]
        found[source] = target
    return {source: target for source, target in found.items() if source != target}


def latin(path: Path) -> dict[str, str]:
    """Of all alphabets whose words have blanks between them, but for what folding makes Latin anyhow.

    A letter that is small itself goes before one whose small form has another shape.
    """
    found: dict[str, tuple[bool, str]] = {}
    for source, rows in json.loads(path.read_text("utf-8")).items():
        if len(source) != 1 or source.isascii():
            continue
        key = plain(source)
        if len(key) != 1 or key.isascii() or not key.isalpha() or UNSPACED.match(key):
            continue
        for row in rows:
            target = plain(row["c"])
            if re.fullmatch("[a-z]", target):
                best = (source == key, target)
                found[key] = max(found.get(key, best), best, key=lambda one: one[0])
    return {key: target for key, (_, target) in found.items()}


def main(unihan: str, confusables: str) -> None:
    lines = [
        f"{name}\t{''.join(source + target for source, target in sorted(table.items()))}"
        for name, table in (
            ("simplified", simplified(Path(unihan))),
            ("latin", latin(Path(confusables))),
        )
    ]
    TARGET.write_text(HEADER + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
