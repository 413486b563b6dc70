"""Text moderation: what must be found in whatever spelling, what must not, and what it may cost."""

from __future__ import annotations

import os
import pydoc_data.topics as topics
import re
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.domain.errors import ContentRefused
from danqing.domain.task import SafetyLevel
from danqing.service.folding import TEXT_CHARS_MAX, fold
from danqing.service.moderation import TextModerator
from danqing.service.wordlists import Entry, Rule, read_allowed, read_list, written_out

BUNDLED = Path(str(files("danqing.service").joinpath("assets", "wordlist.txt")))
DEFAULT = TextModerator([BUNDLED], allow_paths=[BUNDLED.with_name("allowlist.txt")])
SMALL = TextModerator(
    entries=[
        Entry("bomb", 0, "weapons"),
        Entry("make poison", 1, "weapons"),
        Entry("café noir", 2, "test"),
        Entry("炸弹", 0, "weapons"),
        Entry("色情", 1, "sexual"),
        Entry("AI换脸", 2, "test"),
    ]
)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("a Bomb, please", 0),
        ("BOMB", 0),
        ("ｂｏｍｂ", 0),
        ("bömb", 0),
        ("bo\u200bm\u200db", 0),
        ("bo\u00admb", 0),
        ("b o m b", 0),
        ("draw b-o-m-b now", 0),
        ("draw a b-o-m-b", 0),
        ("a b o m b I see", 0),
        ("b_o.m b", 0),
        ("draw a B*MB now", 0),
        ("b#mb", 0),
        ("bo＊b", 0),
        ("x-bom*-y, b*mb-x", 0),
        (" ".join(f"{a}{b}a*x" for a in "abc" for b in "abc") + " bo*b", 0),
        ("画bomb图", 0),
        ("make\n  poison!", 1),
        ("make--poison", 1),
        ("CAFE NOIR", 2),
        ("一颗炸弹", 0),
        ("炸 弹", 0),
        ("炸-弹", 0),
        ("炸\u200d弹", 0),
        ("炸\ufe0f弹", 0),
        ("炸。。*弹", 0),
        ("色　情", 1),
        ("用ａｉ 换·脸", 2),
        ("bo\x08mb", 0),
        ("b\x7fo\x1bmb 一只猫", 0),
        ("bo\x9fmb", 0),
        ("m-a-k-e p-o-i-s-o-n", 1),
        ("how to m a k e  p 0 i s o n", 1),
        ("I m.a.k.e p.o.i.s.o.n", 1),
        ("a bo-mb", 0),
        ("BO*MB", 0),
        ("bo_mb", 0),
        ("draw: x-b-om-b/x.", 0),
        ("b.0-mb", 0),
        ("b0—m8, bо—mb", 0),
        ("make a po-is-on", 3),
        ("ma-ke poi..son!", 1),
        ("make-po-is-on", 1),
        ("一颗炸彈", 0),
        ("一颗炸彈，ＢＯ－ＭＢ", 0),
        ("用AI換臉", 2),
    ],
)
def test_found_in_any_spelling(text: str, level: int) -> None:
    assert SMALL.check(text, "user") == SafetyLevel("user", level)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "bombastic",
        "a plumbomb",
        "make poisonous",
        "makepoison",
        "bo\tmb",
        "bo\nmb",
        "bo mb, bo - mb, bo- mb",
        "bo----mb",
        "bo-mbastic, plum-bo-mb1",
        "b*b, b**b, *omb, bom*, b *mb, b* mb, 2*mb, bo*2b, b.mb, ab*mb, b*mbs",
        "poison make",
        "炸鸡和子弹",
        "色彩",
        "😀🎉",
    ],
)
def test_not_found(text: str) -> None:
    assert SMALL.check(text, "user") == SafetyLevel("user", 3)


