"""The HTTP contract: requests with their limits, and responses. The shape of errors is in errors.py."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, model_validator

from lrem.data.catalogue_limits import MAX_ID, MAX_TITLE, is_blank
from lrem.errors import FilterError, ItemError
from lrem.index.filters import compile_filter
from lrem.index.payload import encode_payload
from ray_apps.serving.request_body import RequestBody

MAX_QUERIES = 64  # of one search: the latency of all is that of the slowest
MAX_INPUTS = 2048  # of one embeddings request, as at OpenAI
MAX_CHARACTERS = MAX_TITLE  # of a query too
MAX_K = 1000
MAX_REASONINGS = 16  # of one query
MAX_ITEMS = 1000  # of one write
MODEL_ALIAS = "lrem"  # names whatever model is served, for clients that must send a model

Reason = Literal["auto", "always", "never"]
InputType = Literal["query", "item"]
ALIASES: dict[str, InputType | None] = {MODEL_ALIAS: None, "lrem-query": "query", "lrem-item": "item"}


def _check_text(text: str) -> str:
    if is_blank(text):
        raise ValueError("is blank: write at least one word")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters: send at most {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("contains an unpaired surrogate: send whole Unicode characters")
    return text


def _check_filter(where: dict[str, Any]) -> dict[str, Any]:
    try:
        compile_filter(where)
    except FilterError as error:  # pydantic adds the field's name, `filter`
        raise ValueError(str(error).removeprefix("filter").lstrip(".: ")) from error
    return where


def _check_id(item_id: str) -> str:
    try:
        encode_payload(item_id, {})
    except ItemError as error:
        raise ValueError(str(error)) from error
    return item_id


def _parse_inputs(value: Any) -> list[str] | list[list[int]]:
    """Return a list of what OpenAI's clients may send: a text, several texts, token ids of a text, or of several."""
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


# documents what _check_text checks
NOT_BLANK = {"minLength": 1, "maxLength": MAX_CHARACTERS, "pattern": r"\S"}
Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra=NOT_BLANK)]
TEXTS = TypeAdapter(list[Text])  # its errors name the index of the invalid text
Inputs = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_parse_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Where = Annotated[dict[str, Any], AfterValidator(_check_filter)]
ItemId = Annotated[str, AfterValidator(_check_id), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID})]


class SearchRequest(RequestBody):
    """Body of `POST /v1/search`: one `query`, or up to 64 `queries`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": ["query"]}, {"required": ["queries"]}]}
    )

    query: Text | None = None
    queries: Annotated[list[Text], Field(min_length=1, max_length=MAX_QUERIES)] | None = None
    k: int = Field(10, ge=1, le=MAX_K, description="Items for each query.")
    reason: Reason = Field("auto", description="Whether to think before embedding; auto: the model decides.")
    reasonings: int = Field(1, ge=1, le=MAX_REASONINGS, description="Several: their embeddings are averaged.")
    dimensions: int | None = Field(None, ge=1, description="Compare only this many leading numbers of the vectors.")
    complete: bool = Field(False, description="Answer 503 if a shard is missing, not with partial results.")
    filter: Where | None = Field(
        None,
        description='Restricts the results by their payload: `{"price": {"$lt": 20}}`, see docs/vector_index.md.',
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "SearchRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError("send either 'query' (a string) or 'queries' (a list of strings)")
        return self

    @property
    def texts(self) -> list[str]:
        """Return the queries, from either field."""
        return self.queries or [str(self.query)]


class SearchItem(BaseModel):
    """An item of a result: `score` is the cosine, `payload` the catalogue's other columns."""

    item_id: str
    score: float
    payload: dict[str, Any]


class SearchResult(BaseModel):
    """The items for one query, best first.

    `reasoning` is null if the query was embedded without thinking; `reasonings` has all if several were requested.
    """

    query: str
    reasoning: str | None
    reasonings: list[str] | None = None
    items: list[SearchItem]


