// A text with entities as DOM nodes. Offsets count UTF-16 units, as JavaScript's strings do.

const TAGS = {
  bold: "b",
  italic: "i",
  underline: "u",
  strikethrough: "s",
  blockquote: "blockquote",
  expandable_blockquote: "blockquote",
  code: "code",
  pre: "pre",
};

const BLOCKS = new Set(["blockquote", "pre"]);

function element(entity, text) {
  if (entity.type === "spoiler") {
    const spoiler = document.createElement("button");
    spoiler.type = "button";
    spoiler.className = "spoiler";
    spoiler.title = "Show what is hidden";
    spoiler.onclick = () => spoiler.classList.add("shown");
    return spoiler;
  }
  const address = entity.type === "text_link" ? entity.url : entity.type === "url" ? text : null;
  if (address !== null && /^https?:\/\//i.test(address)) {
    const link = document.createElement("a");
    link.href = address;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    return link;
  }
  const made = document.createElement(TAGS[entity.type] ?? "span");
  if (entity.language) made.title = entity.language;
  if (["mention", "bot_command", "hashtag", "text_mention"].includes(entity.type)) made.className = "name-of";
  return made;
}

// Entities lie one in another or side by side, sorted by where they begin.
function fill(parent, text, from, to, entities) {
  let at = from;
  while (entities.length && entities[0].offset < to) {
    const entity = entities.shift();
    const end = Math.min(entity.offset + entity.length, to);
    parent.append(text.slice(at, entity.offset));
    const child = element(entity, text.slice(entity.offset, end));
    fill(child, text, entity.offset, end, entities);
    parent.append(child);
    at = BLOCKS.has(child.localName) && text[end] === "\n" ? end + 1 : end; // a block ends its line by itself
  }
  parent.append(text.slice(at, to));
}

export function formatted(text, entities) {
  const fragment = document.createDocumentFragment();
  fill(fragment, text, 0, text.length, [...entities]);
  return fragment;
}
