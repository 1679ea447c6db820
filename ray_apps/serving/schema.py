"""The HTTP contract: requests with their limits, and answers. Errors have one shape, in errors.py.

Knows pydantic; does not know models, Ray or how an answer is found.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, model_validator

from lrem.errors import FilterError, ItemError
from lrem.index.filters import parse
from lrem.index.payload import MAX_ID, as_json

MAX_QUERIES = 64  # of one search: the latency of all is that of the slowest
MAX_INPUTS = 2048  # of one embeddings request, as OpenAI's
MAX_CHARACTERS = 2000
MAX_K = 1000
MAX_REASONINGS = 16  # of one query
MAX_ITEMS = 1000  # of one write
ALIAS = "lrem"  # a name for whatever model is served, for clients that must send one

Reason = Literal["auto", "always", "never"]


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank: write at least one word")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters: send at most {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a surrogate pair: send whole Unicode characters")
    return text


def _check_filter(given: dict[str, Any]) -> dict[str, Any]:
    try:
        parse(given)
    except FilterError as error:  # pydantic says itself that it is the filter
        raise ValueError(str(error).removeprefix("filter").lstrip(".: ")) from error
    return given


def _check_id(item_id: str) -> str:
    try:
        as_json(item_id, {})
    except ItemError as error:
        raise ValueError(str(error)) from error
    return item_id


def _inputs(value: Any) -> list[str] | list[list[int]]:
    """What OpenAI's clients send: a text, texts, token ids of a text, or of several."""
    rows = [value] if isinstance(value, str) or _is_tokens(value) else value
    if not isinstance(rows, list) or (not all(isinstance(row, str) for row in rows) and not all(map(_is_tokens, rows))):
        raise ValueError("send a string, a list of strings, a list of token ids, or a list of lists of token ids")
    if not 1 <= len(rows) <= MAX_INPUTS:
        raise ValueError(f"has {len(rows)} inputs: send 1 to {MAX_INPUTS}")
    if any(not isinstance(row, str) and len(row) > MAX_CHARACTERS for row in rows):
        raise ValueError(f"send at most {MAX_CHARACTERS} token ids of a text")
    if isinstance(value, str):
        return [_check_text(value)]
    return TEXTS.validate_python(rows) if isinstance(rows[0], str) else rows


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)


NOT_BLANK = {"minLength": 1, "maxLength": MAX_CHARACTERS, "pattern": r"\S"}  # for who reads the schema; checked here
Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra=NOT_BLANK)]
TEXTS = TypeAdapter(list[Text])  # its errors say which of them is wrong
Inputs = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Where = Annotated[dict[str, Any], AfterValidator(_check_filter)]
ItemId = Annotated[str, AfterValidator(_check_id), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID})]


class Body(BaseModel):
    """A JSON object closed to unknown fields: a misspelt option must not be silently ignored."""

    model_config = ConfigDict(extra="forbid")


class SearchRequest(Body):
    """Body of `POST /v1/search`: one `query`, or up to 64 `queries`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": ["query"]}, {"required": ["queries"]}]}
    )

    query: Text | None = None
    queries: Annotated[list[Text], Field(min_length=1, max_length=MAX_QUERIES)] | None = None
    k: int = Field(10, ge=1, le=MAX_K, description="Items for each query.")
    reason: Reason = Field("auto", description="Whether to think before embedding; auto: the model decides.")
    reasonings: int = Field(1, ge=1, le=MAX_REASONINGS, description="More than one: the mean of their embeddings.")
    dimensions: int | None = Field(None, ge=1, description="Compare the first so many numbers of the vectors alone.")
    complete: bool = Field(False, description="Rather an error (503) than an answer without some shards.")
    filter: Where | None = Field(
        None,
        description='Which items may be found, by their payload: `{"price": {"$lt": 20}}`, see docs/vector_index.md.',
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "SearchRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError("send either 'query' (a string) or 'queries' (a list of strings)")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries, whichever way they came."""
        return self.queries or [str(self.query)]


