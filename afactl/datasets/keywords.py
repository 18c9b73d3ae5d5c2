"""Keywords that photographers' programs write into photos or beside them, and which of them are classes.

IPTC            data set 2:25 of JPEG and TIFF (IPTC-IIM 4.2); 1:90 names its characters
XMP             dc:subject, in JPEG, PNG, WebP, TIFF, AVIF and HEIC, or in a file beside the photo: a.jpg.xmp, a.xmp
XPKeywords      tag 0x9C9E of EXIF, which Windows writes: UTF-16, joined by ;
"""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, ParamSpec
from xml.etree import ElementTree

from PIL import Image, IptcImagePlugin

from afactl.datasets.images import open_stored
from afactl.datasets.samples import Track
from afactl.datasets.tables import SEPARATORS, is_background
from afactl.errors import DataError, UsageError, counted, first_line, nearest

# Without a list of classes a keyword is one if so many photos have it; most rarer ones name places and people.
ENOUGH = 5
IPTC_KEYWORDS, IPTC_CHARACTERS = (2, 25), (1, 90)
# What 1:90 says of Latin-1, by the escape sequences of ISO 2022.
LATIN_1 = (b"\x1b.A", b"\x1b-A")
XP_KEYWORDS = 0x9C9E
XMP_TAG = 700  # of TIFF
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"  # of JPEG
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"

_P = ParamSpec("_P")


class Keywords(NamedTuple):
    """The keywords of some photos.

    Attributes:
        labels: per photo the classes among its keywords, () where it has others alone; None where it has none at all,
            which says nothing of what is in it.
        classes: their names. counts: photos per keyword, in its commonest spelling, whatever became of it.
        unreadable: what is wrong with photos that have no keyword since they, or what should hold it, cannot be read.
    """

    labels: list[tuple[str, ...] | None]
    classes: tuple[str, ...]
    counts: Counter[str]
    unreadable: tuple[str, ...] = ()


def read_keywords(photos: Sequence[Path], classes: Sequence[str] | None = None, track: Track = iter) -> Keywords:
    """The classes that the photos' keywords name. Upper and lower case are alike.

    Args:
        classes: the keywords that are classes, as they shall be written; None takes those of ENOUGH photos or more
            that a table of labels can hold.

    Raises:
        UsageError: no photo has one of the classes.
    """
    found, unreadable = [], []
    for photo in track(photos):
        try:
            found.append(photo_keywords(photo))
        except DataError as error:
            found.append(())
            unreadable.append(str(error))
    spelled: dict[str, Counter[str]] = {}
    for words in found:
        for word in words:
            spelled.setdefault(word.casefold(), Counter())[word] += 1
    counts = Counter({ways.most_common(1)[0][0]: ways.total() for ways in spelled.values()})
    if classes is None:
        classes = sorted(word for word, count in counts.items() if count >= ENOUGH and _is_class(word))
    wanted = {unicodedata.normalize("NFC", name).casefold(): name for name in classes}
    labels = [
        tuple(sorted({wanted[word.casefold()] for word in words if word.casefold() in wanted})) if words else None
        for words in found
    ]
    if not any(labels):
        common = ", ".join(f"{word} {count}" for word, count in counts.most_common(8)) or "none"
        told = f"of {', '.join(classes)}" if classes else f"that {ENOUGH} photos share"
        why = f"; {counted(len(unreadable), 'photo')} cannot be read, first: {unreadable[0]}" if unreadable else ""
        raise UsageError(
            f"{counted(len(photos), 'photo')}: none has a keyword {told} (keywords there: {common}{why}); "
            "name your classes by --classes dog,cat"
        )
    return Keywords(labels, tuple(classes), counts, tuple(unreadable))


def require_classes(names: Sequence[str]) -> None:
    """See that the keywords that somebody chose can be classes.

    Raises:
        UsageError: one is given twice, or means the background.
    """
    folded = Counter(name.casefold() for name in names)
    for name in names:
        if folded[name.casefold()] > 1 or is_background(name):
            why = "is given twice" if folded[name.casefold()] > 1 else "cannot be a class"
            raise UsageError(f'--classes: "{name}" {why}; expected keywords that differ in more than case')


