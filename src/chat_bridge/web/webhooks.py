"""Webhooks: what a platform sends us is stored, then it hears that we have it."""

from fastapi import APIRouter, Request, Response

from chat_bridge import tracing
from chat_bridge.platforms.contract import NotAuthenticError, NotReadyError, Platform, WebhookRequest
from chat_bridge.telemetry import WEBHOOKS_REFUSED, log
from chat_bridge.web.auth import Used, caller_address
from chat_bridge.web.problems import Problem, problem_responses
from chat_bridge.web.services import Services

NOT_READY_SECONDS = 5

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.post(
    "/{platform}",
    status_code=200,
    response_class=Response,
    responses=problem_responses(401, 404, 413, 503),
    summary="Take a platform's events",
)
async def take(platform: str, request: Request, used: Used) -> Response:
    """Stored events are answered with an empty 200. A 503 asks the platform to send them again."""
    adapter = used.platforms.get(platform)
    if adapter is None or not adapter.capabilities.webhook:
        raise Problem(404, "No platform of this name takes webhooks here.")
    with tracing.span(f"webhook {platform}", "server"):
        await _store_events(platform, adapter, request, used)
    # Without a body: some platforms carry out what they find in one.
    return Response(status_code=200)


async def _store_events(platform: str, adapter: Platform, request: Request, used: Services) -> None:
    received = WebhookRequest(
        headers={name.lower(): value for name, value in request.headers.items()},
        query=dict(request.query_params),
        body=await request.body(),
    )
    try:
        events = adapter.events(received)
    except NotAuthenticError as error:
        WEBHOOKS_REFUSED.labels(platform).inc()
        log.warning("webhook.refused", platform=platform, address=caller_address(request), reason=str(error))
        raise Problem(401, str(error)) from None
    except NotReadyError as error:
        raise Problem(503, str(error), {"Retry-After": str(NOT_READY_SECONDS)}) from None
    await used.receiver.receive_all(events)
