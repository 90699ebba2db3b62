// Markdown to DOM. Whatever a message says ends up in a text node or in an element made here by name, so HTML in it
// stays text. Every rule looks at each character a bounded number of times: no message makes this slower than linear.

const DEEPEST = 8; // quotes and lists inside each other; deeper markers stay text
const MOST_COLUMNS = 50;
const MOST_OPENERS = 16; // emphasis marks that may wait for their partner, which also bounds how deep emphasis nests

export function renderMarkdown(text, copyLabel) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const fragment = document.createDocumentFragment();
  appendBlocks(fragment, lines.map(expandLeadingTabs), { depth: 0, copyLabel });
  for (const block of fragment.children) block.dir = "auto";
  return fragment;
}

// Blocks. Each function below appends the block that begins at line `at` and returns the line after it, or `at`
// itself when no such block begins there.

const BLOCKS = [fence, heading, rule, quote, list, table, paragraph];

function appendBlocks(parent, lines, place) {
  for (let at = skipBlank(lines, 0); at < lines.length; at = skipBlank(lines, at)) {
    at = appendBlock(parent, lines, at, place);
  }
}

function appendBlock(parent, lines, at, place) {
  for (const block of BLOCKS) {
    const end = block(parent, lines, at, place);
    if (end > at) return end;
  }
}

// A fence that is not closed yet runs to the end: a code block is code from its first line on, while it streams in.
function fence(parent, lines, at, place) {
  const opening = readFence(lines[at]);
  if (!opening) return at;
  let end = at + 1;
  while (end < lines.length && !closesFence(lines[end], opening.marker)) end += 1;
  const code = lines.slice(at + 1, end).map((line) => dedent(line, opening.indent));
  parent.append(codeBlock(code.join("\n"), opening.language, place.copyLabel));
  return end + 1;
}

