import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from afactl.datasets.keywords import ENOUGH, photo_keywords, read_keywords, require_classes, strangers
from afactl.errors import DataError, UsageError

XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/">
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">not a keyword</rdf:li></rdf:Alt></dc:title>
<dc:subject><rdf:Bag>{}</rdf:Bag></dc:subject>
<lr:hierarchicalSubject><rdf:Bag><rdf:li>animal|dog</rdf:li></rdf:Bag></lr:hierarchicalSubject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
PIXELS = np.zeros((8, 8, 3), np.uint8)


def xmp(*words):
    return XMP.format("".join(f"<rdf:li>{word}</rdf:li>" for word in words)).encode()


def iptc(words, encoding, said=True):
    """APP13 as Photoshop writes it: resource 0x0404 with a dataset per keyword."""
    data = b"\x1c\x01\x5a\x00\x03\x1b%G" if said and encoding == "utf-8" else b""
    for word in words:
        coded = word.encode(encoding)
        data += b"\x1c\x02\x19" + struct.pack(">H", len(coded)) + coded
    return resource(data)


def resource(data):
    block = b"8BIM\x04\x04\x00\x00" + struct.pack(">I", len(data)) + data + b"\0" * (len(data) % 2)
    body = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def jpeg(path, segment=b"", **more):
    Image.fromarray(PIXELS).save(path, "JPEG", **more)
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])
    return path


