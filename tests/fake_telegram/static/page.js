// Plays the people of the fake Telegram. Whatever a bot says becomes DOM nodes made one by one, never HTML text.

import { formatted } from "/page/format.js";

const by = (id) => document.getElementById(id);
let state = { bot: {}, users: [], chats: [] };
let open = null; // the id of the chat that is shown
let chat = null;
let replyTo = null;
let shown = ""; // what the list of messages was made of
const bubbles = new Map(); // message id: what its bubble was made of, and the bubble

async function ask(path, method = "GET", body = undefined) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(`/control/${path}`, { method, headers, body: JSON.stringify(body) });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function notice(text) {
  by("notice").textContent = text;
  by("notice").hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => (by("notice").hidden = true), 4000);
}

const nameOf = (user) => [user.first_name, user.last_name].filter(Boolean).join(" ");
const titleOf = (one) => one.title ?? nameOf(one);
const textOf = (message) => message.text ?? message.caption ?? kindOf(message);

function kindOf(message) {
  const kinds = ["photo", "document", "voice", "audio", "video", "video_note", "sticker", "location", "contact", "poll"];
  return kinds.find((kind) => kind in message)?.replace("_", " ") ?? "";
}

function face(one) {
  const title = titleOf(one);
  return make("span", { className: `face c${Math.abs(one.id) % 6}`, textContent: [...title][0] ?? "?" });
}

// The list of chats

function drawChats() {
  by("bot").textContent = `with ${nameOf(state.bot)}, @${state.bot.username}`;
  by("chats").replaceChildren(
    ...state.chats
      .filter((one) => one.migrated_to === null)
      .map((one) => {
        const about = make("small", { textContent: one.last ? textOf(one.last) : "no messages yet" });
        const who = make("span", { className: "who" }, make("strong", { textContent: titleOf(one) }), about);
        const button = make("button", { type: "button", onclick: () => show(one.id) }, face(one), who);
        button.className = one.type === "private" ? "" : "group";
        button.setAttribute("aria-current", one.id === open);
        return button;
      }),
  );
}

async function show(id) {
  if (id !== open) {
    quote(null);
    bubbles.clear();
  }
  open = id;
  shown = "";
  await refresh();
  document.body.classList.add("open");
  by("main").hidden = false;
  by("empty").hidden = true;
  by("messages").scrollTop = by("messages").scrollHeight;
  by("text").focus({ preventScroll: true });
}

// The chat

function drawHead() {
  const isPrivate = chat.type === "private";
  by("face").replaceWith(Object.assign(face(chat), { id: "face" }));
  by("head").className = isPrivate ? "" : "group";
  by("title").textContent = titleOf(chat);
  const action = Object.values(chat.actions)[0];
  const away = { kicked: isPrivate ? "you have blocked the bot" : "the bot was removed", left: "the bot has left" };
  const members = Object.values(chat.members).filter((status) => status !== "left").length;
  const usual = isPrivate ? `private chat with @${state.bot.username}` : `${chat.type}, ${members} people and the bot`;
  const doing = action ? `${state.bot.first_name}: ${action.replaceAll("_", " ")} …` : null;
  by("about").textContent = doing ?? away[chat.bot] ?? usual;
  by("about").classList.toggle("busy", Boolean(action));
  const inside = chat.bot === "member" || chat.bot === "administrator";
  by("block").textContent = isPrivate ? (inside ? "Block" : "Unblock") : inside ? "Remove bot" : "Add bot";
}

function drawPeople() {
  const wanted = state.users.filter((user) =>
    chat.type === "private" ? user.id === chat.id : (chat.members[user.id] ?? "left") !== "left",
  );
  const ids = wanted.map((user) => user.id).join();
  by("person").hidden = chat.type === "private";
  if (by("person").dataset.ids === ids) return;
  by("person").dataset.ids = ids;
  by("person").replaceChildren(...wanted.map((user) => make("option", { value: user.id, textContent: user.first_name })));
}