function readFence(line) {
  const match = /^( *)(`{3,}|~{3,})(.*)$/s.exec(line);
  if (!match) return null;
  const [, indent, marker, info] = match;
  if (marker[0] === "`" && info.includes("`")) return null; // that is a code span
  return { indent: indent.length, marker, language: info.trim().split(/\s/, 1)[0] };
}

function closesFence(line, marker) {
  const text = line.trim();
  return text.startsWith(marker) && text === marker[0].repeat(text.length);
}

function codeBlock(code, language, copyLabel) {
  const figure = create("figure", "code");
  const caption = create("figcaption");
  const name = create("span", "language");
  const copy = create("button", "copy");
  const pre = create("pre");
  const content = create("code");
  name.textContent = language;
  copy.type = "button";
  copy.textContent = copyLabel;
  pre.dir = "ltr";
  pre.tabIndex = 0; // so that the keyboard can scroll long lines
  content.textContent = code;
  caption.append(name, copy);
  pre.append(content);
  figure.append(caption, pre);
  return figure;
}

function heading(parent, lines, at) {
  const match = /^ *(#{1,6})(?: +(.*))?$/s.exec(lines[at]);
  if (!match) return at;
  const level = Math.min(match[1].length + 1, 6); // the page itself has the first level
  parent.append(withInline(create(`h${level}`), match[2] ?? ""));
  return at + 1;
}

function rule(parent, lines, at) {
  if (!isRule(lines[at])) return at;
  parent.append(create("hr"));
  return at + 1;
}

function isRule(line) {
  return /^ *([-*_])(?: *\1){2,} *$/.test(line);
}

function quote(parent, lines, at, place) {
  if (place.depth >= DEEPEST) return at;
  let end = at;
  while (end < lines.length && isQuote(lines[end])) end += 1;
  if (end === at) return at;
  const element = create("blockquote");
  const inner = lines.slice(at, end).map((line) => line.replace(/^ *> ?/, ""));
  appendBlocks(element, inner, { ...place, depth: place.depth + 1 });
  parent.append(element);
  return end;
}

function isQuote(line) {
  return /^ *>/.test(line);
}

function list(parent, lines, at, place) {
  const first = readItem(lines[at]);
  if (!first || place.depth >= DEEPEST) return at;
  const element = create(first.ordered ? "ol" : "ul");
  if (first.ordered && first.number !== 1) element.start = first.number;
  let end = at;
  for (let next = at; isItemOf(first, lines, next); next = skipBlank(lines, end)) {
    end = endOfItem(lines, next);
    element.append(listItem(lines.slice(next, end), place));
  }
  parent.append(element);
  return end;
}

function isItemOf(first, lines, at) {
  return at < lines.length && !isRule(lines[at]) && readItem(lines[at])?.ordered === first.ordered;
}

function readItem(line) {
  const match = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*)|$)/s.exec(line);
  if (!match) return null;
  const [, indent, marker, gap = " ", text = ""] = match;
  const ordered = marker.length > 1;
  return {
    indent: indent.length,
    contentIndent: indent.length + marker.length + gap.length,
    ordered,
    number: ordered ? Number.parseInt(marker, 10) : 0,
    text,
  };
}

// An item holds the lines that are indented below it, however many blank ones are between, and the lines that simply
// go on with its last paragraph. Two spaces are enough, since many writers use two below "1." as well.
function endOfItem(lines, at) {
  const { indent } = readItem(lines[at]);
  let end = at + 1;
  while (end < lines.length) {
    const next = skipBlank(lines, end);
    if (next === lines.length) break;
    const belongs = indentOf(lines[next]) >= indent + 2;
    const goesOn = next === end && !readItem(lines[end]) && !startsBlock(lines, end, 0);
    if (!belongs && !goesOn) break;
    end = next + 1;
  }
  return end;
}

function listItem(lines, place) {
  const { text, contentIndent } = readItem(lines[0]);
  const rest = lines.slice(1).map((line) => dedent(line, contentIndent));
  const task = /^\[([ xX])\] +(.*)$/s.exec(text);
  const element = create("li", task ? "task" : "");
  if (task) element.append(checkbox(task[1] !== " ", task[2]));
  appendBlocks(element, [task ? task[2] : text, ...rest], { ...place, depth: place.depth + 1 });
  return element;
}

function checkbox(checked, label) {
  const box = create("input");
  box.type = "checkbox";
  box.disabled = true;
  box.toggleAttribute("checked", checked);
  box.setAttribute("aria-label", label);
  return box;
}

function table(parent, lines, at) {
  const columns = readTableHead(lines, at);
  if (!columns) return at;
  const frame = create("div", "table");
  const element = create("table");
  const head = create("thead");
  const body = create("tbody");
  frame.tabIndex = 0; // so that the keyboard can scroll a wide table
  head.append(tableRow("th", columns.titles, columns.sides));
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|") && !startsBlock(lines, end, 0); end += 1) {
    // Cells that a row lacks are not made up: a short row of a wide table would cost more than it holds.
    body.append(tableRow("td", splitRow(lines[end]).slice(0, columns.sides.length), columns.sides));
  }
  element.append(head, body);
  frame.append(element);
  parent.append(frame);
  return end;
}

function readTableHead(lines, at) {
  const marks = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !/^[ |:-]+$/.test(marks)) return null;
  const cells = splitRow(marks);
  const titles = splitRow(lines[at]);
  if (cells.length !== titles.length || cells.length > MOST_COLUMNS) return null;
  if (!cells.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return { titles, sides: cells.map(readSide) };
}

function readSide(cell) {
  if (cell.endsWith(":")) return cell.startsWith(":") ? "middle" : "end";
  return "";
}

function splitRow(line) {
  const cells = [];
  let cell = "";
  const row = line.trim();
  for (const part of row.slice(row.startsWith("|") ? 1 : 0).match(/\\\||\||[^|\\]+|\\/g) ?? []) {
    if (part === "|") {
      cells.push(cell.trim());
      cell = "";
    } else {
      cell += part === "\\|" ? "|" : part;
    }
  }
  if (cell !== "" || cells.length === 0) cells.push(cell.trim());
  return cells;
}

function tableRow(tag, cells, sides) {
  const row = create("tr");
  cells.forEach((text, index) => row.append(withInline(create(tag, sides[index]), text)));
  return row;
}

function paragraph(parent, lines, at, place) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !startsBlock(lines, end, place.depth)) end += 1;
  parent.append(withInline(create("p"), lines.slice(at, end).join("\n").trim()));
  return end;
}

// A line of dashes below a paragraph is a rule here, not a heading: that is what chat agents mean by it. A number
// other than 1 begins no list in the middle of a paragraph, so that a year at the start of a line stays a year.
function startsBlock(lines, at, depth) {
  const line = lines[at];
  if (readFence(line) || /^ *#{1,6}(?: |$)/.test(line) || isRule(line) || readTableHead(lines, at)) return true;
  if (depth >= DEEPEST) return false;
  const item = readItem(line);
  return isQuote(line) || (item !== null && item.text !== "" && item.number <= 1);
}

function isBlank(line) {
  return line.trim() === "";
}

function skipBlank(lines, at) {
  while (at < lines.length && isBlank(lines[at])) at += 1;
  return at;
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function dedent(line, width) {
  return line.slice(Math.min(width, indentOf(line)));
}

function expandLeadingTabs(line) {
  return line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));
}

// Inline text.

function withInline(element, text) {
  return fill(element, new InlineReader(text, { links: true }).read());
}

const SPECIAL = /\\|`+|\*+|_+|~+|!?\[|<|\n *|https?:\/\/|mailto:/gi;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const TARGET = /\s{0,9}(?:<([^<>\n]{0,2000})>|((?:[^\s()\\]|\\.|\([^\s()]{0,500}\)){0,2000}))(?:\s{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,9}\)/y;
const ANGLE_LINK = /<((?:https?:\/\/|mailto:)[^\s<>]*|[^\s<>@]+@[^\s<>@]+)>/iy;
const BARE_LINK = /(?:https?:\/\/|mailto:)[^\s<>[\]`"|\\]*/iy;
const TAGS = { "*": ["em", "strong"], _: ["em", "strong"], "~": [null, "del"] };

class InlineReader {
  #text;
  #links;
  #codeEnds;
  #closingBrackets;
  #nodes = [];
  #plain = "";
  #openers = [];

  constructor(text, { links }) {
    this.#text = text;
    this.#links = links;
    [this.#codeEnds, this.#closingBrackets] = findPairs(text);
  }

  read() {
    let at = 0;
    while (at < this.#text.length) {
      SPECIAL.lastIndex = at;
      const found = SPECIAL.exec(this.#text);
      this.#plain += this.#text.slice(at, found?.index);
      if (!found) break;
      at = this.#readSpecial(found[0], found.index);
    }
    this.#flush();
    return this.#nodes;
  }

  // Takes what begins at `at`, at least the mark itself, and returns the place after it.
  #readSpecial(mark, at) {
    switch (mark[0]) {
      case "\\":
        return this.#readEscape(at);
      case "`":
        return this.#readCode(mark, at);
      case "*":
      case "_":
      case "~":
        return this.#readEmphasis(mark, at);
      case "\n":
        return this.#readBreak(mark, at);
      case "!":
      case "[":
        return this.#readLink(mark, at);
      case "<":
        return this.#readAngleLink(at);
      default:
        return this.#readBareLink(at);
    }
  }

  #readEscape(at) {
    const next = this.#text[at + 1] ?? "";
    if (next === "\n") return at + 1; // the line break itself follows
    if (!ESCAPABLE.test(next)) return this.#readPlain("\\", at);
    this.#plain += next;
    return at + 2;
  }

  #readCode(mark, at) {
    const end = this.#codeEnds.get(at);
    if (end === undefined) return this.#readPlain(mark, at);
    const code = create("code");
    const text = this.#text.slice(at + mark.length, end).replaceAll("\n", " ");
    const padded = text.startsWith(" ") && text.endsWith(" ") && text.trim() !== "";
    code.textContent = padded ? text.slice(1, -1) : text;
    this.#push(code);
    return end + mark.length;
  }

  // In a chat every new line is meant as one, so there are no soft breaks.
  #readBreak(mark, at) {
    this.#plain = this.#plain.trimEnd();
    this.#push(create("br"));
    return at + mark.length;
  }

  #readLink(mark, at) {
    const open = at + mark.length - 1;
    const close = this.#closingBrackets.get(open);
    if (!this.#links || this.#text[close + 1] !== "(") return this.#readPlain(mark, at);
    TARGET.lastIndex = close + 2;
    const target = TARGET.exec(this.#text);
    const url = target && safeUrl((target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    if (!url) return this.#readPlain(mark, at);
    const label = this.#text.slice(open + 1, close).trim();
    const link = linkTo(url, mark === "![" ? "image" : "");
    this.#push(fill(link, new InlineReader(label || url, { links: false }).read()));
    return TARGET.lastIndex;
  }

  #readAngleLink(at) {
    ANGLE_LINK.lastIndex = at;
    const [whole, target] = (this.#links && ANGLE_LINK.exec(this.#text)) || [];
    const url = target && safeUrl(/^(?:https?|mailto):/i.test(target) ? target : `mailto:${target}`);
    if (!url) return this.#readPlain("<", at);
    this.#push(fill(linkTo(url), [target]));
    return at + whole.length;
  }

  #readBareLink(at) {
    BARE_LINK.lastIndex = at;
    const candidate = trimUrl(BARE_LINK.exec(this.#text)[0]);
    const url = this.#links && !isWord(this.#text[at - 1]) && safeUrl(candidate);
    if (!url) return this.#readPlain(candidate, at);
    this.#push(fill(linkTo(url), [candidate]));
    return at + candidate.length;
  }

  // CommonMark's delimiter runs, with two bounds: longer runs than *** are text, and only the newest openers wait.
  #readEmphasis(mark, at) {
    const char = mark[0];
    const { opens, closes } = sidesOf(char, this.#text[at - 1], this.#text[at + mark.length]);
    let left = mark.length;
    if (mark.length > 3 || (char === "~" && mark.length !== 2)) return this.#readPlain(mark, at);
    if (closes) left = this.#close(char, mark.length, opens);
    if (left > 0 && opens) this.#open(char, left, mark.length, closes);
    else this.#plain += char.repeat(left);
    return at + mark.length;
  }

  #open(char, left, length, closes) {
    const node = document.createTextNode(char.repeat(left));
    this.#push(node);
    this.#openers.push({ char, left, length, closes, node, index: this.#nodes.length - 1 });
    if (this.#openers.length > MOST_OPENERS) this.#openers.shift();
  }

  #close(char, length, opens) {
    let left = length;
    while (left > 0) {
      const at = this.#openers.findLastIndex((opener) => opener.char === char && fits(opener, length, opens));
      if (at < 0) break;
      const opener = this.#openers[at];
      const used = Math.min(2, left, opener.left);
      this.#openers.length = at + 1;
      this.#wrap(opener, used);
      left -= used;
    }
    return left;
  }

  #wrap(opener, used) {
    this.#flush();
    const element = fill(create(TAGS[opener.char][used - 1]), this.#nodes.splice(opener.index + 1));
    opener.left -= used;
    opener.node.data = opener.char.repeat(opener.left);
    if (opener.left === 0) {
      this.#openers.pop();
      this.#nodes.pop();
    }
    this.#nodes.push(element);
  }

  #readPlain(text, at) {
    this.#plain += text;
    return at + text.length;
  }

  #push(node) {
    this.#flush();
    this.#nodes.push(node);
  }

  #flush() {
    if (this.#plain) this.#nodes.push(document.createTextNode(this.#plain));
    this.#plain = "";
  }
}

