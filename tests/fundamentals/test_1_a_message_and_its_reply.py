"""Fundamentals, part 1: a message comes in, a reply goes out, and both are kept.

Each file of this folder is a chapter. The bridge is the real one (`chat-bridge serve`) with the echo agent, which says
back what it was told; `visiting` is a person on the chat page.
"""

from tests.bridge import BridgeProcess, visiting
from tests.observe import rows


async def test_a_message_in_a_reply_out(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        # 202 means: it is stored. From here on nothing can lose it.
        accepted = await chat.send("Hello!")
        assert accepted["seq"] == 1

        # The agent answers beside that, and the reply is a message of the same conversation.
        assert await chat.until(2) == ["> Hello!", "Hello!"]


async def test_the_reply_is_shown_while_it_is_written(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat, chat.events() as events:
        await chat.send("one two three four five six seven eight")
        seen = ""
        async for name, data in events:
            if name == "delta":
                # Each delta says where it belongs, so that a page can put it there.
                seen = seen[: data["offset"]] + data["text"]
            elif name == "message" and data["direction"] == "outbound":
                # At the end comes the reply as it is stored, and that is what counts.
                assert data["text"].startswith(seen)
                assert data["text"] == "one two three four five six seven eight"
                return


async def test_everything_is_kept_in_postgresql(bridge: BridgeProcess, database: str) -> None:
    async with visiting(bridge.url) as chat:
        conversation = (await chat.send("Hello!"))["conversation_id"]
        await chat.until(2)
    query = "select seq, direction, content_text from messages where conversation_id = $1 order by seq"
    assert await rows(database, query, conversation) == [
        {"seq": 1, "direction": "inbound", "content_text": "Hello!"},
        {"seq": 2, "direction": "outbound", "content_text": "Hello!"},
    ]
    # A turn is one call of the agent: it names the messages that it took, and how it ended.
    query = "select first_seq, last_seq, status, outcome from turns where conversation_id = $1"
    assert await rows(database, query, conversation) == [
        {"first_seq": 1, "last_seq": 1, "status": "done", "outcome": "answered"}
    ]


async def test_sent_twice_answered_once(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        # A client that heard no answer sends again, with the same client_msg_id. It gets the same message back.
        first = await chat.post("Hello!", "message-1")
        second = await chat.post("Hello!", "message-1")
        assert (first[0], second[0]) == (202, 200)
        assert second[1] == first[1] | {"duplicate": True}

        # Its reply, and then one to another message: nothing came in between.
        await chat.until(2)
        await chat.send("Bye!")
        assert await chat.until(4) == ["> Hello!", "Hello!", "> Bye!", "Bye!"]


async def test_answered_in_the_order_they_came(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as ann, visiting(bridge.url) as bob:
        for number in range(5):
            await ann.send(f"ann {number}")
            await bob.send(f"bob {number}")
        answers = [await ann.answered(), await bob.answered()]
    for name, messages in zip(("ann", "bob"), answers, strict=True):
        # Conversations do not wait for each other. Within one, every reply has the words of the messages before it.
        said = [message["text"] for message in messages if message["direction"] == "inbound"]
        replied = "\n\n".join(message["text"] for message in messages if message["direction"] == "outbound")
        assert said == [f"{name} {number}" for number in range(5)]
        assert replied.split("\n\n") == said


async def test_a_restart_changes_nothing(bridge: BridgeProcess) -> None:
    async with visiting(bridge.url) as chat:
        await chat.send("Before")
        await chat.until(2)
        await bridge.stop()
        await bridge.start()
        # The visitor's token is good after the restart too.
        await chat.send("After")
        assert await chat.until(4) == ["> Before", "Before", "> After", "After"]
