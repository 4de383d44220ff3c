"""What the server at PREFECT_API_URL does by itself: `python infra/automations.py`. Running it again changes what is there.

A run whose process died says nothing any more. It becomes `Crashed`, which starts the sweep.

With `LORA_SELECT_NOTIFY_URL=https://...` a person is told of how runs ended: one webhook, one automation an outcome. The webhook gets
`{"text": ...}`, as Slack, Mattermost and most chats take it. Its address is a secret, so it comes from the environment.
"""

import asyncio
import os
from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture, ResourceSpecification

NOTIFY_URL = "LORA_SELECT_NOTIFY_URL"
BLOCK = "lora-select-notify"
FLOWS = ["finetune", "retrain"]
OUTCOMES = {
    "promoted": ("Promoted",),
    "blocked": ("Blocked", "Rejected", "Deferred"),
    "awaiting approval": ("AwaitingApproval", "Suspended"),
    "unchanged": ("Unchanged",),
    "crashed": ("Crashed", "Failed"),
}
"""What a person is told of -> names of the flow run's states (`tasks/outcome.py`, and Prefect's own)."""
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = timedelta(seconds=120)
"""Of four heartbeats a run may miss three: workers are started with PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30."""


def automation(outcome: str, states: tuple[str, ...], block: UUID) -> Automation:
    """Tell the webhook when a run of the line comes to one of these states."""
    return Automation(
        name=f"lora-select: {outcome}",
        description=f"A run of {' or '.join(FLOWS)} is {outcome}.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in states},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"{{{{ flow_run.name }}}} is {outcome}",
                body="{{ flow_run.state.message or '' }} {{ flow_run|ui_url }}",
            )
        ],
    )


def died() -> Automation:
    """Call a run crashed that neither sends its heartbeat nor ends: its process is gone, and so is whoever would say so."""
    ends = {name for names in OUTCOMES.values() for name in names} | {"Completed", "Cancelling", "Cancelled", "Paused"}
    return Automation(
        name="lora-select: died",
        description=f"A run of {' or '.join(FLOWS)} that says nothing for {SILENCE.total_seconds():.0f} s is crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT} | {f"prefect.flow-run.{name}" for name in ends},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message="its process is gone", force=False)],
    )


async def create(url: str | None) -> list[str]:
    """Save the automations, each in place of the one of before, and with an address the webhook; return their names."""
    made = [died()]
    if url:
        told = {"text": "{{subject}}: {{body}}"}
        block = CustomWebhookNotificationBlock(name="lora-select", url=url, json_data=told, headers=None, cookies=None)
        saved = await block.asave(BLOCK, overwrite=True)
        made += [automation(outcome, states, saved) for outcome, states in OUTCOMES.items()]
    for one in made:
        try:
            one.id = (await Automation.aread(name=one.name)).id
            await one.aupdate()
        except ValueError:  # there is none of this name
            await one.acreate()
    return [one.name for one in made]


if __name__ == "__main__":
    print("\n".join(asyncio.run(create(os.environ.get(NOTIFY_URL)))))