function drawMessages() {
  const content = JSON.stringify([chat.messages, chat.drafts, chat.actions]);
  if (content === shown) return;
  shown = content;
  const list = by("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80 || !list.childElementCount;
  const drafts = chat.drafts.map((draft) => bubbleOf({ ...draft, from: state.bot, draft: true }));
  const typing = Object.values(chat.actions).length && !drafts.length ? [dots()] : [];
  list.replaceChildren(...chat.messages.map(kept), ...drafts, ...typing);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

// An unchanged message keeps its bubble, and with it what was done there.
function kept(message) {
  const content = JSON.stringify([message, by("person").value]);
  if (bubbles.get(message.message_id)?.content !== content) {
    bubbles.set(message.message_id, { content, bubble: bubbleOf(message) });
  }
  return bubbles.get(message.message_id).bubble;
}

function dots() {
  const bubble = make("div", { className: "bubble dots" }, make("span"), make("span"), make("span"));
  return make("li", { className: "theirs", ariaLabel: "The bot is writing" }, bubble);
}

function serviceText(message) {
  const name = nameOf(message.from ?? {});
  if (message.new_chat_members) return `${message.new_chat_members.map(nameOf).join(", ")} joined`;
  if (message.left_chat_member) return `${nameOf(message.left_chat_member)} left`;
  if (message.migrate_to_chat_id) return "the group became a supergroup";
  if (message.migrate_from_chat_id) return "this was a group before";
  if (message.forum_topic_created) return `${name} began the topic “${message.forum_topic_created.name}”`;
  if (message.forum_topic_closed) return `${name} closed the topic`;
  return null;
}

function bubbleOf(message) {
  const service = serviceText(message);
  if (service) return make("li", { className: "service", textContent: service });
  const own = message.from?.id !== state.bot.id && (chat.type === "private" || String(message.from?.id) === by("person").value);
  const bubble = make("div", { className: "bubble" });
  if (!own && chat.type !== "private") {
    bubble.append(make("span", { className: "name", textContent: titleOf(message.sender_chat ?? message.from) }));
  }
  if (message.reply_to_message) bubble.append(quoteOf(message.reply_to_message));
  if (message.photo) bubble.append(picture(message.photo.at(-1).file_id));
  else if (message.sticker) bubble.append(message.sticker.emoji ?? "sticker");
  else if (kindOf(message)) bubble.append(fileOf(message));
  const text = formatted(message.text ?? message.caption ?? "", message.entities ?? message.caption_entities ?? []);
  bubble.append(make("div", { className: "text" }, text));
  bubble.append(make("span", { className: "meta", textContent: metaOf(message) }));
  const item = make("li", { className: own ? "ours" : "theirs" }, bubble);
  if (message.draft) {
    item.classList.add("draft");
    return item;
  }
  item.id = `m${message.message_id}`;
  const rows = message.reply_markup?.inline_keyboard ?? [];
  if (rows.length) item.append(make("div", { className: "keys" }, ...rows.map((row) => keysOf(message, row))));
  const answer = make("button", { type: "button", className: "answer", textContent: "↩", ariaLabel: "Reply" });
  answer.onclick = () => quote(message);
  item.append(answer);
  return item;
}

function metaOf(message) {
  if (message.draft) return "is being written …";
  const time = new Date(message.date * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const reactions = Object.values(message.reactions).flat();
  return [...reactions.map((reaction) => reaction.emoji), message.edit_date ? "edited" : "", time].filter(Boolean).join(" ");
}

function quoteOf(message) {
  const quoted = make("button", { type: "button", className: "quoted" });
  quoted.append(make("b", { textContent: nameOf(message.from ?? {}) }), textOf(message));
  quoted.onclick = () => by(`m${message.message_id}`)?.scrollIntoView({ block: "center" });
  return quoted;
}

const picture = (id) => make("img", { src: `/control/files/${encodeURIComponent(id)}`, alt: "A picture" });

function fileOf(message) {
  const kind = kindOf(message);
  const file = message[kind.replace(" ", "_")];
  const size = file.file_size === undefined ? "" : ` · ${Math.max(1, Math.round(file.file_size / 1024))} kB`;
  return make("div", { textContent: `▤ ${file.file_name ?? kind}${size}` });
}

function keysOf(message, row) {
  return make(
    "div",
    {},
    ...row.map((key) => {
      const button = make("button", { type: "button", textContent: key.text });
      button.onclick = () => press(message, key, button);
      return button;
    }),
  );
}

async function press(message, key, button) {
  if (key.callback_data === undefined) return notice(key.url ?? "");
  button.setAttribute("aria-busy", "true");
  const body = { from: Number(by("person").value), data: key.callback_data };
  const made = await ask(`chats/${open}/messages/${message.message_id}/press`, "POST", body);
  pressed.set(made.id, button);
}

const pressed = new Map(); // presses that wait for the bot's answer

async function drawPressed() {
  for (const [id, button] of pressed) {
    const press = await ask(`presses/${id}`);
    if (!press.answered) continue;
    pressed.delete(id);
    button.removeAttribute("aria-busy");
    if (press.text) notice(press.text);
  }
}

// Writing

function quote(message) {
  replyTo = message?.message_id ?? null;
  by("quote").hidden = message === null;
  if (message === null) return;
  by("quote").firstElementChild.textContent = `Reply to ${nameOf(message.from ?? {})}: ${textOf(message)}`;
  by("text").focus();
}

async function say(body) {
  const said = { from: Number(by("person").value), ...body };
  if (replyTo !== null) said.reply_to = replyTo;
  quote(null);
  by("messages").scrollTop = by("messages").scrollHeight;
  await ask(`chats/${open}/messages`, "POST", said);
}

by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = by("text").value.trim();
  if (!text) return;
  by("text").value = "";
  say({ text }).catch((error) => notice(error.message));
});

by("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  by("composer").requestSubmit();
});

