"""The keywords that photographers give their photos, as image-level labels.

Where programs keep them, all of which are read and put together:

IPTC            dataset 2:25 of the block that Photoshop brought into JPEG and TIFF
XMP             dc:subject, in the photo itself or in a file beside it: a.jpg.xmp or a.xmp
XPKeywords      the Exif tag of Windows' file explorer
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from PIL import ExifTags, Image, IptcImagePlugin

from afactl.datasets.samples import Track
from afactl.errors import UsageError, counted

# Without a list of classes a keyword is one if so many photos have it.
ENOUGH = 5
_IPTC_KEYWORDS, _IPTC_CHARACTERS, _UTF8 = (2, 25), (1, 90), b"\x1b%G"
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_TAG = 700
_SUBJECT = ".//{http://purl.org/dc/elements/1.1/}subject//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


class Keywords(NamedTuple):
    """The keywords of some photos.

    Attributes:
        labels: per photo the classes among its keywords, () where it has others alone; None where it has none at all,
            which says nothing of what is in it.
        classes: their names. counts: photos per keyword, whatever became of it.
    """

    labels: list[tuple[str, ...] | None]
    classes: tuple[str, ...]
    counts: Counter[str]


def read_keywords(photos: Sequence[Path], classes: Sequence[str] | None = None, track: Track = iter) -> Keywords:
    """The classes that the photos' keywords name. Upper and lower case are alike.

    Args:
        classes: the keywords that are classes, as they shall be written; None takes those of ENOUGH photos or more.

    Raises:
        UsageError: no photo has one of the classes.
    """
    found = [photo_keywords(photo) for photo in track(photos)]
    spelled: dict[str, str] = {}
    for words in found:
        for word in words:
            spelled.setdefault(word.casefold(), word)
    counts = Counter(spelled[word] for words in found for word in dict.fromkeys(word.casefold() for word in words))
    if classes is None:
        classes = sorted(word for word, count in counts.items() if count >= ENOUGH)
    wanted = {name.casefold(): name for name in classes}
    labels = [
        tuple(sorted({wanted[word.casefold()] for word in words if word.casefold() in wanted})) if words else None
        for words in found
    ]
    if not any(labels):
        common = ", ".join(f"{word} {count}" for word, count in counts.most_common(8)) or "none"
        told = f"of {', '.join(classes)}" if classes else f"that {ENOUGH} photos share"
        raise UsageError(
            f"{counted(len(photos), 'photo')}: none has a keyword {told} (keywords there: {common}); "
            "name your classes by --classes dog,cat"
        )
    return Keywords(labels, tuple(classes), counts)


def photo_keywords(path: Path) -> tuple[str, ...]:
    """The keywords of a photo, each once, in the order in which they were found; none where it cannot be read."""
    words: list[str] = []
    try:
        with Image.open(path) as image:
            words += [*_iptc(image), *_windows(image)]
            for packet in _packets(image):
                words += _subjects(packet)
    except Exception:  # Pillow raises many kinds on damaged metadata; the photo itself is looked at by whoever needs it
        pass
    for beside in (path.with_name(f"{path.name}.xmp"), path.with_suffix(".xmp")):
        if beside.is_file():
            words += _subjects(beside.read_bytes())
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))


def _iptc(image: Image.Image) -> Iterable[str]:
    known = IptcImagePlugin.getiptcinfo(image) or {}  # type: ignore[arg-type]  # an opened image is a file's
    values = known.get(_IPTC_KEYWORDS, [])
    utf8 = known.get(_IPTC_CHARACTERS) == _UTF8
    return [_text(value, utf8) for value in (values if isinstance(values, list) else [values])]


def _text(value: bytes, utf8: bool) -> str:
    """Older programs write Latin-1 and say nothing; newer ones often write UTF-8 and say nothing."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace") if utf8 else value.decode("latin-1")


def _windows(image: Image.Image) -> Iterable[str]:
    value = image.getexif().get(ExifTags.Base.XPKeywords, b"")
    return bytes(value).decode("utf-16-le", "replace").rstrip("\0").split(";") if value else ()


def _packets(image: Image.Image) -> Iterable[bytes]:
    """XMP as it lies in the file; where depends on the format, and on the version of Pillow."""
    for key in ("xmp", "XML:com.adobe.xmp"):
        if key in image.info:
            packet = image.info[key]
            yield packet.encode() if isinstance(packet, str) else packet
            return
    for name, content in getattr(image, "applist", ()):
        if name == "APP1" and content.startswith(_XMP_HEAD):
            yield content[len(_XMP_HEAD) :]
            return
    if (tag := getattr(image, "tag_v2", {}).get(_XMP_TAG)) is not None:
        yield tag if isinstance(tag, bytes) else bytes(tag)


def _subjects(packet: bytes) -> Iterable[str]:
    """dc:subject of an XMP packet; none of one that is damaged, or that defines entities."""
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        return ()
    try:
        tree = ElementTree.fromstring(packet.strip(b"\0 \r\n\t"))
    except ElementTree.ParseError:
        return ()
    return [entry.text for entry in tree.iterfind(_SUBJECT) if entry.text]
