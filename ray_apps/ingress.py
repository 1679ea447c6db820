"""The HTTP side of the service: leads a request through reason, embed and search, against one deadline.

Knows the contract (api.py) and Serve handles; does not know the engines behind them, nor imports them.
"""

import asyncio
import base64
import html
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import numpy as np
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from lrem.index import Hit
from lrem.index.filters import Filter
from lrem.index.shard import merge
from ray_apps import api

PAGE = Path(__file__).parent / "static" / "index.html"
T = TypeVar("T")


class Phases:
    """The clock of one request: one deadline for all its phases, and the milliseconds each took."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s, self.start = timeout_s, time.perf_counter()
        self.ms = {"reason": 0.0, "embed": 0.0, "search": 0.0, "total": 0.0}

    async def run(self, name: str, work: Awaitable[T]) -> T:
        """Await one phase; ServiceError 504, naming it, once the request's time is up."""
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s - (begun - self.start)):
                return await work
        except TimeoutError as error:
            message = f"waited {self.timeout_s:g} s, in the end for '{name}': send fewer queries or try later"
            raise api.ServiceError(504, message, f"timeout_{name}") from error
        finally:
            now = time.perf_counter()
            self.ms[name] = round(1000 * (now - begun), 2)
            self.ms["total"] = round(1000 * (now - self.start), 2)


# serve.ingress pickles the class where it stands: what its methods call must be defined above it.
def _item(hit: Hit) -> api.Item:
    return api.Item(item_id=hit.item_id, score=hit.score, payload=api.plain(hit.payload))


def _encode(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        return [float(x) for x in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _page(examples: list[str]) -> str:
    buttons = (f'<li><button type="button">{html.escape(query)}</button></li>' for query in examples)
    return PAGE.read_text().replace("<!-- examples -->", "\n    ".join(buttons))


app = FastAPI(title="LREM", description="A search that thinks before it embeds.")
api.install_errors(app)


@serve.ingress(app)
class Ingress:
    """HTTP in, HTTP out: checks a request, leads it through the phases, joins the shards' answers."""

    def __init__(
        self,
        model: str,
        timeout_s: float,
        reasoner: DeploymentHandle,
        embedder: DeploymentHandle,
        shards: list[DeploymentHandle],
        examples: list[str],
    ) -> None:
        self.model, self.timeout_s, self.created = model, timeout_s, int(time.time())
        self.reasoner, self.embedder, self.shards = reasoner, embedder, shards
        self.page = _page(examples)

    @app.post("/v1/search", responses=api.ERRORS)
    async def search(self, request: api.SearchRequest) -> api.SearchAnswer:
        """The k items nearest to each query, found with or without thinking first."""
        phases = Phases(self.timeout_s)
        reasonings = await self._reason(phases, request.texts, request.reason)
        pairs = list(zip(request.texts, reasonings, strict=True))
        vectors = await phases.run("embed", self.embedder.queries.remote(pairs))
        found = await phases.run("search", self._search(vectors, request.k, request.where))
        results = [
            api.Result(query=query, reasoning=reasoning, items=[_item(hit) for hit in hits])
            for (query, reasoning), hits in zip(pairs, found, strict=True)
        ]
        return api.SearchAnswer(model=self.model, results=results, timings_ms=phases.ms)

    @app.post("/v1/embeddings", responses=api.ERRORS)
    async def embeddings(self, request: api.EmbeddingsRequest) -> api.EmbeddingsAnswer:
        """OpenAI's embeddings, of queries (with thinking unless `reason` is `never`) or of items."""
        if request.model not in (None, api.ALIAS, self.model):
            message = f"model '{request.model}' is not served here: send '{self.model}', '{api.ALIAS}' or no model"
            raise api.ServiceError(404, message, "model_not_found")
        phases = Phases(self.timeout_s)
        reasonings = None
        if request.input_type == "query":
            reasonings = await self._reason(phases, request.input, request.reason or "always")
        vectors, (prompt, total) = await phases.run("embed", self._embed(request.input, reasonings))
        return api.EmbeddingsAnswer(
            data=[api.Embedding(index=i, embedding=_encode(v, request.encoding_format)) for i, v in enumerate(vectors)],
            model=self.model,
            usage=api.Usage(prompt_tokens=prompt, total_tokens=total),
        )

    @app.get("/v1/models")
    async def models(self) -> api.Models:
        """The one model that is served."""
        return api.Models(data=[api.Model(id=self.model, created=self.created)])

    @app.get("/healthz")
    async def healthz(self) -> api.Health:
        """Whether the application answers."""
        return api.Health(model=self.model)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root(self) -> str:
        """The search page."""
        return self.page

    async def _reason(self, phases: Phases, texts: list[str], reason: api.Reason) -> list[str | None]:
        if reason == "never":
            return [None] * len(texts)
        return await phases.run("reason", self.reasoner.reason.remote(texts))

    async def _search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[list[Hit]]:
        parts = await asyncio.gather(*(shard.search.remote(vectors, k, where) for shard in self.shards))
        return [merge(hits, k) for hits in zip(*parts, strict=True)]

    async def _embed(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[np.ndarray, tuple[int, int]]:
        if reasonings is None:
            vectors = self.embedder.items.remote(texts)
        else:
            vectors = self.embedder.queries.remote(list(zip(texts, reasonings, strict=True)))
        return await asyncio.gather(vectors, self.embedder.count.remote(texts, reasonings))
