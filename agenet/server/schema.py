"""What clients send and receive, as pydantic models, and their description in OpenAPI."""

import base64
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    EncodedBytes,
    EncoderProtocol,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError

from agenet import __version__
from agenet.errors import printable
from agenet.faces.ages import split_groups
from agenet.server.limits import Refused

_TEMPLATE = "#/components/schemas/{model}"
_LONGEST = 255  # characters of a name


class _Strict(BaseModel, extra="forbid"):
    """Refuses fields that it does not know."""


class Options(_Strict):
    """The query of `POST /v1/predict`."""

    model: str | None = Field(
        None,
        max_length=_LONGEST,
        description='Name of the network, by default "default" or the first.',
    )
    age_groups: str = Field(
        "",
        max_length=1000,
        description="Predict these age groups, in years: 0-17,18-64,65-100.",
    )
    distribution: bool = Field(False, description="Return the probability of each year, too.")
    cropped: bool = Field(False, description="Each image is one face: do not look for faces.")
    min_score: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Least score of the detector."
    )
    min_size: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Least width and height of a face, in pixels."
    )
    max_faces: int | None = Field(
        None, ge=1, description="Predict the largest faces of each image, up to this number."
    )

    @property
    def groups(self) -> tuple[str, ...]:
        return split_groups(self.age_groups)


class _Base64(EncoderProtocol):
    """As RFC 4648 has it, with line breaks; pydantic's own skips whatever is not base64."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data.translate(None, b"\r\n"), validate=True)
        except ValueError:
            raise PydanticCustomError("base64", "not base64") from None

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> str:
        return "base64"


class JsonImage(_Strict):
    """An image in base64, or the address of one where the server allows that."""

    name: str | None = Field(None, max_length=_LONGEST, description="Returned as `file`.")
    data: Annotated[bytes, EncodedBytes(_Base64)] | None = Field(
        None, description="Content of the file in base64."
    )
    url: str | None = Field(None, max_length=2000, description="http:// or https://")

    @model_validator(mode="after")
    def _one_of_both(self) -> "JsonImage":
        if (self.data is None) == (self.url is None):
            raise ValueError("give either data or url")
        return self


class JsonImages(_Strict):
    """Images as JSON."""

    images: list[JsonImage] = Field(min_length=1)


class FaceAnswer(_Strict):
    """A face; null for what the network does not predict."""

    box: tuple[float, float, float, float] = Field(
        description="Left, top, right and bottom in pixels of the image, upright."
    )
    score: float = Field(description="Confidence of the detector.")
    age: float | None = Field(description="In whole years, inside `age_group`.")
    age_interval: tuple[int, int] | None = Field(
        description="First and last year of the shortest interval around `age` that holds 80 % of "
        "the probability."
    )
    age_group: str | None
    age_probabilities: dict[str, float] | None = Field(description="By age group.")
    gender: str | None = Field(description="male or female, as annotators saw it.")
    gender_probability: float | None
    age_distribution: list[float] | None = Field(
        None, description="The probability of each year from 0 to 100, with `distribution`."
    )
    landmarks: list[tuple[float, float]] | None = Field(
        description="Left and right eye as seen in the image, tip of the nose, left and right "
        "corner of the mouth."
    )


class ImageAnswer(_Strict):
    """An image: its size and faces, or why it could not be read."""

    file: str | None = Field(description="The name that the client gave.")
    width: int | None = None
    height: int | None = None
    faces: list[FaceAnswer] | None = Field(None, description="Largest first.")
    error: str | None = None


class Answer(_Strict):
    """The answer to `POST /v1/predict`: the images in their order."""

    model: str
    images: list[ImageAnswer]


class Models(_Strict):
    """The answer to `GET /v1/models`: names for `model`."""

    agenet: str = Field(description="Version of the server.")
    models: list[str]
    default: str


class Problem(_Strict):
    """Why a request was not answered."""

    error: str


def parse(model: type[Any], value: Any) -> Any:
    """Validates a client's query (a mapping) or body (JSON as bytes).

    Raises:
        Refused: it is not valid; the answer names the place, but does not repeat the value.
    """
    try:
        if isinstance(value, bytes):
            return model.model_validate_json(value)
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        text = f"{place}: {message}" if place else message
        raise Refused(422, printable(text, 300)) from None


def describe(title: str = "agenet") -> dict[str, Any]:
    """The OpenAPI 3.1 description of the server."""
    _, shared = models_json_schema(
        [
            (JsonImages, "validation"),
            (Answer, "serialization"),
            (Models, "serialization"),
            (Problem, "serialization"),
        ],
        ref_template=_TEMPLATE,
    )
    query = Options.model_json_schema()["properties"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {
        "schema": {
            "type": "object",
            "additionalProperties": {"type": "string", "format": "binary"},
        }
    }
    statuses = {
        400: "The host of the request is not this server's.",
        401: "The token is missing or wrong.",
        403: "The page that sent the request may not.",
        408: "The body did not arrive in time.",
        413: "The body is too large, or holds too many images.",
        415: "The body is of another type.",
        422: "No image could be read (the answer says why for each), or an option is wrong.",
        429: "The server is busy; Retry-After says after how many seconds to try again.",
        503: "The answer was not ready in time.",
    }
    predict = {
        "summary": "Predict age and gender of the faces in images",
        "operationId": "predict",
        "security": [{"token": []}, {}],
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": schema.pop("description"),
                "schema": schema,
            }
            for name, schema in query.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": files,
                "image/*": binary,
                "application/json": {"schema": {"$ref": _TEMPLATE.format(model="JsonImages")}},
            },
        },
        "responses": {"200": _response("At least one image could be read.", "Answer")}
        | {
            str(status): _response(text, "Problem" if status != 422 else "Answer", "Problem")
            for status, text in statuses.items()
        },
    }
    plain = {"200": {"description": "OK", "content": {"text/plain": {}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/models": {
                "get": {
                    "summary": "The networks",
                    "responses": {"200": _response("OK", "Models")},
                    "security": [{"token": []}, {}],
                }
            },
            "/healthz": {"get": {"summary": "Whether the server runs", "responses": plain}},
            "/readyz": {"get": {"summary": "Whether it takes requests", "responses": plain}},
            "/metrics": {"get": {"summary": "Metrics for Prometheus", "responses": plain}},
        },
        "components": {
            "schemas": shared["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _response(description: str, *models: str) -> dict[str, Any]:
    references = [{"$ref": _TEMPLATE.format(model=model)} for model in dict.fromkeys(models)]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
