"""The pages that show the calls: all that a browser needs comes from the server itself."""

import re
from pathlib import Path

import httpx
import pytest

from bytelm_server.documentation import ASSETS


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_names_no_other_host(http: httpx.Client, page: str) -> None:
    answer = http.get(page)
    assert answer.status_code == 200
    named = re.findall(r"""(?:src|href|spec-url|url)\s*[=:]\s*["']([^"']+)["']""", answer.text)
    assert "/openapi.json" in named
    assert len(named) >= 3
    for url in named:
        assert url.startswith("/")
        assert http.get(url).status_code == 200
    assert "//" not in re.sub(r"^\s*//.*$|<!--.*?-->", "", answer.text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_browser_is_kept_from_other_hosts(http: httpx.Client, page: str) -> None:
    policy = http.get(page).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("name", ASSETS)
def test_what_a_page_needs_is_sent_whole(http: httpx.Client, name: str) -> None:
    answer = http.get(f"/docs/{name}")
    assert answer.status_code == 200
    assert len(answer.content) > 1000
    kind = {".js": "javascript", ".css": "text/css", ".png": "image/png"}[Path(name).suffix]
    assert kind in answer.headers["content-type"]


def test_nothing_else_is_there(http: httpx.Client) -> None:
    assert http.get("/docs/../app.py").status_code == 404
    assert http.get("/docs/nothing.js").status_code == 404
