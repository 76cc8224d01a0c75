"""The page at `/`: one HTML file that asks nothing of any other place than the service itself.

Its markup, style and script are the files of `page_files`; none of them holds data. The script asks
`/v1/status`, `/v1/models` and `/v1/answer`, and puts what they say in as text only.
"""

from __future__ import annotations

from importlib import resources

from starlette.responses import HTMLResponse

from tel_edge.runtime.files.digest import in_policy


def response() -> HTMLResponse:
    """Return the page, under a policy that allows its own style and script and no others.

    Source of the policy: https://www.w3.org/TR/CSP3/. The icon is a data URL.
    """
    style, script = _file("page.css"), _file("page.js")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "connect-src 'self'; img-src data:; "
        f"style-src {in_policy(style)}; script-src {in_policy(script)}"
    )
    html = _file("page.html").replace("{{style}}", style).replace("{{script}}", script)
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)


def _file(name: str) -> str:
    return (resources.files(__package__) / "page_files" / name).read_text(encoding="utf-8")