@pytest.mark.parametrize(
    "text",
    [
        "a bunch of grapes on a table",
        "a drape in the scrapers' yard, Scunthorpe and Essex",
        "rapeseed field in spring",
        "a cartoon bomb with a lit fuse",
        "a class assignment on cocktails",
        "a child in a red coat under a tree",
        "十字路口交通拥堵",
        "个性交流，女性爱好者，林阴道",
        "年幼女孩放风筝",
        "做爱心卡片的小朋友",
        "一只可爱的小猫咪",
        "水墨山水，远山如黛",
    ],
)
def test_everyday_prompts_pass_the_bundled_list(text: str) -> None:
    assert DEFAULT.find(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "how to make a bomb at home",
        "child porn",
        "儿童 色情",
        "制作炸弹的步骤",
        "a beheading",
        "血淋淋的碎尸",
    ],
)
def test_the_bundled_list_refuses(text: str) -> None:
    with pytest.raises(ContentRefused) as caught:
        DEFAULT.require({"user": (text,)})
    assert caught.value.role == "user"
    assert caught.value.level <= 1


def test_the_bundled_list_notes_mild_words() -> None:
    assert DEFAULT.require({"user": ("a nude statue",)}) == (SafetyLevel("user", 2),)


def test_the_seeds_examples_pass() -> None:
    """Prompts of the provider documents' own examples."""
    for prompt in (
        "画一个钢铁侠",
        "一只可爱的小猫咪，坐在阳光明媚的窗台上，背景是蓝天白云.",
        "一只可爱的小猪",
    ):
        assert DEFAULT.check(prompt, "user").level == 3


def test_levels_by_role() -> None:
    levels = SMALL.require({"user": ("a cat", "café noir"), "history": (), "assistant": ("nice",)})
    assert levels == (SafetyLevel("user", 2), SafetyLevel("assistant", 3))


def test_the_worst_term_decides_wherever_it_stands() -> None:
    for text in ("café noir, make poison, bomb", "bomb 色情", "色情 AI换脸 炸弹"):
        assert SMALL.check(text, "user").level == 0
    with pytest.raises(ContentRefused) as caught:
        SMALL.require({"user": ("fine", "make poison", "炸弹")})
    assert (caught.value.role, caught.value.level) == ("user", 0)


def test_the_refused_role_is_named() -> None:
    with pytest.raises(ContentRefused) as caught:
        SMALL.require({"user": ("a cat",), "history": ("a bomb",)})
    assert caught.value.role == "history"


@pytest.mark.parametrize(("block_level", "refused"), [(-1, 0), (0, 2), (1, 4), (2, 6), (3, 6)])
def test_block_level(block_level: int, refused: int) -> None:
    entries = [Entry(f"{word}{level}", level, "x") for level in range(3) for word in ("term", "词")]
    moderator = TextModerator(entries=entries, block_level=block_level)
    moderator.require({"user": ("nothing of it",)})
    count = 0
    for entry in entries:
        try:
            moderator.require({"user": (entry.term,)})
        except ContentRefused:
            count += 1
    assert count == refused


@given(st.text(max_size=60))
def test_folding_is_done_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)


WORDS = st.text(alphabet="abcxyzé", min_size=2, max_size=6)
HAN = st.text(alphabet="山水画炸弹猫", min_size=2, max_size=4)
SEPARATORS = st.text(alphabet=" -_.,，。*\n\u200b\u200d\u3000", max_size=3)


@given(HAN, SEPARATORS, st.text(max_size=20), st.text(max_size=20))
def test_a_chinese_term_is_found_through_any_separators(
    term: str, separator: str, before: str, after: str
) -> None:
    moderator = TextModerator(entries=[Entry(term, 1, "x")])
    assert moderator.find(f"{before} {separator.join(term)} {after}") is not None


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
def test_a_latin_term_is_found_as_a_word_only(words: list[str], term: str) -> None:
    moderator = TextModerator(entries=[Entry(term, 1, "x")])
    found = moderator.find(" ".join(words)) is not None
    assert found == (fold(term) in map(fold, words))


