"""``/docs`` and ``/redoc``: the calls, to read and to try in a browser, which asks no other host.

Scripts and styles come from a package; a policy keeps the browser from whatever they might ask for
elsewhere. Must not know what the calls are.
"""

from collections.abc import Callable
from importlib.resources import as_file, files

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, Response

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png")
PATHS = {"/docs", "/redoc", *(f"/docs/{name}" for name in ASSETS)}
"""All that a browser asks for."""

POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:"


def install(app: FastAPI) -> None:
    """Serve the pages of an application that was made without any."""
    for name in ASSETS:
        app.get(f"/docs/{name}", include_in_schema=False)(_sent(name))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        at = _root(request)
        page = get_swagger_ui_html(
            openapi_url=f"{at}{app.openapi_url}",
            title=app.title,
            swagger_js_url=f"{at}/docs/swagger-ui-bundle.js",
            swagger_css_url=f"{at}/docs/swagger-ui.css",
            swagger_favicon_url=f"{at}/docs/favicon.png",
        )
        return _kept_here(page)

    @app.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> Response:
        at = _root(request)
        page = get_redoc_html(
            openapi_url=f"{at}{app.openapi_url}",
            title=app.title,
            redoc_js_url=f"{at}/docs/redoc.standalone.js",
            redoc_favicon_url=f"{at}/docs/favicon.png",
            with_google_fonts=False,
        )
        return _kept_here(page)


def _sent(name: str) -> Callable[[], FileResponse]:
    with as_file(files("fastapi_offline") / "static" / name) as path:
        return lambda: FileResponse(path)


def _root(request: Request) -> str:
    """What a proxy puts before the paths."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _kept_here(page: HTMLResponse) -> Response:
    page.headers["Content-Security-Policy"] = POLICY
    return page
