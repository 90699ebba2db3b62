"""Every text the bridge itself says to a user, in one place, by language and name.

`CHAT_BRIDGE_TEXTS` replaces any of them. `{...}` names are filled in where a comment says so.
"""

from collections.abc import Mapping

TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "start": "Hello! Write me a message and I will answer. /help lists what else I understand.",
        "help": (
            "Just write to me. I also understand:\n\n"
            "- /new starts a new conversation; I forget this one\n"
            "- /stop stops the answer I am writing\n"
            "- /status tells about this conversation\n"
            "- /help shows this list"
        ),
        "new": "A new conversation has begun. I have forgotten what we talked about before.",
        "stopped": "Stopped.",
        "status": "This conversation began {began} and has {messages} messages. I am {agent}.",  # all three filled in
        "busy": "I am still answering your last message. Please write again when I am done.",
        "queue_full": "Too many messages are waiting. Please write again when I have caught up.",
        "empty": "I have no answer to that. Please try to say it in another way.",
        "blocked": "I may not answer that.",
        "approval": "I would like to use the tool {tool}, which you have to allow first.",  # the tool filled in
        "approval_commands": "Write /approve to allow it, or /decline to refuse.",
        "button_approve": "Approve",
        "button_decline": "Decline",
        "nothing_to_decide": "Nothing waits for your decision any more.",
        "not_yours_to_decide": "Only who asked for it may decide this.",
        "file_missing": "(The file {file} can't be sent: {reason}.)",  # both filled in
        "file_not_here": "(There is a file, {file}, which can't be sent in this chat.)",  # the file filled in
        # To the agent, not to the user.
        "summarise": (
            "Sum up our conversation so far for yourself, in at most 200 words: who I am, what was asked, decided and "
            "promised, and what is still open. Write nothing else."
        ),
        "summary": "What we talked about before, as you summed it up:\n\n{summary}",  # filled in
        "truncated": "(The answer was too long and ends here.)",
        "unreachable": "I can't reach the assistant at the moment. Please try again in a little while.",
        "unauthorized": "The assistant is not set up correctly. Its operator has been told.",
        "not_found": "The assistant is not set up correctly. Its operator has been told.",
        "timeout": "The answer took too long, so I stopped waiting. Please try again.",
        "error": "Something went wrong while I was answering. Please try again.",
    },
    "vi": {
        "start": "Xin chào! Hãy nhắn cho tôi và tôi sẽ trả lời. /help cho biết tôi còn hiểu những lệnh nào.",
        "help": (
            "Bạn cứ nhắn cho tôi. Tôi cũng hiểu các lệnh:\n\n"
            "- /new bắt đầu cuộc trò chuyện mới; tôi quên cuộc này\n"
            "- /stop dừng câu trả lời đang viết\n"
            "- /status cho biết về cuộc trò chuyện này\n"
            "- /help hiện danh sách này"
        ),
        "new": "Cuộc trò chuyện mới đã bắt đầu. Tôi đã quên những gì chúng ta nói trước đó.",
        "stopped": "Đã dừng.",
        "status": "Cuộc trò chuyện này bắt đầu lúc {began} và có {messages} tin nhắn. Tôi là {agent}.",
        "busy": "Tôi vẫn đang trả lời tin nhắn trước. Vui lòng nhắn lại khi tôi trả lời xong.",
        "queue_full": "Có quá nhiều tin nhắn đang chờ. Vui lòng nhắn lại sau.",
        "empty": "Tôi không có câu trả lời cho điều đó. Vui lòng thử nói cách khác.",
        "blocked": "Tôi không được phép trả lời điều đó.",
        "approval": "Tôi muốn dùng công cụ {tool}, cần bạn cho phép trước.",
        "approval_commands": "Nhắn /approve để cho phép, hoặc /decline để từ chối.",
        "button_approve": "Cho phép",
        "button_decline": "Từ chối",
        "nothing_to_decide": "Không còn điều gì chờ bạn quyết định.",
        "not_yours_to_decide": "Chỉ người đã yêu cầu mới được quyết định việc này.",
        "file_missing": "(Không gửi được tệp {file}: {reason}.)",
        "file_not_here": "(Có một tệp, {file}, không gửi được trong cuộc trò chuyện này.)",
        "summarise": (
            "Hãy tóm tắt cuộc trò chuyện của chúng ta cho chính bạn, tối đa 200 từ: tôi là ai, đã hỏi gì, quyết định "
            "và hứa gì, còn việc gì dang dở. Không viết gì thêm."
        ),
        "summary": "Những gì chúng ta đã nói trước đây, theo tóm tắt của bạn:\n\n{summary}",
        "truncated": "(Câu trả lời quá dài nên dừng ở đây.)",
        "unreachable": "Hiện tôi không liên lạc được với trợ lý. Vui lòng thử lại sau ít phút.",
        "unauthorized": "Trợ lý chưa được cài đặt đúng. Người quản trị đã được báo.",
        "not_found": "Trợ lý chưa được cài đặt đúng. Người quản trị đã được báo.",
        "timeout": "Câu trả lời mất quá nhiều thời gian nên tôi đã ngừng chờ. Vui lòng thử lại.",
        "error": "Đã có lỗi khi tôi trả lời. Vui lòng thử lại.",
    },
}


class Texts:
    """The texts in force: a language, with the operator's own words over it."""

    def __init__(self, language: str = "en", own: Mapping[str, str] | None = None) -> None:
        self._texts = {**TEXTS[language], **(own or {})}

    def say(self, name: str, **values: object) -> str:
        """The text of this name, with its `{...}` filled in; an operator's text may leave any of them out."""
        text = self._texts[name]
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", str(value))
        return text