by("file").addEventListener("change", () => {
  const [file] = by("file").files;
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    const content = reader.result.slice(reader.result.indexOf(",") + 1);
    const kind = file.type.startsWith("image/") ? "photo" : "document";
    const text = by("text").value.trim();
    by("text").value = "";
    const media = { kind, content, name: file.name, mime_type: file.type || "application/octet-stream" };
    say({ media, ...(text ? { text } : {}) }).catch((error) => notice(error.message));
  };
  reader.readAsDataURL(file);
  by("file").value = "";
});

by("quote").querySelector("button").onclick = () => quote(null);
by("back").onclick = () => document.body.classList.remove("open");
by("person").onchange = () => {
  shown = "";
  drawMessages();
};

by("block").onclick = () => {
  const inside = chat.bot === "member" || chat.bot === "administrator";
  const body = { by: Number(by("person").value), status: inside ? "kicked" : "member" };
  ask(`chats/${open}/bot`, "POST", body).catch((error) => notice(error.message));
};

function askName(question) {
  const dialog = by("ask");
  dialog.querySelector("span").textContent = question;
  dialog.querySelector("input").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? dialog.querySelector("input").value.trim() : "");
  });
}

by("add-person").onclick = async () => {
  const name = await askName("What is the person called?");
  if (!name) return;
  const user = await ask("users", "POST", { first_name: name, language_code: "en" });
  await show((await ask("chats", "POST", { type: "private", user: user.id })).id);
};

by("add-group").onclick = async () => {
  const title = await askName("What is the group called? Everybody here becomes a member.");
  if (!title) return;
  const members = state.users.map((user) => user.id);
  await show((await ask("chats", "POST", { type: "group", title, members })).id);
};

// What happens

async function refresh() {
  state = await ask("state");
  const moved = state.chats.find((one) => one.id === open)?.migrated_to;
  if (moved) {
    open = moved;
    bubbles.clear();
  }
  drawChats();
  if (open === null) return;
  const id = open;
  const found = await ask(`chats/${id}`);
  if (id !== open) return; // another chat was chosen meanwhile
  chat = found;
  drawHead();
  drawPeople();
  drawMessages();
  await drawPressed();
}

let running = false;
let again = false;

async function changed() {
  again = true;
  if (running) return;
  running = true;
  try {
    while (again) {
      again = false;
      await refresh();
    }
  } catch (error) {
    notice(error.message);
  } finally {
    running = false;
  }
}

new EventSource("/control/events").onmessage = changed;
setInterval(() => chat && (Object.keys(chat.actions).length || chat.drafts.length) && changed(), 1000); // they run out