class SearchResponse(BaseModel):
    """`model` is the fingerprint; `timings_ms` holds route, reason, embed, search and total, in milliseconds.

    `degraded`: the reasoner is down or was late, and the queries were embedded without the requested thinking.
    `missing_shards`: numbers of the index shards that did not answer; empty if the results are complete.
    """

    model: str
    degraded: bool = False
    missing_shards: list[int] = []
    results: list[SearchResult]
    timings_ms: dict[str, float]


class EmbeddingsRequest(RequestBody):
    """Body of `POST /v1/embeddings`: OpenAI's, with the additional fields `input_type` and `reason`."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Shorten the vectors to a length the model was trained for.")
    user: str | None = None
    input_type: InputType | None = Field(None, description="By default what `model` says, otherwise 'query'.")
    reason: Reason | None = Field(None, description="For queries, by default 'auto'. Items do not think.")

    @property
    def kind(self) -> InputType:
        """Return what the inputs are: `input_type`, else what the alias in `model` says."""
        return self.input_type or ALIASES.get(self.model or MODEL_ALIAS) or "query"

    @model_validator(mode="after")
    def _items_do_not_reason(self) -> "EmbeddingsRequest":
        implied = ALIASES.get(self.model or MODEL_ALIAS)
        if implied and self.input_type not in (None, implied):
            raise ValueError(f"input_type: '{self.input_type}' contradicts the model '{self.model}', leave one out")
        if self.kind == "item" and self.reason in ("auto", "always"):
            raise ValueError("reason: items are embedded without thinking, leave 'reason' out or send 'never'")
        return self


class EmbeddingRow(BaseModel):
    """One vector: floats, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class TokenUsage(BaseModel):
    """Numbers of token ids: `prompt_tokens` of the rendered inputs, `total_tokens` with their reasonings."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's list of embeddings, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: TokenUsage
    degraded: bool = False


class ItemInput(BaseModel):
    """An item to write: its id, its title, which is embedded, and any other fields as payload."""

    model_config = ConfigDict(extra="allow")

    item_id: ItemId
    title: Text

    @model_validator(mode="after")
    def _storable(self) -> "ItemInput":
        try:
            encode_payload(self.item_id, self.payload)
        except ItemError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def payload(self) -> dict[str, Any]:
        """Return all fields but the id and those that are null."""
        more = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        return {"title": self.title} | more


class UpsertRequest(RequestBody):
    """Body of `PUT /v1/items`. One invalid item refuses all; the last item with an id wins."""

    items: Annotated[list[ItemInput], Field(min_length=1, max_length=MAX_ITEMS)]


class UpsertResponse(BaseModel):
    """How many items were written, and how many of them were new."""

    written: int
    new: int


class BulkLine(BaseModel):
    """The outcome of one line; lines are counted from 1."""

    line: int
    item_id: str | None = None
    error: str | None = None


class BulkResponse(BaseModel):
    """The outcome of every line of a bulk write: those with an `error` were not written, the others durably.

    Lines of a shard that is down name it; if that is every line, the response is a 503 instead.
    """

    written: int
    failed: int
    rows: list[BulkLine]


class DeleteRequest(RequestBody):
    """Body of `POST /v1/items/delete`."""

    item_ids: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_ITEMS)]


class DeleteResponse(BaseModel):
    """How many of the items existed."""

    deleted: int


class CountRequest(RequestBody):
    """Body of `POST /v1/items/count`."""

    filter: Where | None = None


class CountResponse(BaseModel):
    """How many items match."""

    count: int


class StoredItem(BaseModel):
    """An item as it is stored."""

    item_id: str
    payload: dict[str, Any]


class ScrollResponse(BaseModel):
    """Items in the order of their ids; send `after` to get the next page, null if there is none."""

    items: list[StoredItem]
    after: str | None


class ServedModel(BaseModel):
    """A served model: the id is the fingerprint, `created` the start of the application (Unix seconds)."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = MODEL_ALIAS


class ModelsResponse(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class HealthResponse(BaseModel):
    """For load balancers: the application answers."""

    status: Literal["ok"] = "ok"
    model: str


class ReadinessResponse(BaseModel):
    """Whether every deployment answers; `missing` names those that do not."""

    ready: bool
    missing: list[str] = []