@pytest.mark.parametrize(
    "text",
    [
        "猫" * 2_000_000,
        "a " * 1_000_000,
        "\u0301\u0316" * 1_000_000,
        "a" + "\U0001d165\U0001d167" * 1_000_000,
        "\ufdfa" * 1_000_000,
        "炸" * 1_000_000 + "弹",
        "@" * 1_000_000,
        "@$" * 20_000 + "b" + "$" * 50_000,
        "ab-" * 40_000,
        "a" * 100_000,
        "a1" * 50_000,
        "аb" * 50_000,
        "-_" * 50_000,
        "b!" * 50_000,
        "炸彈" * 50_000,
        "he'll " * 20_000,
        "b*xb " * 20_000,
    ],
)
def test_huge_input_is_bounded_work(text: str) -> None:
    started = time.process_time()
    SMALL.find(text)
    assert time.process_time() - started < 15


def test_a_list_of_one_term_again_and_again_is_bounded_work() -> None:
    started = time.process_time()
    moderator = TextModerator(entries=[Entry("zebra", 1, "x"), Entry("斑马", 1, "x")] * 100_000)
    assert moderator.find("a ZEBRA") == Entry("zebra", 1, "x")
    assert moderator.terms_count == 200_000
    assert time.process_time() - started < 30


def test_the_end_of_an_overlong_text_is_looked_at() -> None:
    assert SMALL.check("猫" * TEXT_CHARS_MAX + "炸弹", "history").level == 0


