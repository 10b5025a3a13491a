"""What nobody sends who means well: files, forms and bodies, each with the statuses that may answer it."""

from __future__ import annotations

import http.client
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from flatfix.serving.body import MAX_FEEDBACK
from tests.helpers.images import blank_png, colours, encode, grey_forms, greys, png_claiming

OK, LARGE, UNKNOWN, BROKEN = (200,), (413,), (415,), (422,)
ANY = (200, 413, 415, 422)
OCTETS = "application/octet-stream"
SIDE = 60_000


@dataclass(frozen=True)
class Case:
    """A request, and what may answer it."""

    name: str
    body: bytes
    statuses: tuple[int, ...]
    content_type: str | None = OCTETS
    path: str = "/predict"


def truncations(picture: bytes, percent: int) -> list[Case]:
    """Cut a picture off at every so many per cent of its bytes."""
    return [Case(f"{share} %", picture[: len(picture) * share // 100], BROKEN) for share in range(0, 100, percent)]


def mutations(pictures: Sequence[bytes], count: int, seed: int = 7) -> list[Case]:
    """Change bytes, cut pieces out, double pieces, and exchange pieces, somewhere in real pictures."""
    draws = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        data = bytearray(pictures[number % len(pictures)])
        for _ in range(int(draws.integers(1, 9))):
            # Half of the faults where the structure is: at the beginning.
            start = int(draws.integers(0, len(data) if draws.random() < 0.5 else min(700, len(data))))
            length = int(draws.integers(1, 40))
            kind = int(draws.integers(0, 5))
            if kind == 0:
                data[start : start + length] = draws.bytes(length)
            elif kind == 1:
                del data[start : start + length]
            elif kind == 2:
                data[start:start] = data[start : start + length]
            elif kind == 3:
                data[start] ^= 1 << int(draws.integers(0, 8))
            else:
                data[start : start + length] = bytes([int(draws.choice([0, 0x7F, 0xFF]))]) * length
        cases.append(Case(f"mutation {number}", bytes(data), ANY))
    return cases


@cache
def bombs() -> Sequence[Case]:
    """Claim far more pixels than are sent, and send far more than are claimed."""
    jpeg = encode(colours(64, 64), "JPEG")
    progressive = encode(colours(64, 64), "JPEG", progressive=True)
    many_scans = scans(1000)
    claims = {
        "png": png_claiming(SIDE, SIDE),
        "png that is whole": blank_png(SIDE, SIDE),
        "png of most pixels": png_claiming(2**31 - 1, 2**31 - 1),
        "jpeg": _jpeg_claiming(jpeg, SIDE, SIDE),
        "progressive jpeg": _jpeg_claiming(progressive, SIDE, SIDE),
        "jpeg just over the limit": _jpeg_claiming(jpeg, 50_000, 1001),
        "gif": b"GIF89a" + struct.pack("<HH", SIDE, SIDE) + encode(greys(), "GIF")[10:],
        "webp": _webp_claiming(16_383, 16_383),
        "webp of most pixels": _webp_claiming(2**24, 255),
        "tiff": tiff({**_TIFF, 256: SIDE, 257: SIDE}),
        "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
        "ppm": b"P6 60000 60000 255\n",
        # 1 kB, for which Pillow would run a loop of 49 million steps in Python
        "run-length bmp": _run_length_bmp(49_000_000, 1, b"\1\0\0\0\0\1"),
        "plain ppm": b"P3 2000 2000 255\n" + b"0 " * 1000,
        "ppm of 101 levels": b"P5 2000 2000 100\n" + bytes(1000),
    }
    costly = {
        "jpeg of a thousand scans": many_scans,
        "jpeg of a hundred thousand comments": jpeg[:2] + b"\xff\xfe\0\2" * 100_000 + jpeg[2:],
        "jpeg behind a megabyte of fillers": jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        "tiff of a million strips": tiff({**_TIFF, 257: 1_000_000}, (273, struct.pack("<H", 9) * 1_000_000)),
        "tiff of one tile of 900 megapixels": tiff({**_TIFF, 322: 30_000, 323: 30_000, 324: 8, 325: 9}, drop=273),
    }
    inflated = {
        "png whose text inflates to 100 MB": _png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))),
        "png whose profile inflates to 100 MB": _png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))),
        "png whose tags all claim the same megabyte": encode(greys(), exif=_exif_of_one_megabyte()),
    }
    return [
        *(Case(name, data, LARGE) for name, data in claims.items()),
        *(Case(name, data, BROKEN) for name, data in costly.items()),
        *(Case(name, data, (200, 422)) for name, data in inflated.items()),
    ]


