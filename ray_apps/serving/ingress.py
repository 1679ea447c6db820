"""The ingress: the HTTP routes of the service. Each checks a request, calls the live backend and shapes the response.

POST /v1/search → QueryPath.encode → QueryPath.search → responses.search_result
"""

import time
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve

from lrem.config import ServeConfig
from lrem.data.vectors import truncate
from ray_apps.serving import schema
from ray_apps.serving.admission import BodyLimitMiddleware, limit_requests, require_reader, require_writer
from ray_apps.serving.auth import Scope
from ray_apps.serving.calls import call_required
from ray_apps.serving.deadline import Deadline
from ray_apps.serving.errors import DOCUMENTED_ERRORS, ServiceError, install_error_handlers, invalid_request
from ray_apps.serving.handles import GenerationHandles, Payload
from ray_apps.serving.item_path import UpsertResult
from ray_apps.serving.live_backend import LiveBackend
from ray_apps.serving.metrics import ServingMetrics
from ray_apps.serving.responses import encode_vector, json_response, parse_bulk, search_page, search_result
from ray_apps.serving.search_backend import SearchBackend

READY_S = 2.0  # for a deployment to answer a ping
BULK_TYPES = ("application/x-ndjson", "application/json")
BULK_BODY = {"schema": {"type": "string", "minLength": 2}}
BULK_OPENAPI = {"requestBody": {"required": True, "content": dict.fromkeys(BULK_TYPES, BULK_BODY)}}
T = TypeVar("T")

app = FastAPI(
    title="LREM",
    description="A search that thinks before it embeds.",
    dependencies=[Depends(limit_requests)],
    responses=DOCUMENTED_ERRORS,
)
app.add_middleware(BodyLimitMiddleware)
install_error_handlers(app)