def test_an_operators_list_extends_the_bundled_one(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\ufeff# ours\n\n  Acme Corp \t1\tbrand\r\n某品牌\t2\tbrand\n", "utf-8")
    moderator = TextModerator([BUNDLED, path])
    assert moderator.find("the ACME corp. logo") == Entry("Acme Corp", 1, "brand")
    assert moderator.check("某品牌的车", "user").level == 2
    assert moderator.check("色情", "user").level == 1


@pytest.mark.parametrize(
    "line",
    ["bomb", "bomb 1 weapons", "bomb\t4\tx", "bomb\t-1\tx", "bomb\tone\tx", "\t1\tx", "--\t1\tx",
     "\u200b\t1\tx", "a\t1\tx\ty", "x" * 101 + "\t1\tx"],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "own.txt"
    path.write_text(f"fine\t1\tx\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=r"own\.txt, line 2: "):
        TextModerator([path])


def test_an_unreadable_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\t1\tx\n")
    for name in ("missing.txt", "latin1.txt"):
        with pytest.raises(ValueError, match=name):
            TextModerator([tmp_path / name])


@pytest.mark.timeout(120)
def test_a_list_is_a_plain_file(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever. A link to a file is fine: deployments swap those."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "pipe.txt", tmp_path / "folder.txt", Path("/dev/zero")):
        for lists in ({"paths": [path]}, {"allow_paths": [path]}):
            with pytest.raises(ValueError, match=f"{path}: "):
                TextModerator(**lists)
    (tmp_path / "list.txt").write_text("bomb\t0\tx\n", "utf-8")
    (tmp_path / "link.txt").symlink_to("list.txt")
    assert TextModerator([tmp_path / "link.txt"]).terms_count == 1


def test_every_bundled_term_is_found_in_itself() -> None:
    entries, rules = read_list(BUNDLED)
    assert len({fold(entry.term) for entry in entries}) == len(entries), "listed twice"
    for entry in entries:
        found = DEFAULT.find(f"x, {written_out(entry.term)[0]}, y")
        assert (found.level if found else 4) <= entry.level
    assert {entry.level for entry in entries} == {0, 1, 2, 4}
    assert {rule.level for rule in rules} == {0}


def test_every_bundled_phrase_is_harmless_whole() -> None:
    """And each is there for a term within it."""
    bare = TextModerator([BUNDLED])
    for listed in read_allowed(BUNDLED.with_name("allowlist.txt")):
        phrase = written_out(listed)[0]
        assert DEFAULT.find(f"x, {phrase}, y") is None
        assert any(
            bare.check(text, "user").level < DEFAULT.check(text, "user").level
            for text in (f"{phrase}, {one}, y" for one in ("child", "nude", ""))
        ), phrase


def test_no_lists_find_nothing() -> None:
    assert TextModerator().check("anything", "user").level == 3


@pytest.mark.parametrize(
    "text",
    [
        "a bоmb",  # Cyrillic o in a Latin word
        "ВОМВ",  # all of it Cyrillic
        "βοmβ",
        "ʙᴏᴍʙ",
        "b0mb",
        "b-0-m-b",
        "ｂ０ｍｂ",
        "𝒷𝑜𝓂𝒷",
        "ⓑⓞⓜⓑ",
        "🅱🅾🅼🅱",
        "🇧🇴🇲🇧",
        "bømb",
        "b\u200bо\u200cm\u2060b",
        "m@ke pois0n",
        "make p0i$on",
        "ma\u0131\u0307l make\u00a0poison",
        "ᏏᎾᎷᏏ",
        "ꓐꓳꓟꓐ",
        "ᗷoᗰᗷ",
        "ⲃⲟⲙⲃ bⲟmb",
        "b𐓂mb",
        "𐌁𐐄mb",
        "ƀoϻƅ",
        "🅱⭕️🅼🅱",
        "b●mb",
        "mak€ po!son",
        "m@k€ po|son",
        "用АI换脸",
    ],
)
def test_lookalikes_are_read_as_what_they_look_like(text: str) -> None:
    assert SMALL.find(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "кот и собака сом",
        "рот и нос, красивый портрет",
        "в 1999 году",
        "4k wallpaper, 3d render, f1 car, 50mm",
        "mail me@example.com for $5",
        "Η γάτα στο σπίτι",
        "ᎠᏂᏴᏫᏯ ᎤᎾᏙᏢᏒ",
        "wow! it costs 5€, or £5 © ACME® 2×3",
    ],
)
def test_other_alphabets_and_numbers_are_left_alone(text: str) -> None:
    listed = ["pot", "hoc", "cm", "b", "k", "ak", "so", "ed", "fi", "h", "i999", "s5"]
    assert TextModerator(entries=[Entry(term, 0, "x") for term in listed]).find(text) is None


COMMON_AND_SENSITIVE = [
    "ass",
    "anal",
    "anus",
    "arse",
    "bomb",
    "boob",
    "boobs",
    "butt",
    "cock",
    "cum",
    "cunt",
    "dick",
    "dildo",
    "erotic",
    "fag",
    "fuck",
    "gun",
    "gore",
    "hell",
    "heroin",
    "incest",
    "kill",
    "killer",
    "lust",
    "meth",
    "milf",
    "murder",
    "naked",
    "nazi",
    "nude",
    "orgy",
    "penis",
    "piss",
    "poison",
    "porn",
    "pussy",
    "rape",
    "rapist",
    "scum",
    "semen",
    "sex",
    "sexy",
    "shit",
    "slut",
    "stab",
    "suicide",
    "terror",
    "tit",
    "tits",
    "torture",
    "vagina",
    "war",
    "weed",
    "whore",
    "drug",
    "drugs",
    "dead",
    "death",
    "die",
    "dope",
    "drown",
    "execute",
    "explosive",
    "hang",
    "hate",
    "blood",
    "knife",
    "shoot",
    "fetish",
    "lolita",
    "child",
    "negro",
    "corpse",
    "coon",
    "opium",
    "hitler",
]


def test_words_in_prose_are_not_put_together_to_listed_ones() -> None:
    """Python's own manual, 65,000 words with code, paths and compounds in them: nothing is found but what stands there whole."""
    moderator = TextModerator(entries=[Entry(term, 1, "x") for term in COMMON_AND_SENSITIVE])
    whole = re.compile(rf"\b(?:{'|'.join(COMMON_AND_SENSITIVE)})\b")
    paragraphs = "\n".join(topics.topics.values()).lower().replace("_", "-").split("\n\n")
    assert sum(len(text.split()) for text in paragraphs) > 60_000
    found = [text for text in paragraphs if moderator.find(text) is not None]
    assert found == [text for text in paragraphs if whole.search(text)]
    assert len(found) > 10


@pytest.mark.parametrize(
    "text",
    [
        "餅乾你喜歡嗎，房間很乾淨",
        "著名的電視劇，覆蓋著白雪的山頭",
        "頭髮很長的女孩在麵包店裡",
        "後天早上的臺北颱風",
        "穀物和乾草，一隻可愛的小貓咪",
        "復古風格的鐘錶，徵集作品",
    ],
)
def test_everyday_traditional_chinese_passes_the_bundled_list(text: str) -> None:
    assert DEFAULT.find(text) is None


@given(HAN, st.text(alphabet="山水画炸弹猫兒童體彈畫", max_size=12))
def test_traditional_and_simplified_chinese_are_one(term: str, text: str) -> None:
    """Whichever the list has and whichever the text."""
    traditional = str.maketrans("弹画", "彈畫")
    plain = text.translate(str.maketrans("兒體彈畫", "儿体弹画"))
    for one in (term, term.translate(traditional)):
        moderator = TextModerator(entries=[Entry(one, 1, "x")])
        assert (moderator.find(text) is not None) == (term in plain)


@given(
    st.text(alphabet="bcdfgh", min_size=3, max_size=8),
    st.lists(st.sampled_from(["-", "_", "*", ".", "/", "·", "--", "—", "'", "+/"]), min_size=7),
    st.data(),
)
def test_a_word_cut_anywhere_without_a_blank_is_found(
    term: str, signs: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(term) - 1), min_size=1)))
    parts = [term[at:to] for at, to in zip([0, *cuts], [*cuts, len(term)], strict=True)]
    text = parts[0] + "".join(sign + part for sign, part in zip(signs, parts[1:], strict=False))
    moderator = TextModerator(entries=[Entry(term, 1, "x")])
    assert moderator.find(f"I want {text}, please") is not None
    allowing = TextModerator(entries=[Entry(term, 1, "x")], allowed=[text])
    assert allowing.find(f"I want {text}, please") is None or len(parts) == len(term) > 2
    assert allowing.find(term) is not None


