"""For operators: /healthz, /readyz, /metrics, and the start page. Knows the context; nothing of drawing."""

from __future__ import annotations

import asyncio
import hmac

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from danqing import __version__
from danqing.api.context import context_of
from danqing.api.requests import is_loopback

router = APIRouter(tags=["operations"])

READY_S_MAX = 2.0
"""A database or an image store that takes longer to say anything is not there."""


_FORWARDED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "via",
    "cf-connecting-ip",
)
"""Headers by which proxies show; one without any must be kept from /metrics by its own configuration."""


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Whether the server and its engine work: 200 or 503, with the facts."""
    facts = await context_of(request).health()
    return JSONResponse(
        {"status": "ok" if facts["ok"] else "failing", "version": __version__} | facts,
        status_code=200 if facts["ok"] else 503,
    )


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 while requests can be drawn: the engine works, the database answers, images can be kept."""
    context = context_of(request)
    database, images = await asyncio.gather(
        context.books.db.answers(READY_S_MAX), context.gallery.answers(READY_S_MAX)
    )
    facts = {"engine": (await context.health())["ok"], "database": database, "images": images}
    ready = all(facts.values())
    return JSONResponse({"ready": ready} | facts, status_code=200 if ready else 503)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text, for loopback or for the metrics token."""
    context = context_of(request)
    token = context.settings.metrics_token
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    # A forwarded request comes from elsewhere, whoever its last hop was.
    forwarded = any(name in request.headers for name in _FORWARDED)
    near = is_loopback(request.client.host if request.client else "") and not forwarded
    known = token is not None and hmac.compare_digest(given.encode(), token.encode())
    if not (near or known):
        return JSONResponse({"error": {"code": "permission_denied"}}, status_code=403)
    return Response(context.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The start page: where things are."""
    return HTMLResponse(_INDEX)


@router.head("/favicon.ico", include_in_schema=False)
@router.get("/favicon.ico", include_in_schema=False)
async def favicon() -> Response:
    """The icon that browsers ask for with every page."""
    return Response(_ICON, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})


_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="6" fill="#b8402a"/>'
    '<path d="M10 5h12v22M10 5v10q0 8-4 12M6 15h20M15 8l2 4" fill="none" stroke="#fff" stroke-width="2.4"/></svg>'
)

_INDEX = f"""<!doctype html>
<html lang="zh"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Danqing 丹青</title>
<style>
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 42rem; margin: 4rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-weight: 600; }} code {{ background: #f3f1ec; padding: .1em .35em; border-radius: .25em; }}
li {{ margin: .3em 0; }} small {{ color: #777; }}
</style>
<h1>Danqing 丹青 <small>{__version__}</small></h1>
<p>The server is running. Point an image client at one of these and use your token as its key:</p>
<ul>
<li>OpenAI, chat drawing, jimeng, Qwen-Image: <code>/v1</code></li>
<li>Zhipu CogView: <code>/api/paas/v4</code></li>
<li>Volcengine Ark: <code>/api/v3</code></li>
<li>DashScope: <code>/api/v1</code></li>
</ul>
<p>API reference: <a href="/docs">/docs</a> · Health: <a href="/healthz">/healthz</a> · Models: <code>GET /v1/models</code></p>
</html>
"""