class Item(BaseModel):
    """A found item: `score` is the cosine, `payload` the catalogue's other columns."""

    item_id: str
    score: float
    payload: dict[str, Any]


class Result(BaseModel):
    """The answer to one query, best item first.

    `reasoning` is null where the query was embedded as it is; `reasonings` has all where several were asked for.
    """

    query: str
    reasoning: str | None
    reasonings: list[str] | None = None
    items: list[Item]


class SearchAnswer(BaseModel):
    """`model` is the fingerprint; `timings_ms` holds route, reason, embed, search and total, in milliseconds.

    `degraded`: thinking was asked for, the reasoner is down or was late, and the queries were embedded as they are.
    `missing_shards`: these parts of the index did not answer; empty where the answer is complete.
    """

    model: str
    degraded: bool = False
    missing_shards: list[int] = []
    results: list[Result]
    timings_ms: dict[str, float]


class EmbeddingsRequest(Body):
    """Body of `POST /v1/embeddings`: OpenAI's, with `input_type` and `reason` beside it."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="A length that the model was trained to be cut to.")
    user: str | None = None
    input_type: Literal["query", "item"] = "query"
    reason: Reason | None = Field(None, description="For queries: 'auto' unless given. Items are never reasoned.")

    @model_validator(mode="after")
    def _items_do_not_reason(self) -> "EmbeddingsRequest":
        if self.input_type == "item" and self.reason in ("auto", "always"):
            raise ValueError("reason: items are embedded without thinking, leave 'reason' out or send 'never'")
        return self


class Embedding(BaseModel):
    """One vector: floats, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Token ids: `prompt_tokens` of the rendered inputs, `total_tokens` with what the model thought."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's list of embeddings, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    degraded: bool = False


class ItemIn(BaseModel):
    """An item to write: its id, its title, which is embedded, and any other fields, its payload."""

    model_config = ConfigDict(extra="allow")

    item_id: ItemId
    title: Text

    @model_validator(mode="after")
    def _storable(self) -> "ItemIn":
        try:
            as_json(self.item_id, self.payload)
        except ItemError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def payload(self) -> dict[str, Any]:
        """Everything but the id."""
        return {"title": self.title} | (self.model_extra or {})


class Items(Body):
    """Body of `PUT /v1/items`: written all, or none if one of them cannot be; of one id the last counts."""

    items: Annotated[list[ItemIn], Field(min_length=1, max_length=MAX_ITEMS)]


class Written(BaseModel):
    """How many items were written, and how many of them were new."""

    written: int
    new: int


class BulkRow(BaseModel):
    """What became of a line, counted from 1."""

    line: int
    item_id: str | None = None
    error: str | None = None


class BulkAnswer(BaseModel):
    """Every line of a bulk write; those with an `error` were not written, the others were, durably.

    Lines of a shard that is down say so; where that is every line, the answer is a 503 instead.
    """

    written: int
    failed: int
    rows: list[BulkRow]


class ItemIds(Body):
    """Body of `POST /v1/items/delete`."""

    item_ids: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_ITEMS)]


class Deleted(BaseModel):
    """How many of the items were there."""

    deleted: int


class CountRequest(Body):
    """Body of `POST /v1/items/count`."""

    filter: Where | None = None


class Count(BaseModel):
    """How many items match."""

    count: int


class StoredItem(BaseModel):
    """An item as it is kept."""

    item_id: str
    payload: dict[str, Any]


class ItemsPage(BaseModel):
    """Items in the order of their ids; `after` asks for the next page, null where there is none."""

    items: list[StoredItem]
    after: str | None


class Model(BaseModel):
    """A served model: the id is the fingerprint, `created` the start of the application (Unix seconds)."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = ALIAS


class Models(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """What a load balancer asks for."""

    status: Literal["ok"] = "ok"
    model: str


class Ready(BaseModel):
    """Whether every part answers; `missing` names those that do not."""

    ready: bool
    missing: list[str] = []