CONTRACTED = TextModerator(
    entries=[
        Entry(term, 0, "x")
        for term in [
            "bomb",
            "hell",
            "shell",
            "kill",
            "ill",
            "whore",
            "were",
            "id",
            "cant",
            "wont",
            "shed",
            "well",
            "its",
            "hello",
        ]
    ]
)


@pytest.mark.parametrize("apostrophe", ["'", "’", "＇"])
@pytest.mark.parametrize(
    "text",
    [
        "people who're waiting, he'll smile",
        "“She'll wave”, (I'll be there), we're and we'll; I'd like it: it's fine.",
        "can't, won't; SHE'D rather not, he'll",
        "画he'll在",
        "girls'll, you've, they're",
    ],
)
def test_contractions_are_no_words_cut_up(text: str, apostrophe: str) -> None:
    assert CONTRACTED.find(text.replace("'", apostrophe)) is None


@pytest.mark.parametrize(
    "text",
    ["bo'mb", "ki'll", "k'ill", "s'he'll", "s—he'll", "k-i'll", "h-e'll", "he'll-o", "w'ho're",
     "whor'e", "h3'll", "hе'll", "h'e'l'l", "s.he’d", "I'll bo'mb", "....s_i_i-k'i'll"],
)  # fmt: skip
def test_an_apostrophe_hides_no_other_word(text: str) -> None:
    assert CONTRACTED.find(f"a {text}, please") is not None


def test_a_one_is_an_i_or_an_l() -> None:
    moderator = TextModerator(entries=[Entry("kill", 1, "x"), Entry("lick", 2, "x")])
    assert moderator.check("k1ll", "user").level == 1
    assert moderator.check("1ick", "user").level == 2


