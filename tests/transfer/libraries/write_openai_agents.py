"""Sessions of the OpenAI Agents SDK: python write_openai_agents.py FILE"""

import asyncio
import sys

from agents import SQLiteSession

LONG = "a long answer, word by word. " * 200


async def main(file: str) -> None:
    ada = SQLiteSession("ada", file)
    await ada.add_items(
        [
            {"role": "user", "content": "Xin chào 👋"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Huế"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "It rains in Huế.", "annotations": []}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "and here?"},
                    {"type": "input_image", "image_url": "https://example.invalid/sky.png", "detail": "auto"},
                ],
            },
            {"role": "assistant", "content": LONG},
        ]
    )
    ada.close()
    for number in range(20):
        session = SQLiteSession(f"user-{number}", file)
        await session.add_items(
            [{"role": ("user", "assistant")[n % 2], "content": f"{number}: message {n}"} for n in range(10)]
        )
        session.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
