"""Which encoding has a text that is not UTF-8? Advice for a person, who sees how the text reads; nothing is converted.

Every candidate decodes the lines that are not ASCII. Its score is the share of their characters that are frequent in
the languages it was made for: level 1 of the Chinese and Japanese standards, Korean syllables, letters in words.
"""

from __future__ import annotations

import codecs
import shlex
from collections.abc import Callable

SAMPLE_BYTES = 64 << 10
SHOWN = 24  # characters of a reading
PUNCTUATION = "’“”„–—…®™°«»№"

Score = Callable[[str], float]


def utf16_or_32(start: bytes) -> str | None:
    """The encoding of a file by its first bytes: a byte order mark, or every second byte zero; None for all others."""
    for mark, name in ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32")):
        if start.startswith(mark):
            return name
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "UTF-16"
    head = start[:64] if len(start) >= 64 else start[: len(start) // 2 * 2]
    if len(head) >= 8 and 0 not in head[::2] and not any(head[1::2]):
        return "UTF-16LE"
    if len(head) >= 8 and 0 not in head[1::2] and not any(head[::2]):
        return "UTF-16BE"
    return None


def encoding_hint(file: str, encoding: str | None = None, sample: bytes = b"") -> str:
    """What the encoding may be, how the first words read in it, and the command that converts the file."""
    readings = [(encoding, "")] if encoding else guess_encodings(sample)
    if not readings:
        return "no encoding fits; export it again as UTF-8"
    listed = " or ".join(name + (f" (then it reads {text!r})" if text else "") for name, text in readings)
    unpack = "unpack it first; " if file.lower().endswith((".gz", ".zst")) else ""
    file = file.removesuffix(".gz").removesuffix(".zst")
    command = f"iconv -f {readings[0][0]} -t UTF-8 {shlex.quote(file)} > {shlex.quote(f'new-{file}')}"
    return f"it looks like {listed}; {unpack}convert it: {command}"


def guess_encodings(sample: bytes) -> list[tuple[str, str]]:
    """(name for iconv, how the text reads) of up to three encodings, the likeliest first; [] where none is likely."""
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    text = b"\n".join(lines)[:SAMPLE_BYTES].rpartition(b"\n")[0] if len(lines) > 1 else b"".join(lines)[:SAMPLE_BYTES]
    scored: list[tuple[float, str, str]] = []
    for name, codec, score in CANDIDATES:
        try:
            decoded = text.decode(codec)
        except UnicodeDecodeError:
            continue
        if not decoded.isascii():  # the sample can be cut within the first line
            scored.append((score(decoded), name, _reading(decoded)))
    best = max((points for points, _, _ in scored), default=0.0)
    found: dict[str, str] = {}  # reading -> name: two encodings that read the same are one
    for points, name, reading in sorted(scored, key=lambda entry: -entry[0]):
        if points > 0.3 and points >= 0.8 * best:
            found.setdefault(reading, name)
    return [(name, reading) for reading, name in found.items()][:3]


def _reading(text: str) -> str:
    """The words around the first character that is not ASCII."""
    line = next(line for line in text.split("\n") if not line.isascii())
    first = next(place for place, mark in enumerate(line) if mark > "\x7f")
    start = max(first - SHOWN // 3, 0)
    return line[start : start + SHOWN].strip()


def _pairs(codec: str, *leads: tuple[int, int], trail: int = 0xA1) -> Score:
    """Share of frequent characters in a double-byte encoding: kana, and those whose first byte is within `leads`."""
    japanese = codec in ("cp932", "euc_jp")

    def is_frequent(mark: str) -> bool:
        if japanese and _is_kana(mark):
            return True
        code = mark.encode(codec)
        return len(code) == 2 and code[1] >= trail and any(low <= code[0] <= high for low, high in leads)

    def score(text: str) -> float:
        marks = [mark for mark in text if mark > "\x7f"]
        share = sum(map(is_frequent, marks)) / len(marks)
        return share if not japanese or any(map(_is_kana, marks)) else 0.9 * share  # few texts are without kana

    return score


def _is_kana(mark: str) -> bool:
    return "\u3041" <= mark <= "\u30ff"


def _letters(alphabet: str, frequent: str = "") -> Score:
    """Share of characters that are letters of `alphabet` where such letters stand, no capital within a word.

    Letters of Latin alphabets stand beside ASCII letters, unlike the two bytes of a Chinese character; those of all
    others (which give their `frequent` letters) beside their like.
    """
    known, common = set(alphabet + alphabet.upper()), set(frequent + frequent.upper())

    def is_good(text: str, place: int) -> bool:
        before, mark, after = text[place - 1 : place], text[place], text[place + 1 : place + 2]
        if mark not in known or (mark != mark.lower() and before.isalpha() and before == before.lower()):
            return False
        beside_ascii = any(near.isascii() and near.isalpha() for near in (before, after) if near)
        return mark in PUNCTUATION or beside_ascii != bool(frequent)

    def score(text: str) -> float:
        places = [place for place, mark in enumerate(text) if mark > "\x7f"]
        good = [place for place in places if is_good(text, place)]
        share = len(good) / len(places)
        if not frequent or not good:
            return share
        return share * (0.7 + 0.3 * min(sum(text[place] in common for place in good) / len(good) / 0.5, 1.0))

    return score


def _range(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


_WESTERN = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßœ’“”–—…®™°"
_CENTRAL = "áăâäąçćčďđéęëěíîłľĺńňóôőöŕřśšşťţúůűüýźżž’“”„–—…"
_CYRILLIC = _letters(_range(0x430, 0x45F) + "ґ«»№—–", frequent="оеаинтсрвл")

# Name for iconv, codec of Python, score. The narrower comes first: with equal scores it is likelier.
CANDIDATES: tuple[tuple[str, str, Score], ...] = (
    ("CP949", "cp949", _pairs("cp949", (0xA1, 0xA3), (0xB0, 0xC8))),
    ("EUC-JP", "euc_jp", _pairs("euc_jp", (0xA1, 0xA1), (0xB0, 0xCF))),
    ("CP932", "cp932", _pairs("cp932", (0x81, 0x81), (0x88, 0x97), trail=0x40)),
    ("GB18030", "gb18030", _pairs("gb18030", (0xA1, 0xA1), (0xA3, 0xA3), (0xB0, 0xD7))),
    ("BIG5", "big5", _pairs("big5", (0xA1, 0xA3), (0xA4, 0xC6), trail=0x40)),
    ("cp1252", "cp1252", _letters(_WESTERN)),
    ("cp1250", "cp1250", _letters(_CENTRAL)),
    ("cp1251", "cp1251", _CYRILLIC),
    ("KOI8-R", "koi8_r", _CYRILLIC),
    ("cp1253", "cp1253", _letters(_range(0x3B1, 0x3CE) + "άέήί", frequent="αοιετσνηρκόά")),
    ("cp1255", "cp1255", _letters(_range(0x5D0, 0x5EA), frequent="יוהלאמרתבש")),
    ("cp1256", "cp1256", _letters(_range(0x621, 0x64A), frequent="اليمنرتبةو")),
    ("CP874", "cp874", _letters(_range(0xE01, 0xE4E), frequent="านรอกเงมยลวดท่้สี")),
)
