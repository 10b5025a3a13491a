"""What a request brings: pictures, or feedback."""

from __future__ import annotations

import logging

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from flatfix.serving.answers import Feedback
from flatfix.serving.problems import Problem

ONE, SEVERAL = FIELDS = ("file", "files")
FORM = b"multipart/form-data"
# The last is what curl --data-binary calls whatever it sends.
RAW = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")
MAX_TYPE = 1024  # characters of Content-Type
MAX_FEEDBACK = 16_384  # bytes: parsed on the event loop, which a megabyte of wrong fields would hold up for a second
EXPECTED = "Send each picture as the form field `file` (multipart/form-data), or one picture as the body (image/jpeg)."

# It warns of each broken form: clients would write the log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


async def pictures_of(request: Request, *, max_files: int) -> list[bytes]:
    """Return the bytes of each picture that a request brings, in their order; nothing touches the disk.

    A form (RFC 7578) has one in each field `file` or `files`. Any other body is one picture, when its type is an
    image's, `application/octet-stream`, that of curl or not said. Whether they are pictures is for the decoder to say.

    Raises:
        Problem: 413 for too many pictures, 415 for another type of body, 422 for a form that is broken or has another
            field, and where there is no picture.
    """
    written = request.headers.get("content-type", "")
    media_type, options = parse_options_header(written[:MAX_TYPE])
    if media_type == FORM:
        return await _of_form(request, options.get(b"boundary", b""), max_files)
    if media_type not in RAW and not media_type.startswith(b"image/"):
        shown = media_type[:60].decode("latin-1")
        detail = f"The body is {shown!r}, by its Content-Type. {EXPECTED}"
        raise Problem(415, "Not a picture", detail, reason="not_an_image")
    picture = await request.body()
    if not picture:
        raise _invalid(f"The body is empty. {EXPECTED}")
    return [picture]


async def feedback_of(request: Request) -> Feedback:
    """Return the feedback that a request brings, as JSON.

    Raises:
        Problem: 413 for more than `MAX_FEEDBACK` bytes, 422 for another type of body.
        RequestValidationError: for JSON that is broken or says something else.
    """
    media_type, _ = parse_options_header(request.headers.get("content-type", "")[:MAX_TYPE])
    if media_type != b"application/json":
        raise _invalid("Feedback is JSON, and has the header Content-Type: application/json.")
    written = bytearray()
    async for piece in request.stream():
        written += piece
        if len(written) > MAX_FEEDBACK:
            raise Problem(413, "Body too large", f"Feedback has {MAX_FEEDBACK:,} bytes at most.", reason="too_large")
    try:
        return Feedback.model_validate_json(bytes(written))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from error


async def _of_form(request: Request, boundary: bytes, max_files: int) -> list[bytes]:
    if not boundary:
        raise _invalid("The Content-Type of the form has no boundary: leave it to the client's library to set it.")
    form = _Form(max_files)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.extend_name,
                "on_header_value": form.extend_value,
                "on_header_end": form.end_header,
                "on_headers_finished": form.end_headers,
                "on_part_data": form.extend_part,
                "on_part_end": form.end_part,
            },
        )
        async for piece in request.stream():
            parser.write(piece)
    except FormParserError as error:
        raise _invalid(f"The form is broken ({error}).") from error
    if parser.state is not MultipartState.END:
        raise _invalid("The form is broken: it ends before its last boundary.")
    if not form.pictures:
        raise _invalid(f"The form has no field. {EXPECTED}")
    return form.pictures


class _Form:
    """Collects what a parser finds in a form."""

    def __init__(self, max_files: int) -> None:
        self.pictures: list[bytes] = []
        self._max_files = max_files
        self.begin_part()

    def begin_part(self) -> None:
        self._pieces: list[bytes] = []
        self._name = self._value = self._disposition = b""

    def extend_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def end_headers(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name")
        if name is None:
            raise _invalid(f"A part of the form has no name. {EXPECTED}")
        field = name[:60].decode("utf-8", "replace")
        if field not in FIELDS:
            raise _invalid(f"The form has a field {field!r}, which means nothing here. {EXPECTED}")
        if len(self.pictures) == self._max_files:
            number = "one picture" if self._max_files == 1 else f"{self._max_files} pictures (limits.files)"
            detail = f"At most {number} can be sent here at once."
            raise Problem(413, "Too many pictures", detail, reason="too_many_files")

    def extend_part(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def end_part(self) -> None:
        self.pictures.append(b"".join(self._pieces))
        self._pieces = []


def _invalid(detail: str) -> Problem:
    return Problem(422, "Invalid request", detail, reason="invalid_request")
