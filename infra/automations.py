"""Notify a person of how runs ended: `LORA_SELECT_NOTIFY_URL=https://... python infra/automations.py`, to the server at PREFECT_API_URL.

One webhook and one automation an outcome; running it again changes them. The webhook gets `{"text": ...}`, as Slack, Mattermost and
most chats take it. Its address is a secret, so it comes from the environment.
"""

import asyncio
import os
import sys
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events.actions import SendNotification
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


async def create(url: str) -> list[str]:
    """Save the webhook and the automations, each in place of the one of before; return their names."""
    told = {"text": "{{subject}}: {{body}}"}
    block = CustomWebhookNotificationBlock(name="lora-select", url=url, json_data=told, headers=None, cookies=None)
    saved = await block.asave(BLOCK, overwrite=True)
    made = [automation(outcome, states, saved) for outcome, states in OUTCOMES.items()]
    for one in made:
        try:
            one.id = (await Automation.aread(name=one.name)).id
            await one.aupdate()
        except ValueError:  # there is none of this name
            await one.acreate()
    return [one.name for one in made]


if __name__ == "__main__":
    address = os.environ.get(NOTIFY_URL)
    if not address:
        sys.exit(f"error: {NOTIFY_URL} is not set; export the address of a webhook that takes JSON")
    print("\n".join(asyncio.run(create(address))))