ALLOWING = TextModerator(
    entries=[Entry("bomb", 0, "x"), Entry("性感", 1, "x"), Entry("感觉", 2, "x")],
    allowed=["bath bomb", "性感肌肤检测"],
)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("a pink bath bomb", 3),
        ("BATH-BOMB, bath bomb", 3),
        ("a bath bomb beside a bomb", 0),
        ("a bomb in a bath", 0),
        ("bath b-o-m-b", 3),
        ("敏感性感肌肤检测仪", 3),
        ("性 感 肌肤检测", 3),
        ("性感肌肤", 1),
        ("性感肌肤检测，性感", 1),
        ("性感觉", 1),
    ],
)
def test_a_hit_within_an_allowed_phrase_is_none(text: str, level: int) -> None:
    assert ALLOWING.check(text, "user").level == level


def test_a_masked_word_is_allowed_as_it_is_written() -> None:
    moderator = TextModerator(entries=[Entry("bomb", 1, "x")], allowed=["b*mb"])
    assert moderator.find("a b*mb") is None
    assert moderator.find("a b*mb, a bom*, a bo*b") is not None


def test_an_allowed_hit_hides_no_other() -> None:
    moderator = TextModerator(
        entries=[Entry("甲乙", 1, "x"), Entry("乙丙", 1, "x")], allowed=["甲乙"]
    )
    found = moderator.find("甲乙丙")
    assert found is not None
    assert found.term == "乙丙"


@given(
    HAN, st.text(alphabet="山水画炸弹猫", max_size=4), st.text(alphabet="山水画炸弹猫", max_size=12)
)
def test_an_allowed_phrase_excuses_what_it_covers_and_nothing_else(
    term: str, more: str, text: str
) -> None:
    """Against the plain definition: an occurrence counts unless an occurrence of the phrase has it inside."""
    phrase = term + more
    moderator = TextModerator(entries=[Entry(term, 1, "x")], allowed=[phrase])

    def starts(part: str) -> list[int]:
        return [at for at in range(len(text)) if text.startswith(part, at)]

    spans = [(at, at + len(phrase)) for at in starts(phrase)]
    bare = [
        at
        for at in starts(term)
        if not any(start <= at and at + len(term) <= end for start, end in spans)
    ]
    assert (moderator.find(text) is not None) == bool(bare)


def test_an_allow_list_is_read_from_a_file(tmp_path: Path) -> None:
    words, allowed = tmp_path / "words.txt", tmp_path / "allowed.txt"
    words.write_text("bomb\t0\tweapons\n", "utf-8")
    allowed.write_text("# harmless\n\nbath bomb\n", "utf-8")
    moderator = TextModerator([words], allow_paths=[allowed])
    assert (moderator.terms_count, moderator.allowed_count) == (1, 1)
    assert moderator.find("bath bomb") is None
    allowed.write_text("bath bomb\n--\nseed\tbomb\n", "utf-8")
    with pytest.raises(ValueError, match=r"allowed\.txt, line 2: .*; line 3: .*tabs"):
        TextModerator([words], allow_paths=[allowed])


def test_all_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("bomb\nfine\t1\tx\n" + "worse\n" * 12, "utf-8")
    with pytest.raises(ValueError, match=r"line 1: .*line 3: .*line 11: .*; and 3 more$"):
        TextModerator([path])


