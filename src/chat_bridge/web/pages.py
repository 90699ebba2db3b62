"""Pages from our templates, under a policy that lets nothing run but our own scripts."""

from collections.abc import Sequence
from pathlib import Path

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

STATIC = Path(__file__).parent / "static"
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
)


def page(template: str, *, frame_ancestors: Sequence[str] = ("'none'",), **values: object) -> HTMLResponse:
    """Render a template. `frame_ancestors`: the sites that may show it in a frame."""
    return HTMLResponse(
        _templates.get_template(template).render(**values),
        headers={"Content-Security-Policy": _POLICY.format(ancestors=" ".join(frame_ancestors))},
    )