@serve.ingress(app)
class Ingress:
    """The HTTP routes.

    Args:
        settings: the application's settings.
        keys: digest → scope of each bearer key; if empty, everyone may do everything.
        handles: the deployments to call; None follows the live generation (live_backend.py).
    """

    def __init__(self, settings: ServeConfig, keys: dict[str, Scope], handles: GenerationHandles | None) -> None:
        self.settings, self.keys, self.created = settings, keys, int(time.time())
        self.metrics, self.in_progress, self.page = ServingMetrics(), 0, search_page(settings.examples)
        self.live = LiveBackend(handles, settings, self.metrics)

    @app.post("/v1/search", dependencies=[Depends(require_reader)], response_model=schema.SearchResponse)
    async def search(self, request: schema.SearchRequest) -> Response:
        """Return the k items nearest to each query, with or without thinking first."""
        backend, deadline = self.live.current, self._deadline()
        await self._check_dimensions(deadline, backend, request.dimensions)
        encoded = await backend.query_path.encode(deadline, request.texts, request.reason, request.reasonings)
        matches = await backend.query_path.search(
            deadline, encoded.vectors, request.k, request.filter, request.dimensions
        )
        if matches.missing_shards and request.complete:
            message = f"shards {matches.missing_shards} of the index do not answer: try later, or without 'complete'"
            raise ServiceError(503, message, "incomplete", 1)
        return json_response(
            schema.SearchResponse(
                model=backend.handles.model,
                degraded=encoded.degraded,
                missing_shards=matches.missing_shards,
                results=[search_result(*one) for one in zip(request.texts, encoded.queries, matches.hits, strict=True)],
                timings_ms=deadline.timings_ms,
            )
        )

    @app.post("/v1/embeddings", dependencies=[Depends(require_reader)], response_model=schema.EmbeddingsResponse)
    async def embeddings(self, request: schema.EmbeddingsRequest) -> Response:
        """Return embeddings as OpenAI does, of queries (with or without thinking) or of items."""
        backend, deadline = self.live.current, self._deadline()
        model, embedder = backend.handles.model, backend.handles.embedder
        if request.model is not None and request.model not in (model, *schema.ALIASES):
            raise self._unknown_model(request.model)
        await self._check_dimensions(deadline, backend, request.dimensions)
        texts = await self._texts(deadline, backend, request.input)
        reasonings: list[str | None] | None = None
        if request.kind == "query":
            encoded = await backend.query_path.encode(deadline, texts, request.reason or "auto", 1)
            vectors, degraded = encoded.vectors, encoded.degraded
            reasonings = [query.reasonings[0] if query.reasonings else None for query in encoded.queries]
        else:
            vectors, degraded = await deadline.run("embed", backend.item_path.embed(texts)), False
        counting = call_required("embedder", embedder.count_tokens, texts, reasonings)
        prompt_tokens, total_tokens = await deadline.run("embed", counting)
        rows = enumerate(encode_vector(row, request.encoding_format) for row in truncate(vectors, request.dimensions))
        return json_response(
            schema.EmbeddingsResponse(
                data=[schema.EmbeddingRow(index=i, embedding=row) for i, row in rows],
                model=model,
                usage=schema.TokenUsage(prompt_tokens=prompt_tokens, total_tokens=total_tokens),
                degraded=degraded,
            )
        )

    @app.get("/v1/models", dependencies=[Depends(require_reader)])
    async def models(self) -> schema.ModelsResponse:
        """Return the one model that is served, and its aliases: `lrem-query` embeds queries, `lrem-item` items."""
        names = (self.live.current.handles.model, *schema.ALIASES)
        return schema.ModelsResponse(data=[schema.ServedModel(id=name, created=self.created) for name in names])

    @app.get("/v1/models/{name}", dependencies=[Depends(require_reader)])
    async def model(self, name: str) -> schema.ServedModel:
        """Return the served model by its fingerprint or an alias."""
        if name not in (self.live.current.handles.model, *schema.ALIASES):
            raise self._unknown_model(name)
        return schema.ServedModel(id=name, created=self.created)

    @app.put("/v1/items", dependencies=[Depends(require_writer)])
    async def put_items(self, request: schema.UpsertRequest) -> schema.UpsertResponse:
        """Write items; once the response arrives they are on disk, and searches return them."""
        result = await self._upsert([(item.item_id, item.payload) for item in request.items])
        for error in result.failed.values():
            raise error
        return schema.UpsertResponse(written=len({item.item_id for item in request.items}), new=result.new)

    @app.post("/v1/items/bulk", dependencies=[Depends(require_writer)], openapi_extra=BULK_OPENAPI)
    async def bulk(self, request: Request) -> schema.BulkResponse:
        """Write items, one JSON object per line; reports bad lines, and lines of a shard that is down."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in BULK_TYPES:  # any web page in a browser on this machine can send other types
            message = f"content-type '{content_type}': send {BULK_TYPES[0]}, one JSON object per line"
            raise ServiceError(415, message, "media_type")
        lines = parse_bulk(await request.body())
        items = [(line.item.item_id, line.item.payload) for line in lines if line.item is not None]
        failed = (await self._upsert(items)).failed if items else {}
        if items and len(failed) == len(dict(items)):
            raise failed[items[0][0]]
        for outcome, item in lines:
            if item is not None and item.item_id in failed:
                outcome.error = str(failed[item.item_id])
        errors = sum(line.outcome.error is not None for line in lines)
        return schema.BulkResponse(written=len(lines) - errors, failed=errors, rows=[line.outcome for line in lines])

    @app.post("/v1/items/delete", dependencies=[Depends(require_writer)])
    async def delete_items(self, request: schema.DeleteRequest) -> schema.DeleteResponse:
        """Delete items; ids that do not exist are ignored."""
        return await self._delete(request.item_ids)

    @app.delete("/v1/items/{item_id:path}", dependencies=[Depends(require_writer)])
    async def delete_item(self, item_id: schema.ItemId) -> schema.DeleteResponse:
        """Delete one item; 0 if it does not exist."""
        return await self._delete([item_id])

    @app.post("/v1/items/count", dependencies=[Depends(require_reader)])
    async def count(self, request: schema.CountRequest) -> schema.CountResponse:
        """Count all items, or those that match a filter."""
        return schema.CountResponse(count=await self._in_time(self.live.current.item_path.count(request.filter)))

    @app.get("/v1/items", dependencies=[Depends(require_reader)])
    async def scroll(
        self, limit: Annotated[int, Query(ge=1, le=schema.MAX_ITEMS)] = 100, after: str = ""
    ) -> schema.ScrollResponse:
        """Return items in the order of their ids, one page per request."""
        after_id = after.encode(errors="replace").decode()
        stored = await self._in_time(self.live.current.item_path.scroll(limit, after_id))
        items = [schema.StoredItem(item_id=item_id, payload=payload) for item_id, payload in stored]
        return schema.ScrollResponse(items=items, after=items[-1].item_id if len(items) == limit else None)

    @app.get("/v1/items/{item_id:path}", dependencies=[Depends(require_reader)])
    async def get_item(self, item_id: schema.ItemId) -> schema.StoredItem:
        """Return one item."""
        stored = await self._in_time(self.live.current.item_path.get([item_id]))
        if item_id not in stored:
            raise ServiceError(404, f"there is no item '{item_id}'", "item_not_found")
        return schema.StoredItem(item_id=item_id, payload=stored[item_id])

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz(self) -> schema.HealthResponse:
        """Answer if the application does."""
        return schema.HealthResponse(model=self.live.current.handles.model)

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz(self, response: Response) -> schema.ReadinessResponse:
        """Answer 200 if the model and every shard answer, else 503 with the names of those that do not."""
        missing = await self.live.current.unready(READY_S)
        response.status_code = 503 if missing else 200
        return schema.ReadinessResponse(ready=not missing, missing=missing)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(require_reader)])
    async def prometheus(self) -> PlainTextResponse:
        """Return the metrics of this replica, for Prometheus."""
        return PlainTextResponse(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root(self) -> str:
        """Return the search page."""
        return self.page

    def _unknown_model(self, name: str) -> ServiceError:
        known = ", ".join((self.live.current.handles.model, *schema.ALIASES))
        return ServiceError(404, f"model '{name}' is not served here: send one of {known}, or none", "model_not_found")

    def _deadline(self) -> Deadline:
        return Deadline(self.settings.timeout_s, self.metrics)

    async def _check_dimensions(self, deadline: Deadline, backend: SearchBackend, dimensions: int | None) -> None:
        if dimensions is None:
            return
        getting = call_required("embedder", backend.handles.embedder.dimensions)
        full, shorter = await deadline.run("embed", getting)
        if dimensions not in (full, *shorter):
            known = ", ".join(map(str, (*shorter, full)))
            message = f"dimensions: {dimensions} is not one of the lengths that this model was trained for ({known})"
            raise invalid_request(message)

    async def _texts(
        self, deadline: Deadline, backend: SearchBackend, inputs: list[str] | list[list[int]]
    ) -> list[str]:
        """Return the texts of an embeddings request; token ids are decoded."""
        texts = [text for text in inputs if isinstance(text, str)]
        if texts:
            return texts
        if not self.settings.token_ids:
            raise invalid_request(
                "input: token ids are not accepted, as those of another tokenizer would give a wrong vector: send text "
                "(LangChain: check_embedding_ctx_length=False), or set serve.token_ids=true if they are this model's"
            )
        rows = [row for row in inputs if not isinstance(row, str)]
        decoding = call_required("embedder", backend.handles.embedder.decode, rows)
        try:
            texts = await deadline.run("embed", decoding)
        except ValueError as error:  # also a RayTaskError: Ray raises the type of the remote error
            raise invalid_request(f"input: {str(error).splitlines()[-1]}") from error
        for i, text in enumerate(texts):
            if not text.strip():
                raise invalid_request(f"input.{i}: token ids that spell a blank text")
        return texts

    async def _upsert(self, items: list[tuple[str, Payload]]) -> UpsertResult:
        """Write items; the last one with an id wins."""
        payloads = dict(items)
        async with self.live.write() as backend:
            result = await self._in_time(backend.item_path.upsert(list(payloads), list(payloads.values())))
        self.metrics.count_written("upserted", len(payloads) - len(result.failed))
        return result

    async def _delete(self, ids: list[str]) -> schema.DeleteResponse:
        async with self.live.write() as backend:
            deleted = await self._in_time(backend.item_path.delete(ids))
        self.metrics.count_written("deleted", deleted)
        return schema.DeleteResponse(deleted=deleted)

    async def _in_time(self, work: Awaitable[T]) -> T:
        return await self._deadline().run("items", work)