@pytest.mark.parametrize(("encoding", "said"), [("utf-8", True), ("utf-8", False), ("latin-1", False)])
def test_iptc_keywords_in_every_character_set(tmp_path, encoding, said):
    path = jpeg(tmp_path / "a.jpg", iptc(["dog", "Köter", "two words"], encoding, said))
    assert photo_keywords(path) == ("dog", "Köter", "two words")
    assert photo_keywords(jpeg(tmp_path / "b.jpg", iptc(["one"], encoding, said))) == ("one",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_subjects_in_every_format_and_nothing_else_of_it(tmp_path, form):
    path, packet = tmp_path / f"a.{form.lower()}", xmp("dog", "Hündin &amp; co")
    if form == "PNG":
        more = PngImagePlugin.PngInfo()
        more.add_itxt("XML:com.adobe.xmp", packet.decode())
        Image.fromarray(PIXELS).save(path, form, pnginfo=more)
    elif form == "TIFF":
        Image.fromarray(PIXELS).save(path, form, tiffinfo={700: packet})
    elif form == "JPEG":
        head = b"http://ns.adobe.com/xap/1.0/\0" + packet
        jpeg(path, b"\xff\xe1" + struct.pack(">H", len(head) + 2) + head)
    else:
        Image.fromarray(PIXELS).save(path, form, xmp=packet)
    assert photo_keywords(path) == ("dog", "Hündin & co")


def test_windows_keywords_and_files_beside_the_photo_are_put_together(tmp_path):
    exif = Image.Exif()
    exif[0x9C9E] = "dog;große Katze\0".encode("utf-16-le")
    path = jpeg(tmp_path / "a.jpg", exif=exif)
    assert photo_keywords(path) == ("dog", "große Katze")
    (tmp_path / "a.jpg.xmp").write_bytes(xmp("horse", "dog"))
    (tmp_path / "a.xmp").write_bytes(xmp("cow"))
    assert photo_keywords(path) == ("dog", "große Katze", "horse", "cow")


@pytest.mark.parametrize("behind", [False, True])
def test_xmp_of_png_before_and_behind_the_pixels(tmp_path, behind):
    """Programs write it on either side."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    text = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + xmp("dog", "Vögel")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    place = content.index(b"IEND" if behind else b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + chunk + content[place:])
    assert photo_keywords(tmp_path / "a.png") == ("dog", "Vögel")


@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])  # telephones name them so now and then
def test_xmp_of_heic(tmp_path, name):
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra [heic]")
    with open(tmp_path / name, "wb") as file:
        heif.from_pillow(Image.new("RGB", (64, 64))).save(file, xmp=xmp("dog"))
    assert photo_keywords(tmp_path / name) == ("dog",)


def test_iptc_of_tiff_and_empty_entries(tmp_path):
    records = b"".join(b"\x1c\x02\x19" + struct.pack(">H", len(word)) + word for word in (b"", b" dog\r\n", b"cat"))
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo={33723: records})
    assert photo_keywords(tmp_path / "a.tif") == ("dog", "cat")


def test_iptc_that_says_it_is_latin_1_is_not_taken_for_utf_8(tmp_path):
    said = b"\x1c\x01\x5a\x00\x03\x1b.A\x1c\x02\x19\x00\x02" + "Ã©".encode("latin-1")
    assert photo_keywords(jpeg(tmp_path / "a.jpg", resource(said))) == ("Ã©",)


@pytest.mark.parametrize("beside", ["a.jpg.xmp", "a.xmp", "a.XMP", "a.jpg.XMP"])
def test_every_name_of_a_file_beside_the_photo(tmp_path, beside):
    jpeg(tmp_path / "a.jpg")
    (tmp_path / beside).write_bytes(b'<?xml version="1.0" encoding="UTF-8"?>\n' + xmp("dog"))
    (tmp_path / "b.xmp").write_bytes(xmp("of another photo"))
    assert photo_keywords(tmp_path / "a.jpg") == ("dog",)
    (tmp_path / beside).write_bytes(xmp("Vögel").decode().encode("utf-16"))
    assert photo_keywords(tmp_path / "a.jpg") == ("Vögel",)


def test_each_word_counts_once_whatever_its_case_and_its_form(tmp_path):
    """macOS takes ö apart into o and two dots."""
    path, whole = jpeg(tmp_path / "a.jpg", iptc(["dog"], "utf-8")), "V\N{LATIN SMALL LETTER O WITH DIAERESIS}gel"
    (tmp_path / "a.xmp").write_bytes(xmp("DOG", "Vo\N{COMBINING DIAERESIS}gel", whole, "two\n words"))
    assert photo_keywords(path) == ("dog", whole, "two words")


@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_so_that_no_entity_is_expanded(tmp_path, coding):
    """A billion laughs, and a file of this machine."""
    (tmp_path / "secret").write_text("password")
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    jpeg(tmp_path / "a.jpg")
    for inner, entity in ((f'<!ENTITY e0 "lol">{bomb}', "e11"), (f'<!ENTITY x SYSTEM "{tmp_path}/secret">', "x")):
        text = f"<!DOCTYPE x [{inner}]>" + xmp(f"&{entity};").decode().partition("?>")[2]
        (tmp_path / "a.xmp").write_bytes(text.encode(coding))
        with pytest.raises(DataError, match=r"a.jpg: its keywords cannot be read \(XMP with a document type"):
            photo_keywords(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("segment", "words"),
    [
        (b"\xff\xe1\x00\x29http://ns.adobe.com/xap/1.0/\0<x:xmpmeta", None),
        (b"\xff\xe1\x00\x1fhttp://ns.adobe.com/xap/1.0/\0", ()),
        (b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff", ()),
        ("no records", None),
        ("\x1c\x02\x19\x00\x03dog\x1c\x02", ("dog",)),
    ],
)
def test_damage_in_one_place_leaves_the_others_and_is_told_where_there_are_none(tmp_path, segment, words):
    path = jpeg(tmp_path / "a.jpg", resource(segment.encode()) if isinstance(segment, str) else segment)
    if words is None:
        with pytest.raises(DataError, match="a.jpg: its keywords cannot be read"):
            photo_keywords(path)
    else:
        assert photo_keywords(path) == words
    (tmp_path / "a.jpg.xmp").write_bytes(xmp("bird"))
    assert photo_keywords(path) == (*(words or ()), "bird")


def test_a_file_that_is_no_photo_is_told_unless_one_beside_it_has_keywords(tmp_path):
    (tmp_path / "a.jpg").write_text("nothing")
    with pytest.raises(DataError, match="a.jpg: no image format that Pillow knows"):
        photo_keywords(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="b.jpg: expected an image file, found none"):
        photo_keywords(tmp_path / "b.jpg")
    (tmp_path / "a.xmp").write_bytes(xmp("dog"))
    assert photo_keywords(tmp_path / "a.jpg") == ("dog",)


@pytest.fixture
def photos(tmp_path):
    """Six photos with dog, three of them with Cat, one with holiday alone, one without anything."""
    made = []
    for number in range(8):
        words = ["Dog" if number else "dog"] * (number < 6) + ["Cat"] * (number < 3) + ["holiday"] * (number == 6)
        made.append(jpeg(tmp_path / f"{number}.jpg", iptc(words, "utf-8") if words else b""))
    return made


def test_chosen_keywords_are_classes_in_their_spelling(photos):
    found = read_keywords(photos, ["dog", "cat"])
    assert found.classes == ("dog", "cat")
    assert found.labels == [("cat", "dog")] * 3 + [("dog",)] * 3 + [(), None]
    assert found.counts == {"Dog": 5 + 1, "Cat": 3, "holiday": 1}, "in the commonest spelling"


def test_without_a_choice_frequent_keywords_are_classes(photos):
    assert ENOUGH == 5
    found = read_keywords(photos)
    assert found.classes == ("Dog",) and found.labels[:7] == [("Dog",)] * 6 + [()]
    with pytest.raises(UsageError, match=r"2 photos: none .* 5 photos share \(keywords there: dog 2, Cat 2"):
        read_keywords(photos[:2])
    with pytest.raises(UsageError, match="8 photos: none has a keyword of cow, ox .*name your classes by --classes"):
        read_keywords(photos, ["cow", "ox"])
    with pytest.raises(UsageError, match="1 photo: none .*keywords there: none"):
        read_keywords(photos[7:])


def test_without_a_choice_no_keyword_is_a_class_that_the_table_could_not_hold(tmp_path):
    words = ["cat, wild", "a;b", "x|y", "Background", "cow"]
    photos = [jpeg(tmp_path / f"{number}.jpg", iptc(words, "utf-8")) for number in range(ENOUGH)]
    assert read_keywords(photos).classes == ("cow",)
    assert read_keywords(photos, ["cat, wild"]).labels == [("cat, wild",)] * ENOUGH, "but by a choice"


def test_photos_that_cannot_be_read_are_told(photos):
    photos[6].write_bytes(b"x")
    found = read_keywords(photos, ["dog"])
    assert found.labels[6:] == [None, None]
    assert found.unreadable == (f"{photos[6]}: no image format that Pillow knows; convert it to JPEG or PNG",)
    with pytest.raises(UsageError, match=r"keywords there: none; 1 photo cannot be read, first: .*6.jpg: no image"):
        read_keywords(photos[6:])


def test_every_chosen_keyword_can_be_a_class():
    require_classes(["cat", "DOG"])
    with pytest.raises(UsageError, match='--classes: "dog" is given twice; expected keywords that differ in more than'):
        require_classes(["dog", "DOG"])
    with pytest.raises(UsageError, match='--classes: "Background" cannot be a class'):
        require_classes(["cat", "Background"])


def test_a_slip_of_the_pen_is_told():
    counts = Counter({"dog": 3, "Cat": 2})
    assert strangers(["cat", "Dgo"], counts) == ('no photo has the keyword "Dgo"; did you mean "dog"?',)