def strangers(classes: Sequence[str], counts: Counter[str]) -> tuple[str, ...]:
    """A line for each class that is the keyword of no photo: a slip of the pen, more often than not."""
    there = {word.casefold() for word in counts}
    return tuple(
        f'no photo has the keyword "{name}"{nearest(name, counts)}'
        for name in classes
        if unicodedata.normalize("NFC", name).casefold() not in there
    )


def photo_keywords(path: Path) -> tuple[str, ...]:
    """The keywords of a photo, in the file and beside it, each once whatever its case; no pixel is decoded but of PNG.

    Raises:
        DataError: there are none, and the photo or what should hold them cannot be read.
    """
    words: list[str] = []
    damage: list[str] = []

    def collect(read: Callable[_P, list[str]], *arguments: _P.args, **named: _P.kwargs) -> None:
        try:
            words.extend(read(*arguments, **named))
        except Exception as error:  # damage ends in errors of many kinds; the other places may be whole
            damage.append(f"{path}: its keywords cannot be read ({first_line(error)})")

    try:
        with open_stored(path) as image:
            for read in (_of_iptc, _of_xmp, _of_exif):
                collect(read, image)
    except DataError as error:
        damage.append(str(error))
    for beside in _sidecars(path):
        collect(_of_sidecar, beside)
    found: dict[str, str] = {}
    for word in words:
        tidy = unicodedata.normalize("NFC", " ".join(word.split()))  # as XML and CSV files have it, on one line
        if tidy:
            found.setdefault(tidy.casefold(), tidy)
    if damage and not found:
        raise DataError(damage[0])
    return tuple(found.values())


def _is_class(name: str) -> bool:
    return not is_background(name) and not any(sign in name for sign in SEPARATORS)


def _sidecars(path: Path) -> list[Path]:
    """Files of XMP beside a photo: darktable's a.jpg.xmp, Lightroom's a.xmp."""
    names = dict.fromkeys(stem + suffix for stem in (path.name, path.stem) for suffix in (".xmp", ".XMP"))
    return [beside for name in names if (beside := path.with_name(name)).is_file()]


def _of_sidecar(beside: Path) -> list[str]:
    return _subjects(beside.read_bytes())


def _of_iptc(image: Image.Image) -> list[str]:
    known = IptcImagePlugin.getiptcinfo(image) or {}  # type: ignore[arg-type]  # asks for its file; None for others
    values = known.get(IPTC_KEYWORDS, [])
    latin = known.get(IPTC_CHARACTERS) in LATIN_1
    return [_text(value, latin) for value in (values if isinstance(values, list) else [values]) if value]


def _text(value: bytes, latin: bool) -> str:
    """Most programs write UTF-8, and not all of them say so; older ones write what their system had."""
    try:
        return value.decode("latin-1" if latin else "utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _of_xmp(image: Image.Image) -> list[str]:
    # Where Pillow puts the packet depends on the format, and on the version of Pillow.
    segments = getattr(image, "applist", ())
    packets = [data.removeprefix(XMP_SEGMENT) for _, data in segments if data.startswith(XMP_SEGMENT)]
    if not packets and image.format == "PNG":
        image.load()  # programs may write it behind the pixels
    if not packets:
        packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
        packets = [packet or getattr(image, "tag_v2", {}).get(XMP_TAG)]
    return [word for packet in packets if packet for word in _subjects(packet)]


def _of_exif(image: Image.Image) -> list[str]:
    value = image.getexif().get(XP_KEYWORDS, b"")
    text = value if isinstance(value, str) else bytes(value).decode("utf-16-le", errors="replace")
    return text.partition("\0")[0].split(";")


class _Plain(ElementTree.TreeBuilder):
    """A tree of XML without a document type: entities that it declares may fill the memory, or read other files."""

    def doctype(self, *declared: str | None) -> None:
        raise ValueError("XMP with a document type, which it never has")


def _subjects(packet: bytes | str) -> list[str]:
    """The words of dc:subject."""
    text = packet.encode() if isinstance(packet, str) else bytes(packet)
    if not text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = text.strip(b"\0 \r\n\t")  # some programs end a packet by a zero, which is no XML
    tree = ElementTree.fromstring(text, parser=ElementTree.XMLParser(target=_Plain()))
    return [item.text or "" for subject in tree.iter(SUBJECT) for item in subject.iter(ITEM)]