REFUSED_TOGETHER = [
    "naked child", "nude boy", "nude girl", "naked little girl", "nude teenager", "a nude 12 year old",
    "loli nude", "a 15-year-old girl, topless", "seventeen years old, NUDE", "a kid who is n-a-k-e-d",
    "toddler without clothes", "a sexy schoolgirl", "nud3 b0y", "a girl in a garden, wearing nothing", "13yo undressed",
    "裸体小孩", "裸体女孩", "萝莉 裸体", "小学生裸照", "12岁 全裸", "十二歲的女孩沒穿衣服", "少女，nude", "a nude 女孩", "１７岁裸女", "裸体，年龄：12",
    "nude 12year old", "naked 12yr old", "nude, 12years old", "12yrs old, nude", "nude 12 yearold", "a nude 12yearold", "nude 12yr",
    "nude 12 y old", "nude 12y old", "nude 12\u200byear old", "nude 12-yr-old", "裸体，12歳", "12才，裸体", "nude 6th grader", "a naked first grader",
    "nude fifth graders", "naked 6 month old", "nude schoolkid", "kiddo, naked", "a naked pupil", "my daughter, nude", "nude schoolchildren",
    "裸 小学生", "裸少女", "一个小女孩，裸", "少女性感，裸体", "性感幼女", "幼女性感写真", "高中性感萝莉", "性感染发的小女孩", "温柔性感的小女孩", "个性感十足的萝莉，性感",
    "a child in a sexual pose", "a naked chef, naked child", "nude statue of a little girl", "nude, colored pencil, child",
    "12 year old whisky, a nude 12 year old", "nude 12 year old car girl", "nude stone age child",
    "裸眼，裸的小学生", "小女孩，裸，色彩鲜艳", "小女孩，裸，眼睛大", "小女孩，裸，线条画", "a baby bird, naked baby", "sexual health class, child in a sexual pose", "child sexual abuse",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED_TOGETHER)
def test_who_is_young_and_naked_is_refused_in_any_words(text: str) -> None:
    for role in ("user", "assistant", "history"):
        with pytest.raises(ContentRefused) as caught:
            DEFAULT.require({role: ("a cat", text)})
        assert (caught.value.role, caught.value.level, caught.value.category) == (role, 0, "minors")


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("a girl in a nude lipstick advertisement", 3),
        ("a girl in nude heels under naked trees", 3),
        ("a naked mole rat baby", 3),
        ("a boy looks with the naked eye at the stars", 3),
        ("a woman with baby blue eyes, nude", 2),
        ("a nude woman, 32 years old", 2),
        ("a sexy woman in a baby blue dress", 3),
        ("a child in a red coat, a girl and a boy at the beach", 3),
        ("the girls' school, class of 12", 3),
        ("一个小女孩在海边，赤裸裸的真相", 3),
        ("32岁的裸体女人", 2),
        ("四十二岁，裸体，年龄：42", 2),
        ("形形色色的孩子在天下体育馆，天花板上吊着灯，各自尽力，减轻生活压力", 3),
        ("裸眼3D，小学生看电影", 3),
        ("Suicide Squad poster, a suicide prevention leaflet, 自杀小队海报", 3),
        ("a boy making a gun with his fingers", 3),
        ("一位女性感受着海风，孩子在沙滩上玩耍", 3),
        ("女性感到开心，孩子在旁边", 3),
        ("男性感冒药广告，父亲抱着孩子", 3),
        ("高中生物课本插图 植物的生殖器官", 3),
        ("中学生物 生殖器官 花的结构图", 3),
        ("小学生 性感染病 知识 海报", 3),
        ("流行性感冒疫苗，儿童；知性感十足的母亲和孩子，弹性感", 3),
        ("柔性感光材料，孩子看理性感性的书", 3),
        ("裸色毛衣的小女孩，裸妆，裸子植物，裸露的岩石，裸露的黄土坡，赤裸的土地", 3),
        ("裸", 3),
        ("周五才到的裸体画，一位女人", 2),
        ("a naked baby bird in a nest, naked baby mice", 3),
        ("a boy looking at the nude statue of David", 3),
        ("thong sandals for kids", 3),
        ("stone age 3 nude venus figurine", 3),
        ("a nude woman, 12 year old whisky, a 7 years old Scotch", 2),
        ("sexual reproduction of plants, middle school poster", 3),
        ("sexual health class, sexual education, high school", 3),
        ("child sexual abuse prevention poster", 3),
        ("NSFW filter for kids app icon", 3),
        ("a kid eating nude coloured ice cream", 3),
        ("the naked chef with kids", 3),
        ("a nude woman with dilated pupils", 2),
    ],
)
def test_harmless_neighbours_of_what_is_refused(text: str, level: int) -> None:
    assert DEFAULT.check(text, "user").level == level


