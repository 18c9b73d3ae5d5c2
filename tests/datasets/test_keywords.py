import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from afactl.datasets.keywords import ENOUGH, photo_keywords, read_keywords
from afactl.errors import UsageError

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


def test_what_is_damaged_or_dangerous_gives_no_keywords(tmp_path):
    path = jpeg(tmp_path / "a.jpg")
    bomb = b'<!DOCTYPE a [<!ENTITY b "boo">]>' + xmp("&b;")
    for packet in (b"<x:xmpmeta", b"\xff\xfe\x00", b"", bomb):
        (tmp_path / "a.xmp").write_bytes(packet)
        assert photo_keywords(path) == ()
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    assert photo_keywords(tmp_path / "b.jpg") == ()
    cut = jpeg(tmp_path / "c.jpg", iptc(["dog"], "utf-8"))
    cut.write_bytes(cut.read_bytes()[:40])
    assert isinstance(photo_keywords(cut), tuple)


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
    assert found.counts == {"dog": 6, "Cat": 3, "holiday": 1}


def test_without_a_choice_frequent_keywords_are_classes(photos):
    assert ENOUGH == 5
    found = read_keywords(photos)
    assert found.classes == ("dog",) and found.labels[:7] == [("dog",)] * 6 + [()]
    with pytest.raises(UsageError, match=r"2 photos: none .* 5 photos share \(keywords there: dog 2, Cat 2"):
        read_keywords(photos[:2])
    with pytest.raises(UsageError, match="8 photos: none has a keyword of cow, ox .*name your classes by --classes"):
        read_keywords(photos, ["cow", "ox"])
    with pytest.raises(UsageError, match="1 photo: none .*keywords there: none"):
        read_keywords(photos[7:])
