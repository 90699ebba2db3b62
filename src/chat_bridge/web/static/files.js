// The files of a message on the page: small pictures, players, links to all others. What somebody else sent is never
// put into the page itself but by these elements, and their types are decided by the server.

import { create, fileIcon, fill, readableSize } from "./dom.js";

const LONGER_SIDE = 320; // of a small picture

const asLink = new WeakMap(); // of each item, what makes a link of it

export function renderFiles(files, texts) {
  const list = create("ul", "files");
  for (const file of files) {
    const item = create("li");
    item.append(shownAs(file, texts));
    asLink.set(item, () => link(file, texts));
    list.append(item);
  }
  return list;
}

// In place of a picture or a player that the browser can't show: a link.
export function showAsLink(element) {
  const item = element.closest("li");
  item.replaceChildren(asLink.get(item)());
}

function shownAs(file, texts) {
  const { kind, mime_type, url, thumbnail_url } = file;
  if (!url) return card("span", file, whyNot(file, texts), texts);
  if (thumbnail_url) return picture(file, texts);
  if ((kind === "audio" || kind === "video") && create(kind).canPlayType(mime_type)) return player(file, texts);
  return link(file, texts);
}

function whyNot({ status, reason, size }, texts) {
  if (status === "waiting") return texts.file_fetching;
  if (status === "failed") return fill(texts.file_missing, { reason });
  return size ? readableSize(size) : ""; // just uploaded, its message is on the way
}

// Width and height are known before the picture is there, so that nothing jumps when it comes.
function picture(file, texts) {
  const anchor = create("a", "picture");
  const image = create("img");
  const scale = Math.min(1, LONGER_SIDE / Math.max(file.width, file.height));
  image.width = Math.max(1, Math.round(file.width * scale));
  image.height = Math.max(1, Math.round(file.height * scale));
  image.alt = file.name ?? texts.image;
  image.loading = "lazy";
  image.src = file.thumbnail_url;
  anchor.append(image);
  return open(anchor, file);
}

function player(file, texts) {
  const box = create("figure", "player");
  const media = create(file.kind);
  media.controls = true;
  media.preload = "metadata";
  media.playsInline = true;
  media.ariaLabel = file.name ?? texts[file.kind];
  media.src = file.url;
  box.append(media, link(file, texts));
  return box;
}

function link(file, texts) {
  return open(card("a", file, file.size ? readableSize(file.size) : "", texts), file);
}

function open(anchor, { id, url }) {
  anchor.href = url;
  anchor.target = "_blank";
  anchor.rel = "noopener";
  anchor.dataset.file = id;
  return anchor;
}

function card(tag, { name, kind }, about, texts) {
  const element = create(tag, "file");
  const words = create("span", "about");
  words.append(create("span", "name", name ?? texts[kind]), create("span", "state", about));
  element.append(fileIcon(), words);
  return element;
}