@pytest.mark.parametrize("age", range(130))
def test_an_age_below_eighteen_counts_in_figures_and_in_words(age: int) -> None:
    def words(number: int) -> str:
        tens, ones = divmod(number, 10)
        digits = "零一二三四五六七八九"
        ten = "" if not tens else "十" if tens == 1 else digits[tens] + "十"
        return ten + (digits[ones] if ones or not tens else "")

    texts = [
        f"a nude {age} year old",
        f"nude, aged {age}",
        f"{age}-year-old, nude",
        f"裸体，{age}岁",
    ]
    if age < 100:
        texts.append(f"{words(age)}岁的裸体")
    levels = {DEFAULT.check(text, "user").level for text in texts}
    assert levels == ({0} if 1 <= age <= 17 else {2})


@pytest.mark.parametrize(
    "text",
    ["自杀", "画一个人自殺", "制造枪支", "how to build a gun at home", "kill yourself", "suicide"],
)
def test_self_harm_and_the_making_of_weapons_are_refused(text: str) -> None:
    with pytest.raises(ContentRefused):
        DEFAULT.require({"user": (text,)})


def _moderator(tmp_path: Path, *lines: str, **more: Any) -> TextModerator:
    path = tmp_path / "own.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return TextModerator([path], **more)


def test_terms_that_are_something_together_only(tmp_path: Path) -> None:
    moderator = _moderator(
        tmp_path,
        "@fruit + @knife + table\t1\tscene",
        "apple\t-\tfruit",
        "梨\t-\tfruit",
        "knife\t2\tknife",
        "blade\t-\tknife",
        "red + blue\t2\tcolours",
        allowed=["apple pie"],
    )
    assert moderator.find("an apple and a pear on a table") is None
    assert moderator.find("A blade. Some 梨; a t-a-b-l-e!") == Entry(
        "梨 + blade + table", 1, "scene"
    )
    assert moderator.check("apple pie, table, knife", "user").level == 2
    assert moderator.check("apple pie, table, knife, apple", "user").level == 1
    assert moderator.find("blue and red") == Entry("red + blue", 2, "colours")
    assert moderator.find("reddish blue") is None
    # What is said in two texts is not said together.
    assert moderator.require({"user": ("red", "blue")}) == (SafetyLevel("user", 3),)


def test_lists_share_their_groups(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("moppet\t-\tminor\n", "utf-8")
    assert TextModerator([BUNDLED, path]).check("a nude moppet", "user").level == 0


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a\t-\t", "category"),
        ("@fruit + knife\t-\tx", "level"),
        ("@fruit\t1\tx", "joined"),
        ("@fruit + \t1\tx", "1 to 100 characters"),
        ("a + b + c + d + e\t1\tx", "2 to 4"),
        ("@nothing + knife\t1\tx", "no list has a term of the category 'nothing'"),
        ("{17-1}岁\t1\tx", "numbers"),
        ("{1-1000}岁\t1\tx", "numbers"),
    ],
)
def test_a_bad_rule_is_named(tmp_path: Path, line: str, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"own\.txt, line 2: .*{fault}"):
        _moderator(tmp_path, "apple\t-\tfruit", line)


RULED = TextModerator(
    entries=[
        Entry("bcd", 4, "one"),
        Entry("山水", 4, "one"),
        Entry("fgh", 2, "other"),
        Entry("猫狗", 4, "other"),
    ],
    rules=[Rule(("@one", "@other"), 0, "both", "here")],
)
GROUPED = st.lists(st.sampled_from(["bcd", "fgh", "jkl", "山水", "猫狗", "xx", "天"]), max_size=6)


@given(GROUPED, st.sampled_from([" ", ", ", "。"]))
def test_a_rule_holds_where_each_part_occurs(parts: list[str], separator: str) -> None:
    """Against the plain definition."""
    found = RULED.find(separator.join(parts))
    one, other = {"bcd", "山水"} & set(parts), {"fgh", "猫狗"} & set(parts)
    expected = 0 if one and other else 2 if "fgh" in parts else None
    assert (found and found.level) == expected
