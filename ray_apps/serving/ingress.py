"""The HTTP side of the service: checks a request, has it answered by the live backend, and puts the answer into shape.

Knows the contract (api.py), keys and limits; does not know engines, nor how an answer is found (backend.py).
"""

import asyncio
import base64
import html
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from ray import serve

from lrem.config import ServeConfig
from lrem.data.vectors import truncate
from lrem.index import Hit
from ray_apps.serving import live_record, schema
from ray_apps.serving.admission import Door, admit, reader, writer
from ray_apps.serving.auth import Scope
from ray_apps.serving.deadline import Phases
from ray_apps.serving.errors import ERRORS, ServiceError, explain, install_errors
from ray_apps.serving.metrics import Measures
from ray_apps.serving.search_backend import Backend, Parts, Thought, Upserted, needed

PAGE = Path(__file__).parent / "static" / "index.html"
READY_S = 2.0  # for a part to say that it is there
LINES = {"schema": {"type": "string", "minLength": 2}}
KINDS = ("application/x-ndjson", "application/json")
BULK = {"requestBody": {"required": True, "content": dict.fromkeys(KINDS, LINES)}}
T = TypeVar("T")

log = logging.getLogger(__name__)


# serve.ingress pickles the class where it stands: what its methods call must be defined above it.
def _item(hit: Hit) -> schema.Item:
    return schema.Item(item_id=hit.item_id, score=hit.score, payload=hit.payload)


def _result(query: str, thought: Thought, hits: list[Hit]) -> schema.Result:
    some = thought.reasonings
    several = some if some is not None and len(some) > 1 else None
    return schema.Result(
        query=query, reasoning=some and some[0], reasonings=several, items=[_item(hit) for hit in hits]
    )


