"""All that is kept of a person, in one file."""

import json
import zipfile
from pathlib import Path

from tests.bridge import calling, running_bridge, visiting
from tests.observe import call, run_command, session_of


async def test_a_person_is_given_their_data(database: str, tmp_path: Path) -> None:
    place = {"ATTACHMENT_BUCKET": str(tmp_path / "bucket")}
    settings = {"DATABASE_URL": database, **place}
    async with running_bridge(database, **place) as bridge, visiting(bridge.url) as ada, visiting(bridge.url) as bob:
        path = f"/api/v1/chat/{ada.conversation}"
        _, upload = await call(
            bridge.url,
            "POST",
            f"{path}/uploads?name=..%2Fletter.txt",
            data=b"dear bridge",
            headers={"Content-Type": "text/plain"},
        )
        body = {
            "client_msg_id": "1",
            "text": "from Ada",
            "attachments": [{"upload_id": upload["id"]}],
            "user": {"name": "Ada"},
        }
        assert (await call(bridge.url, "POST", f"{path}/messages", json=body))[0] == 202
        await ada.answered()
        await call(bridge.url, "POST", f"/api/v1/sessions/{(await session_of(bridge.url, ada))['id']}/close")
        await ada.send("from Ada again")
        await ada.answered()
        await bob.send("from Bob")
        await bob.answered()
        # Both in one conversation, which a program leads.
        async with calling(bridge.url, "both") as both:
            for name, text in ((ada.conversation, "Ada among others"), (bob.conversation, "Bob among others")):
                message = {"client_msg_id": text, "text": text, "user": {"id": name}}
                assert (await call(bridge.url, "POST", "/api/v1/chat/both/messages", json=message))[0] == 202
                await both.answered()

        output = tmp_path / "ada.zip"
        code, told, errors = await run_command(
            "export-person", "webchat", ada.conversation, "--output", str(output), **settings
        )
        assert (code, told) == (0, "6 messages of 3 sessions and 2 files written\n"), errors
        with zipfile.ZipFile(output) as archive:
            (known,) = json.loads(archive.read("person.json"))
            assert (known["platform_user_id"], known["display_name"]) == (ada.conversation, "Ada")
            lines = [json.loads(line) for line in archive.read("messages.jsonl").splitlines()]
            texts = [line["text"] for line in lines if line["type"] == "message"]
            assert sorted(texts) == sorted(
                ["from Ada", "from Ada\n[file: letter.txt]", *2 * ["from Ada again", "Ada among others"]]
            )
            names = [name for name in archive.namelist() if name.startswith("files/")]
            assert len(names) == 2, "what she sent, and what the echo agent gave back"
            for name in names:
                assert name.endswith("letter.txt")
                assert ".." not in name
                assert archive.read(name) == b"dear bridge"
        assert "Bob" not in archive_text(output)
        assert output.stat().st_mode & 0o777 == 0o600

        again = await run_command("export-person", "webchat", ada.conversation, "--output", str(output), **settings)
        assert (again[0], "is there already" in again[2]) == (1, True)
        nobody = await run_command(
            "export-person", "webchat", "nobody", "--output", str(tmp_path / "no.zip"), **settings
        )
        assert nobody == (1, "", "chat-bridge: nothing is kept of this person: look at the id once more\n")
        assert not (tmp_path / "no.zip").exists()


def archive_text(output: Path) -> str:
    with zipfile.ZipFile(output) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist())