// Where the code span ends that begins at a place, and where the bracket closes that opens there. Found for the whole
// text beforehand, since looking for each partner on its own would be quadratic.
function findPairs(text) {
  const codeEnds = new Map();
  const closingBrackets = new Map();
  const runs = backtickRuns(text);
  const open = [];
  const token = /\\.|`+|[[\]]/gs;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    const [mark] = found;
    if (mark === "[") {
      open.push(found.index);
    } else if (mark === "]") {
      if (open.length > 0) closingBrackets.set(open.pop(), found.index);
    } else if (mark[0] === "`") {
      const ends = runs.get(mark.length) ?? [];
      while (ends.at(-1) <= found.index) ends.pop();
      if (ends.length === 0) continue;
      codeEnds.set(found.index, ends.at(-1));
      token.lastIndex = ends.at(-1) + mark.length;
    }
  }
  return [codeEnds, closingBrackets];
}

// The places of all runs of backticks by their length, the first place last.
function backtickRuns(text) {
  const runs = new Map();
  for (const { 0: run, index } of [...text.matchAll(/`+/g)].reverse()) {
    const places = runs.get(run.length);
    if (places) places.push(index);
    else runs.set(run.length, [index]);
  }
  return runs;
}

// CommonMark's rules for what a run of emphasis marks may do between these two characters.
function sidesOf(char, before = " ", after = " ") {
  const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
  const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
  if (char !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || isPunctuation(before)), closes: right && (!left || isPunctuation(after)) };
}

function fits(opener, length, opens) {
  if (opener.char === "~") return true;
  const mayDoBoth = opener.closes || opens;
  return !mayDoBoth || (opener.length + length) % 3 !== 0 || (opener.length % 3 === 0 && length % 3 === 0);
}

function isSpace(char) {
  return /\s/.test(char);
}

function isPunctuation(char) {
  return /[\p{P}\p{S}]/u.test(char);
}

function isWord(char) {
  return char !== undefined && /[\p{L}\p{N}]/u.test(char);
}

// Punctuation at the end of a bare link belongs to the sentence, and so does a parenthesis opened before the link.
function trimUrl(url) {
  let unopened = 0;
  for (const char of url) unopened += char === ")" ? 1 : char === "(" ? -1 : 0;
  let end = url.length;
  for (; end > 0; end -= 1) {
    const last = url[end - 1];
    if (last === ")" && unopened > 0) unopened -= 1;
    else if (!".,:;!?'*_~。，、！？；：".includes(last)) break;
  }
  return url.slice(0, end);
}

// The browser's own reading of the address decides, so odd spaces, cases and escapes hide nothing.
function safeUrl(target) {
  try {
    const url = new URL(target);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null; // not an absolute address
  }
}

function linkTo(url, className) {
  const link = create("a", className);
  link.href = url;
  link.title = url;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  return link;
}

function create(tag, className) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  return element;
}

function fill(element, nodes) {
  for (const node of nodes) element.append(node);
  return element;
}