def scans(count: int, side: int = 7000) -> bytes:
    """Return a small progressive JPEG whose decoder has to pass over 49 megapixels for each of its scans."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start = data.rfind(b"\xff\xda")
    return data[:-2] + data[start : start + 10] * count + data[-2:]


def polyglots() -> list[Case]:
    """Be a picture and something else."""
    jpeg = encode(colours(64, 64), "JPEG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    script = b"<script>alert(1)</script>"
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(script)) + script
    return [
        Case("jpeg and zip", jpeg + archive.getvalue(), OK),
        Case("jpeg with html in a comment", jpeg[:2] + comment + jpeg[2:], OK),
        Case("jpeg twice", jpeg + jpeg, OK),
        Case("gif and javascript", b"GIF89a=1/*" + encode(greys(), "GIF")[10:] + b"*/;alert(1)", LARGE + BROKEN),
        Case("pdf and jpeg", b"%PDF-1.7\n" + jpeg, UNKNOWN),
        Case("zip and jpeg", archive.getvalue() + jpeg, UNKNOWN),
        Case("html behind the start of a jpeg", b"\xff\xd8\xff\xe0<html>" + script, BROKEN),
        Case("html behind the start of a png", b"\x89PNG\r\n\x1a\n<html>" + script, BROKEN),
        Case("jpeg behind a byte-order mark", b"\xef\xbb\xbf" + jpeg, UNKNOWN),
    ]


def odd_pictures() -> list[Case]:
    """Return whole pictures of kinds that are rare."""
    image = Image.fromarray(colours(64, 48))
    frames = [Image.fromarray(colours(24, 32, seed)) for seed in range(5)]
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.fromarray(greys(64, 48)))
    pictures = {
        "1 x 1": encode(colours(1, 1)),
        "1 x 1 jpeg": encode(colours(1, 1), "JPEG"),
        "65500 x 1": encode(colours(1, 65_500), "JPEG"),
        "1 x 65500": encode(colours(65_500, 1), "JPEG"),
        "7000 x 7000 of one bit": blank_png(7000, 7000),
        "animated gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated png": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "cmyk jpeg": encode(image.convert("CMYK"), "JPEG"),
        "cmyk tiff": encode(image.convert("CMYK"), "TIFF"),
        "ycbcr tiff": encode(image.convert("YCbCr"), "TIFF"),
        "lab tiff": encode(image.convert("LAB"), "TIFF"),
        "palette with alpha": encode(rgba.quantize(16)),
        "alpha webp": encode(rgba, "WEBP"),
        "one bit": encode(image.convert("1")),
        "jpeg of 1 component": encode(image.convert("L"), "JPEG"),
        "optimised progressive jpeg": encode(image, "JPEG", progressive=True, optimize=True, quality=95),
        **grey_forms(),
    }
    return [Case(name, data, OK) for name, data in pictures.items()]


def no_pictures() -> list[Case]:
    """Return what is not a picture at all."""
    draws = np.random.default_rng(0)
    unknown = {
        "text": b"hello",
        "one byte": b"\xff",
        "html": b"<!doctype html><title>x</title>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "pdf": b"%PDF-1.7\n",
        "ico": encode(colours(16, 16), "ICO"),
        "pcx": encode(colours(16, 16), "PCX"),
        "tga": encode(colours(16, 16), "TGA"),
        "sgi": encode(colours(16, 16), "SGI"),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "nothing but zeros": bytes(100_000),
        "noise": draws.bytes(100_000),
        "elf": b"\x7fELF" + bytes(60),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }
    typed = {"text/plain": b"x", "application/json": b"{}", "text/html; charset=utf-8": b"x", "\xff/\xfe": b"x"}
    jpeg = encode(colours(), "JPEG")
    return [
        *(Case(name, data, UNKNOWN) for name, data in unknown.items()),
        *(Case(f"jpeg as {kind}", jpeg, UNKNOWN, kind) for kind in typed),
        Case("no bytes", b"", BROKEN),
        Case("no bytes as jpeg", b"", BROKEN, "image/jpeg"),
        Case("jpeg as any image", jpeg, OK, "image/x-unheard-of"),
        Case("jpeg as nothing", jpeg, OK, None),
        Case("too many bytes", bytes(16_000_001), LARGE),
    ]


def forms() -> list[Case]:
    """Return forms that are broken, strange or too much."""
    png = encode(colours())
    part = b'Content-Disposition: form-data; name="file"; filename="a.png"'
    one = _form(part, png)
    nested = _form(b'Content-Disposition: form-data; name="a"', b"x", boundary=b"inner")
    mixed = part + b"\r\nContent-Type: multipart/mixed; boundary=inner"

    def named(name: bytes) -> bytes:
        return _form(b'Content-Disposition: form-data; name="%b"; filename="x"' % name, png)

    def typed(content_type: str, body: bytes = one, statuses: tuple[int, ...] = BROKEN) -> Case:
        return Case(f"form as {content_type[:40]!r}", body, statuses, content_type)

    return [
        Case("two thousand parts", b"".join(_part(part, png) for _ in range(2000)) + b"--b--\r\n", LARGE, _FORM),
        Case("33 parts of no bytes", b"".join(_part(part, b"") for _ in range(33)) + b"--b--\r\n", LARGE, _FORM),
        Case("two thousand other fields", _part(b'Content-Disposition: form-data; name="x"') * 2000, BROKEN, _FORM),
        Case("a form in a form", _form(mixed, nested), UNKNOWN, _FORM),
        Case("a part with a header of 1 MB", _form(part + b"\r\nX: " + b"x" * 10**6, png), (200, 422), _FORM),
        Case("a part with 20,000 headers", _form(part + b"\r\nX: x" * 20_000, png), (200, 422), _FORM),
        Case("a header name of 1 MB", _form(b"X" * 10**6 + b": x\r\n" + part, png), (200, 422), _FORM),
        Case("a part without headers", b"--b\r\n\r\nx\r\n--b--\r\n", BROKEN, _FORM),
        Case("a part without a name", _form(b"Content-Disposition: form-data", png), BROKEN, _FORM),
        Case("a field of another name", named(b"image"), BROKEN, _FORM),
        Case("a name with a NUL", named(b"file\0"), BROKEN, _FORM),
        Case("a name with a newline", named(b"fi\nle"), BROKEN, _FORM),
        Case("a name with CRLF", named(b"file\r\nX-Evil: 1"), BROKEN, _FORM),
        Case("a name that is not UTF-8", named(b"\xff\xfe"), BROKEN, _FORM),
        Case("a name of 1 MB", named(b"n" * 10**6), BROKEN, _FORM),
        Case("no last boundary", one.removesuffix(b"--b--\r\n"), BROKEN, _FORM),
        Case("cut off in a header", one[:30], BROKEN, _FORM),
        Case("no part", b"--b--\r\n", BROKEN, _FORM),
        Case("no bytes", b"", BROKEN, _FORM),
        Case("a form of zeros", bytes(100_000), BROKEN, _FORM),
        Case("a form of newlines", b"\r\n" * 100_000, BROKEN, _FORM),
        Case("a form of dashes", b"-" * 200_000, BROKEN, _FORM),
        Case("a name that climbs", _form(part.replace(b"a.png", b"../../../../tmp/evil"), png), OK, _FORM),
        Case("an encoded part", _form(part + b"\r\nContent-Transfer-Encoding: base64", png), (200, 415, 422), _FORM),
        Case("a text field called file", _form(b'Content-Disposition: form-data; name="file"', b"x"), UNKNOWN, _FORM),
        Case("a good part and a bad one", _part(part, png) + _form(part, b"x"), UNKNOWN, _FORM),
        Case("the boundary in a picture", _form(part, png + b"\r\n--b\r\n" + png), BROKEN, _FORM),
        typed("multipart/form-data"),
        typed("multipart/form-data; boundary="),
        typed("multipart/form-data; boundary=other"),
        typed("multipart/form-data; boundary=\xff\xfe"),
        typed(f"multipart/form-data; boundary={'b' * 5000}"),
        typed("multipart/mixed; boundary=b", statuses=UNKNOWN),
        typed("application/x-www-form-urlencoded", b"file=x", UNKNOWN),
    ]


def json_bodies() -> list[Case]:
    """Return feedback that nobody means."""
    good = {"request_id": "a" * 32, "label": "ok"}

    def said(**changes: Any) -> bytes:
        return json.dumps({**good, **changes}).encode()

    wrong = {
        "nothing": b"",
        "text": b"hello",
        "a list": b"[]",
        "null": b"null",
        "no label": b'{"request_id": "a"}',
        "lists a hundred thousand deep": b"[" * 100_000,
        "lists a hundred thousand deep that end": b"[" * 100_000 + b"]" * 100_000,
        "objects ten thousand deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "lists as deep as there is room for": b"[" * 8000 + b"]" * 8000,
        "a deep label": b'{"request_id": "a", "label": ' + b"[" * 900 + b"]" * 900 + b"}",
        "a number of a million digits": b'{"request_id": "a", "label": "ok", "index": ' + b"9" * 10**6 + b"}",
        "a number of four thousand digits": said(index=int("9" * 4000)),
        "a number without bounds": b'{"request_id": "a", "label": "ok", "index": 1e999}',
        "NaN": b'{"request_id": "a", "label": "ok", "index": NaN}',
        "a negative index": said(index=-1),
        "half an index": said(index=0.5),
        "an unknown field": said(admin=True),
        "a thousand unknown fields": said(**{f"x{number}": 1 for number in range(1000)}),
        "a hundred thousand unknown fields": said(**{f"x{number}": 1 for number in range(100_000)}),
        "a lone surrogate": b'{"request_id": "a", "label": "\\ud800"}',
        "a lone surrogate in a name": b'{"request_id": "a", "label": "ok", "\\udfff": 1}',
        "a label of 10 kB": said(label="x" * 10_000),
        "a label of 1 MB": said(label="x" * 10**6),
        "a request id of 1 MB": said(request_id="x" * 10**6),
        "a request id that climbs": said(request_id="../../x"),
        "a request id with a newline": said(request_id="a\n"),
        "a label with NUL": said(label="ok\0"),
        "bytes that are not UTF-8": b'{"request_id": "a", "label": "\xff\xfe"}',
        "UTF-16": json.dumps({**good, "label": "?"}).encode("utf-16"),
    }
    cases = [
        Case(name, body, BROKEN if len(body) <= MAX_FEEDBACK else LARGE, "application/json", "/feedback")
        for name, body in wrong.items()
    ]
    doubled = b'{"request_id": "a", "label": "ok", "label": "ok"}'
    return [
        *cases,
        Case("a doubled key", doubled, (202, 422), "application/json", "/feedback"),
        Case("a good label as text", said(), BROKEN, "text/plain", "/feedback"),
        Case("17 MB", b" " * 17_000_000, LARGE, "application/json", "/feedback"),
    ]


def wrong_answers(port: int, cases: Iterable[Case]) -> list[str]:
    """Send each case over one connection; say what is wrong with the answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    found = []
    for case in cases:
        headers = {} if case.content_type is None else {"Content-Type": case.content_type}
        connection.request("POST", case.path, case.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        fault = None if answer.status in case.statuses else f"{answer.status}, not {case.statuses}: {body[:300]!r}"
        fault = fault or (problem_fault(answer, body) if answer.status >= 400 else None)
        found += [f"{case.path} {case.name}: {fault}"] if fault else []
    connection.close()
    return found


def problem_fault(answer: http.client.HTTPResponse, body: bytes) -> str | None:
    """Return what keeps an answer from being an error of the one shape (RFC 9457)."""
    if answer.getheader("Content-Type") != "application/problem+json":
        return f"answered as {answer.getheader('Content-Type')}"
    said = json.loads(body)
    if set(said) != {"type", "title", "status", "detail", "request_id"} or said["status"] != answer.status:
        return f"has the members {said}"
    if said["request_id"] != answer.getheader("X-Request-ID"):
        return "has two request ids"
    return f"has {len(body)} bytes" if len(body) > 4000 else None


_FORM = "multipart/form-data; boundary=b"
_TIFF = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}


