"""Lists the states of a webhook and what leads from one to the other. Pure."""

from enum import StrEnum

from common.statetable import Table


class WebhookState(StrEnum):
    """State of a webhook. A paused one keeps its place: what has happened meanwhile is sent once it is active again."""

    ACTIVE = "active"
    PAUSED = "paused"


class WebhookEvent(StrEnum):
    """What happens to a webhook: an operator pauses or resumes it, or its receiver answers that it is gone."""

    PAUSE = "pause"
    GONE = "gone"
    RESUME = "resume"


WEBHOOK_STATES: Table[WebhookState, WebhookEvent] = Table(
    "a webhook",
    {
        WebhookState.ACTIVE: {
            WebhookEvent.PAUSE: WebhookState.PAUSED,
            WebhookEvent.GONE: WebhookState.PAUSED,
            WebhookEvent.RESUME: WebhookState.ACTIVE,
        },
        WebhookState.PAUSED: {WebhookEvent.PAUSE: WebhookState.PAUSED, WebhookEvent.RESUME: WebhookState.ACTIVE},
    },
)
