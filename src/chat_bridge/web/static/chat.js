// The chat page: puts the parts together and tells each what it has to know.

import { RunningAnswer } from "./answer.js";
import { waitBeforeRetry } from "./backoff.js";
import { Composer } from "./composer.js";
import { Conversation, Store } from "./conversation.js";
import { FileSource } from "./filesource.js";
import { Launcher } from "./launcher.js";
import { Outbox } from "./outbox.js";
import { Scroll } from "./scroll.js";
import { EventStream } from "./stream.js";
import { Timeline } from "./timeline.js";
import { Uploads } from "./uploads.js";

const PAGE = 50;
const GRACE = 3000; // the server repeats a running turn to those who come back; what it doesn't repeat has ended

const element = (id) => document.getElementById(id);
const { texts: textsOfPage, maxText, maxFile, maxFiles, linkSeconds } = document.body.dataset;
const texts = JSON.parse(textsOfPage);
const store = new Store();
let following = new AbortController(); // ends with the conversation that is followed now
let connected = null; // not known before there is a conversation
let connectionTimer;
let graceTimer;

const scroll = new Scroll(element("scroller"), element("column"), () => (element("jump").hidden = true));
const answer = new RunningAnswer(element("partial"), texts.copy);
const launcher = new Launcher(() => composer.focus());
const timeline = new Timeline(element("log"), texts, {
  onRetry: (message) => outbox.retry(message),
  onDiscard: (message) => {
    outbox.settle(message.client_msg_id);
    showWelcome();
  },
  linkAge: Number(linkSeconds) * 900, // a tenth less than they last
  renew: renewLinks,
});
const conversation = new Conversation(store, { onBegun: follow, onExpired: expire });
const outbox = new Outbox(store, (message) => conversation.send(message), {
  waiting: (message) => showOwn(() => timeline.showWaiting(message)),
  refused: (message) => showOwn(() => timeline.showRefused(message)),
  sent: (message, { seq }) => showNew({ ...message, seq, direction: "inbound", created_at: new Date().toISOString() }),
});
const uploads = new Uploads(
  element("uploads"),
  texts,
  { size: Number(maxFile), count: Number(maxFiles) },
  (file, onProgress, signal) => conversation.upload(file, onProgress, signal),
  (upload) => conversation.forget(upload),
  {
    changed: () => composer.filesChanged(),
    said: (text) => composer.say(text),
    noted: (text) => composer.note(text),
    emptied: () => element("text").focus(),
  },
);
const composer = new Composer(element("composer"), texts, Number(maxText), uploads, (text, files) => outbox.add(text, files));

const EVENTS = {
  message(message) {
    if (message.direction === "outbound" && !message.notice && !message.unasked) endTurn();
    showNew(message);
  },
  attachment(message) {
    timeline.update(message);
  },
  delta(delta) {
    if (!answer.add(delta)) return;
    showTurn(true);
    if (!scroll.atBottom) element("jump").hidden = false;
  },
  typing({ on }) {
    if (on) showTurn(true);
    else endTurn();
  },
  erased() {
    following.abort();
    endTurn();
    timeline.clear();
    follow();
  },
  error() {
    endTurn();
    refresh(); // what became of the message stands beside it
  },
};

start();

function start() {
  element("new").addEventListener("click", () => say("/new"));
  element("stop").addEventListener("click", () => say("/stop"));
  element("earlier").addEventListener("click", showEarlier);
  element("jump").addEventListener("click", () => scroll.toBottom());
  new FileSource(element("attach"), element("file"), element("text"), element("drop"), (files) => uploads.add(files));
  element("close")?.addEventListener("click", () => launcher.close());
  addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && launcher.close());
  addEventListener("online", showConnection);
  addEventListener("offline", showConnection);
  outbox.resume();
  if (conversation.begun) follow();
  else showWelcome();
  composer.focus();
}

async function refresh() {
  const { signal } = following;
  const page = await newestPage(signal);
  if (!signal.aborted) page.messages.forEach(showNew);
}

// Shows the newest messages, then whatever happens from there on.
async function follow() {
  const { signal } = (following = new AbortController());
  const page = await newestPage(signal);
  if (signal.aborted) return;
  page.messages.forEach((message) => outbox.settle(message.client_msg_id));
  timeline.showHistory(page.messages);
  element("earlier").hidden = !page.has_more;
  showWelcome();
  const stream = new EventStream({
    connect: (lastEventId, connection) => conversation.events(lastEventId, connection),
    lastEventId: String(page.messages.at(-1)?.seq ?? 0),
    onEvent: (type, data) => EVENTS[type]?.(data),
    onState: changeConnection,
  });
  signal.addEventListener("abort", () => stream.stop());
}

async function renewLinks(seq) {
  const { messages } = await conversation.history({ after: seq - 1, limit: 1 }).catch(() => ({ messages: [] }));
  messages.filter((message) => message.seq === seq).forEach((message) => timeline.update(message));
}

async function newestPage(signal) {
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      return await conversation.history({ limit: PAGE });
    } catch (error) {
      changeConnection("lost");
      await waitBeforeRetry(failures, error.retryAfter);
    }
  }
}

// The next message begins a new conversation; what is on the page stays to be read.
function expire() {
  following.abort();
  connected = null;
  showConnection();
  endTurn();
  element("earlier").hidden = true;
  timeline.beginAnew(texts.expired);
  uploads.again();
  showWelcome();
}

async function showEarlier() {
  const button = element("earlier");
  button.disabled = true;
  try {
    const page = await conversation.history({ before: timeline.firstSeq, limit: PAGE });
    scroll.keepPlace(() => {
      timeline.showHistory(page.messages);
      button.hidden = !page.has_more;
    });
    element("scroller").focus({ preventScroll: true });
  } catch {
    // The button is still there to try again.
  }
  button.disabled = false;
}

function say(text) {
  outbox.add(text);
  composer.focus();
}

function showOwn(show) {
  show();
  showWelcome();
  scroll.toBottom();
}

function showNew(message) {
  outbox.settle(message.client_msg_id);
  const isNew = timeline.show(message);
  showWelcome();
  if (!isNew || message.direction === "inbound") return;
  if (!scroll.atBottom) element("jump").hidden = false;
  launcher.arrived();
}

function showWelcome() {
  element("welcome").hidden = !timeline.empty;
}

function showTurn(running) {
  if (running) clearTimeout(graceTimer);
  element("typing").hidden = !running;
  element("stop").hidden = !running;
}

function endTurn() {
  answer.end();
  showTurn(false);
}

function changeConnection(state) {
  connected = state === "open";
  showConnection();
  clearTimeout(graceTimer);
  if (!connected) return;
  graceTimer = setTimeout(endTurn, GRACE);
  if (timeline.waitsForFiles) refresh(); // what became of them meanwhile is not told again
}

// Quietly: a short break isn't worth a word.
function showConnection() {
  const text = connected ? "" : !navigator.onLine ? texts.offline : connected === false ? texts.reconnecting : "";
  clearTimeout(connectionTimer);
  connectionTimer = setTimeout(() => (element("connection").textContent = text), text ? 1000 : 0);
}