def _json(answer: BaseModel) -> Response:
    """An answer as it goes out; FastAPI would check it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _encode(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        return [float(x) for x in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _page(examples: list[str]) -> str:
    buttons = (f'<li><button type="button">{html.escape(query)}</button></li>' for query in examples)
    return PAGE.read_text().replace("<!-- examples -->", "\n    ".join(buttons))


def _bulk_line(number: int, line: bytes) -> tuple[schema.BulkRow, schema.ItemIn | None]:
    """A line of a bulk write, read; or what is wrong with it."""
    try:
        item = schema.ItemIn.model_validate(json.loads(line))
    except ValidationError as error:
        return schema.BulkRow(line=number, error="; ".join(explain(dict(one), 0) for one in error.errors()[:3])), None
    except (ValueError, RecursionError) as error:
        return schema.BulkRow(line=number, error=f"no JSON: {error}"), None
    return schema.BulkRow(line=number, item_id=item.item_id), item


app = FastAPI(
    title="LREM", description="A search that thinks before it embeds.", dependencies=[Depends(admit)], responses=ERRORS
)
app.add_middleware(Door)
install_errors(app)


@serve.ingress(app)
class Ingress:
    """HTTP in, HTTP out.

    Args:
        settings: of the application.
        keys: digest → scope of each bearer key; none: everyone may do everything.
        parts: what to ask; None follows the live generation (live.py).
    """

    def __init__(self, settings: ServeConfig, keys: dict[str, Scope], parts: Parts | None) -> None:
        self.settings, self.keys, self.created = settings, keys, int(time.time())
        self.measures, self.under_way, self.page = Measures(), 0, _page(settings.examples)
        self.writing, self.writable, self.application = 0, asyncio.Event(), ""
        self.writable.set()
        if parts is not None:
            self.backend = Backend(parts, settings, self.measures)
        else:
            found = live_record.read()
            if found is None:
                raise RuntimeError("no generation is live: start the application with `lrem serve`")
            self._follow(found)
            self.following = asyncio.get_running_loop().create_task(self._keep_following(found))

    @app.post("/v1/search", dependencies=[Depends(reader)], response_model=schema.SearchAnswer)
    async def search(self, request: schema.SearchRequest) -> Response:
        """The k items nearest to each query, found with or without thinking first."""
        backend, phases = self.backend, Phases(self.settings.timeout_s, self.measures)
        await self._check_length(phases, backend, request.dimensions)
        thoughts = await backend.think(phases, request.texts, request.reason, request.reasonings)
        vectors = np.stack([thought.vector for thought in thoughts])
        found = await backend.search(phases, vectors, request.k, request.filter, request.dimensions)
        if found.missing and request.complete:
            message = f"shards {found.missing} of the index do not answer: try later, or without 'complete'"
            raise ServiceError(503, message, "incomplete", 1)
        return _json(
            schema.SearchAnswer(
                model=backend.parts.model,
                degraded=phases.degraded,
                missing_shards=found.missing,
                results=[_result(*one) for one in zip(request.texts, thoughts, found.hits, strict=True)],
                timings_ms=phases.ms,
            )
        )

    @app.post("/v1/embeddings", dependencies=[Depends(reader)], response_model=schema.EmbeddingsAnswer)
    async def embeddings(self, request: schema.EmbeddingsRequest) -> Response:
        """OpenAI's embeddings, of queries (which may be thought over) or of items."""
        backend, phases = self.backend, Phases(self.settings.timeout_s, self.measures)
        model = backend.parts.model
        if request.model not in (None, schema.ALIAS, model):
            message = f"model '{request.model}' is not served here: send '{model}', '{schema.ALIAS}' or no model"
            raise ServiceError(404, message, "model_not_found")
        await self._check_length(phases, backend, request.dimensions)
        texts = await self._texts(phases, backend, request.input)
        if request.input_type == "query":
            thoughts = await backend.think(phases, texts, request.reason or "auto", 1)
            vectors = np.stack([thought.vector for thought in thoughts])
            reasonings = [thought.reasonings[0] if thought.reasonings else None for thought in thoughts]
        else:
            vectors, reasonings = await phases.run("embed", backend.embed_items(texts)), None
        count = needed("embedder", backend.parts.embedder.count, texts, reasonings)
        prompt, total = await phases.run("embed", count)
        rows = enumerate(truncate(vectors, request.dimensions))
        return _json(
            schema.EmbeddingsAnswer(
                data=[schema.Embedding(index=i, embedding=_encode(row, request.encoding_format)) for i, row in rows],
                model=model,
                usage=schema.Usage(prompt_tokens=prompt, total_tokens=total),
                degraded=phases.degraded,
            )
        )

    @app.get("/v1/models", dependencies=[Depends(reader)])
    async def models(self) -> schema.Models:
        """The one model that is served."""
        return schema.Models(data=[schema.Model(id=self.backend.parts.model, created=self.created)])

    @app.put("/v1/items", dependencies=[Depends(writer)])
    async def put_items(self, request: schema.Items) -> schema.Written:
        """Write items; they are on disk, and found, when the answer comes."""
        ids = {item.item_id for item in request.items}
        done = await self._write([(item.item_id, item.payload) for item in request.items])
        for error in done.failed.values():
            raise error
        return schema.Written(written=len(ids), new=done.new)

    @app.post("/v1/items/bulk", dependencies=[Depends(writer)], openapi_extra=BULK)
    async def bulk(self, request: Request) -> schema.BulkAnswer:
        """Write items, a JSON object on each line; bad lines, and those of a shard that is down, are reported."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in KINDS:  # others can be sent by any web page that a browser on this machine shows
            raise ServiceError(415, f"content-type '{kind}': send {KINDS[0]}, a JSON object on each line", "media_type")
        lines = [line for line in enumerate((await request.body()).split(b"\n"), 1) if line[1].strip()]
        if not 1 <= len(lines) <= schema.MAX_ITEMS:
            message = f"the body has {len(lines)} lines: send 1 to {schema.MAX_ITEMS} JSON objects, one on each line"
            raise ServiceError(422, message, "invalid_request")
        rows = [_bulk_line(*line) for line in lines]
        items = [(item.item_id, item.payload) for _, item in rows if item is not None]
        failed = (await self._write(items)).failed if items else {}
        if items and len(failed) == len(dict(items)):
            raise failed[items[0][0]]
        for row, item in rows:
            if item is not None and item.item_id in failed:
                row.error = str(failed[item.item_id])
        wrong = sum(row.error is not None for row, _ in rows)
        return schema.BulkAnswer(written=len(rows) - wrong, failed=wrong, rows=[row for row, _ in rows])

    @app.post("/v1/items/delete", dependencies=[Depends(writer)])
    async def delete_items(self, request: schema.ItemIds) -> schema.Deleted:
        """Delete items; ids that are not there are passed over."""
        return await self._delete(request.item_ids)

    @app.delete("/v1/items/{item_id:path}", dependencies=[Depends(writer)])
    async def delete_item(self, item_id: schema.ItemId) -> schema.Deleted:
        """Delete one item; 0 if it was not there."""
        return await self._delete([item_id])

    @app.post("/v1/items/count", dependencies=[Depends(reader)])
    async def count(self, request: schema.CountRequest) -> schema.Count:
        """How many items there are, or match a filter."""
        return schema.Count(count=await self._in_time(self.backend.count(request.filter)))

    @app.get("/v1/items", dependencies=[Depends(reader)])
    async def scroll(
        self, limit: Annotated[int, Query(ge=1, le=schema.MAX_ITEMS)] = 100, after: str = ""
    ) -> schema.ItemsPage:
        """Items in the order of their ids, a page at a time."""
        found = await self._in_time(self.backend.scroll(limit, after.encode(errors="replace").decode()))
        items = [schema.StoredItem(item_id=item_id, payload=payload) for item_id, payload in found]
        return schema.ItemsPage(items=items, after=found[-1][0] if len(found) == limit else None)

    @app.get("/v1/items/{item_id:path}", dependencies=[Depends(reader)])
    async def get_item(self, item_id: schema.ItemId) -> schema.StoredItem:
        """One item."""
        found = await self._in_time(self.backend.get([item_id]))
        if item_id not in found:
            raise ServiceError(404, f"there is no item '{item_id}'", "item_not_found")
        return schema.StoredItem(item_id=item_id, payload=found[item_id])

    @app.get("/healthz")
    async def healthz(self) -> schema.Health:
        """Whether the application answers."""
        return schema.Health(model=self.backend.parts.model)

    @app.get("/readyz")
    async def readyz(self, response: Response) -> schema.Ready:
        """Whether model and every shard answer: 200, or 503 with the parts that do not."""
        missing = await self.backend.absent(READY_S)
        response.status_code = 503 if missing else 200
        return schema.Ready(ready=not missing, missing=missing)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(reader)])
    async def metrics(self) -> PlainTextResponse:
        """What Prometheus reads."""
        return PlainTextResponse(self.measures.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root(self) -> str:
        """The search page."""
        return self.page

    async def _check_length(self, phases: Phases, backend: Backend, length: int | None) -> None:
        if length is None:
            return
        whole, shorter = await phases.run("embed", needed("embedder", backend.parts.embedder.about))
        if length not in (whole, *shorter):
            known = ", ".join(map(str, (*shorter, whole)))
            message = f"dimensions: {length} is none of the lengths that this model was trained for ({known})"
            raise ServiceError(422, message, "invalid_request")

    async def _texts(self, phases: Phases, backend: Backend, given: list[str] | list[list[int]]) -> list[str]:
        if isinstance(given[0], str):
            return [str(text) for text in given]
        try:
            found = await phases.run("embed", needed("embedder", backend.parts.embedder.texts, given))
        except ValueError as error:
            raise ServiceError(422, f"input: {str(error).splitlines()[-1]}", "invalid_request") from error
        for i, text in enumerate(found):
            if not text.strip():
                raise ServiceError(422, f"input.{i}: token ids that spell a blank text", "invalid_request")
        return list(found)

    async def _write(self, items: list[tuple[str, dict[str, Any]]]) -> Upserted:
        last = dict(items)
        async with self._one_write() as backend:
            done = await self._in_time(backend.upsert(list(last), list(last.values())))
        self.measures.written("upserted", len(last) - len(done.failed))
        return done

    async def _delete(self, ids: list[str]) -> schema.Deleted:
        async with self._one_write() as backend:
            deleted = await self._in_time(backend.delete(ids))
        self.measures.written("deleted", deleted)
        return schema.Deleted(deleted=deleted)

    async def _in_time(self, work: Awaitable[T]) -> T:
        return await Phases(self.settings.timeout_s, self.measures).run("items", work)

    @asynccontextmanager
    async def _one_write(self) -> AsyncIterator[Backend]:
        """A write under way, to what is live; it waits while the index is being replaced."""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                await self.writable.wait()
        except TimeoutError as error:
            raise ServiceError(503, "the index is being replaced: write again later", "replacing", 5) from error
        self.writing += 1
        try:
            yield self.backend
        finally:
            self.writing -= 1

    def _follow(self, found: live_record.Live) -> None:
        if self.application != found.application:
            handles = [f"IndexShard{i}" for i in range(found.shards)]
            reasoner, embedder, *shards = (
                serve.get_deployment_handle(name, found.application) for name in ("Reasoner", "Embedder", *handles)
            )
            self.backend = Backend(Parts(found.model, reasoner, embedder, shards), self.settings, self.measures)
            self.application = found.application
        if found.paused:
            self.writable.clear()
        else:
            self.writable.set()

    async def _keep_following(self, found: live_record.Live) -> None:
        """Look at the record again and again; say that it is followed once the writes before it have ended."""
        seen, me = "", serve.get_replica_context().replica_id.unique_id
        while True:
            try:
                record = await asyncio.to_thread(live_record.read)
                found = record if record is not None else found
                self._follow(found)
                if found.revision != seen and not (found.paused and self.writing):
                    await asyncio.to_thread(live_record.see, found, me)
                    seen = found.revision
            except Exception:  # the store is away for a moment: go on with what was live
                log.exception("the live record cannot be read")
            await asyncio.sleep(live_record.POLL_S)