def tiff(tags: dict[int, int], many: tuple[int, bytes] | None = None, drop: int | None = None) -> bytes:
    """Return a TIFF of these numbers, and one tag of many 16-bit ones."""
    chosen = {tag: number for tag, number in tags.items() if tag not in (drop, many[0] if many else None)}
    num_tags = len(chosen) + bool(many)
    end = 8 + 2 + 12 * num_tags + 4
    rows = {tag: struct.pack("<HHII", tag, 4, 1, number) for tag, number in chosen.items()}
    if many:
        rows[many[0]] = struct.pack("<HHII", many[0], 3, len(many[1]) // 2, end)
    directory = b"".join(rows[tag] for tag in sorted(rows))
    return b"II*\0" + struct.pack("<IH", 8, num_tags) + directory + bytes(4) + (many[1] if many else b"")


def _jpeg_claiming(jpeg: bytes, width: int, height: int) -> bytes:
    place = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: place + 5] + struct.pack(">HH", height, width) + jpeg[place + 9 :]


def _webp_claiming(width: int, height: int) -> bytes:
    frame = bytes(6) + bytes([3, 0, 0, 3, 0, 0]) + bytes(4) + encode(colours(4, 4), "WEBP")[12:]
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunks = {b"VP8X": bytes([2, 0, 0, 0]) + sides, b"ANIM": bytes(6), b"ANMF": frame}
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in chunks.items())
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _run_length_bmp(width: int, height: int, codes: bytes) -> bytes:
    start = 14 + 40 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    return b"BM" + struct.pack("<III", start + len(codes), 0, start) + head + bytes(1024) + codes


def _png_with(kind: bytes, data: bytes) -> bytes:
    png = encode(greys())
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def _exif_of_one_megabyte() -> bytes:
    rows = b"".join(struct.pack("<HHII", 1000 + number, 7, 1_000_000, 14 + 12 * 2000) for number in range(2000))
    return b"II*\0" + struct.pack("<IH", 8, 2000) + rows + bytes(4 + 1_000_000)


def _part(headers: bytes, data: bytes = b"x") -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + data + b"\r\n"


def _form(headers: bytes, data: bytes, boundary: bytes = b"b") -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (boundary, headers, data, boundary)
