"""What the server answers, as clients read it: the forms of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

REQUEST_ID = "9f0c1d2e3b4a5968778695a4b3c2d1e0"

ID_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"

RequestId = Annotated[
    str,
    Field(
        description="Names this request in logs and records; send your own as the header `X-Request-ID`.",
        examples=[REQUEST_ID],
        pattern=ID_PATTERN,
    ),
]
ModelVersion = Annotated[str, Field(description="Version of the registered model that answered.", examples=["7"])]
Probability = Annotated[float, Field(ge=0, le=1, description="Calibrated, 0 to 1.", examples=[0.982])]


class Prediction(BaseModel):
    """What the model says of one picture."""

    class_: Annotated[str, Field(alias="class", description="Class that is decided.", examples=["defective"])]
    decision: Annotated[
        str,
        Field(
            description="The class, or `review` where the model is so unsure that a person should look.",
            examples=["defective"],
        ),
    ]
    probability: Probability
    probabilities: Annotated[
        dict[str, float],
        Field(description="Of every class; they sum up to 1.", examples=[{"ok": 0.018, "defective": 0.982}]),
    ]


class Predicted(BaseModel):
    """The answer of `POST /predict`: a prediction for each picture, in their order."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: RequestId
    model_version: ModelVersion
    predictions: list[Prediction]


class Explained(BaseModel):
    """The answer of `POST /explain`: where in the picture the decided class was seen."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: RequestId
    model_version: ModelVersion
    class_: Annotated[str, Field(alias="class", description="Class that is decided.", examples=["defective"])]
    probability: Probability
    heat: Annotated[
        list[list[float]],
        Field(
            description="Rows from top to bottom: how much each part speaks for the class, 0 to 1 for the most.",
            examples=[[[0.0, 0.2], [0.4, 1.0]]],
        ),
    ]
    drop: Annotated[float, Field(description="What hiding a part takes from the probability at most.", examples=[0.4])]
    box: Annotated[
        list[float],
        Field(
            description="Left, top, right and bottom of what the heat covers, as parts of the upright picture.",
            min_length=4,
            max_length=4,
            examples=[[0.0, 0.0, 1.0, 1.0]],
        ),
    ]


class Health(BaseModel):
    """The answer of `GET /health`."""

    model_config = ConfigDict(protected_namespaces=())

    status: Annotated[
        str,
        Field(
            description="`ok`; `degraded`: answers, but not as the registry says now; `starting`: no model yet; "
            "`lost`: the model can no longer answer.",
            examples=["ok"],
        ),
    ]
    model: Annotated[str | None, Field(description="Registered model.", examples=["tires"])]
    model_version: Annotated[str | None, Field(description="Its version that answers.", examples=["7"])]
    alias: Annotated[str, Field(description="Alias that is followed.", examples=["production"])]
    found_by: Annotated[
        str | None,
        Field(
            description="How the version was found: by the alias, or, where that is empty, `staging`, `newest`, or "
            "`last good`, which is what was served before while the registry does not answer.",
            examples=["production"],
        ),
    ]
    runtime: Annotated[str | None, Field(examples=["openvino"])]
    precision: Annotated[str | None, Field(examples=["bf16"])]
    since: Annotated[str | None, Field(description="When it began to answer, UTC.", examples=["2026-11-22T12:00:00Z"])]
    reasons: Annotated[list[str], Field(description="Why the status is not `ok`.")]


class Feedback(BaseModel):
    """What `POST /feedback` takes: the true class of a picture that was answered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: RequestId
    label: Annotated[
        str, Field(description="The true class, as in `/info`.", min_length=1, max_length=200, examples=["ok"])
    ]
    index: Annotated[int, Field(description="Which picture of the request, from 0.", ge=0, lt=10_000)] = 0


class Received(BaseModel):
    """The answer of `POST /feedback`."""

    request_id: RequestId


class Reloaded(BaseModel):
    """The answer of `POST /admin/reload`."""

    model_config = ConfigDict(protected_namespaces=())

    outcome: Annotated[
        str,
        Field(
            description="`swapped` or `unchanged`; `under_way` where it takes longer than a request may; "
            "anything else says why the model of before still answers.",
            examples=["swapped"],
        ),
    ]
    reason: Annotated[str | None, Field(description="Why, where there is more to say.", examples=[None])]
    model_version: Annotated[str | None, Field(description="Version that answers now.", examples=["8"])]


class ProblemDetails(BaseModel):
    """Every error, as RFC 9457 describes it (`application/problem+json`)."""

    type: Annotated[str, Field(description="Names the kind of error.")]
    title: Annotated[str, Field(description="The kind of error in words.", examples=["Not a picture"])]
    status: Annotated[int, Field(examples=[415])]
    detail: Annotated[str, Field(description="What was wrong here, and what to do.")]
    request_id: RequestId


def problem_content(example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the `content` of an error in the OpenAPI document."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {"application/problem+json": {"schema": schema, **({"example": example} if example else {})}}
