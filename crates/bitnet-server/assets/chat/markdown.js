// Markdown as nodes. Text goes in as text and never as HTML, and only links that lead to pages are links: whatever a model writes,
// it cannot run here, and nothing is fetched for it.

const LINK = /^(https?:\/\/|mailto:)/i;

export function markdown(text) {
  const root = document.createDocumentFragment();
  blocks(root, text.replace(/\r\n?/g, "\n").split("\n"));
  return root;
}

export function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

function blocks(parent, lines) {
  let at = 0;
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) parent.append(inlined(element("p"), paragraph.join("\n")));
    paragraph = [];
  };
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) {
      flush();
      at++;
    } else if ((found = FENCE.exec(line))) {
      flush();
      at = fence(parent, lines, at, found);
    } else if ((found = HEADING.exec(line))) {
      flush();
      parent.append(inlined(element(`h${found[1].length}`), found[2]));
      at++;
    } else if (RULE.test(line)) {
      flush();
      parent.append(element("hr"));
      at++;
    } else if (QUOTE.test(line)) {
      flush();
      const inner = [];
      while (at < lines.length && QUOTE.test(lines[at])) inner.push(lines[at++].replace(QUOTE, ""));
      const quote = element("blockquote");
      blocks(quote, inner);
      parent.append(quote);
    } else if (ITEM.test(line) && !(paragraph.length && /^\s*\d/.test(line) && !/^\s*1[.)]/.test(line))) {
      flush();
      at = list(parent, lines, at);
    } else if (line.includes("|") && at + 1 < lines.length && DIVIDER.test(lines[at + 1]) && lines[at + 1].includes("-")) {
      flush();
      at = table(parent, lines, at);
    } else {
      paragraph.push(line);
      at++;
    }
  }
  flush();
}

function fence(parent, lines, at, [, indent, mark, language]) {
  const code = [];
  const close = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  for (at++; at < lines.length && !close.test(lines[at]); at++) {
    code.push(lines[at].startsWith(indent) ? lines[at].slice(indent.length) : lines[at]);
  }
  const name = element("span", "", language.trim().split(/\s+/)[0] || "text");
  const copy = element("button", "copy", "Copy");
  copy.type = "button";
  const pre = element("pre", "", element("code", "", code.join("\n")));
  pre.tabIndex = 0;
  parent.append(element("figure", "", element("figcaption", "", name, copy), pre));
  return at + 1;
}

function list(parent, lines, at) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul");
  if (ordered && Number.parseInt(mark) !== 1) node.start = Number.parseInt(mark);
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length !== indent.length || /\d/.test(found[2]) !== ordered || RULE.test(lines[at])) break;
    const inner = [found[4]];
    const inset = found[1].length + found[2].length + 1;
    for (at++; at < lines.length; at++) {
      const line = lines[at];
      const deep = /^\s*/.exec(line)[0].length;
      if (!line.trim()) {
        const next = lines.slice(at + 1).find((l) => l.trim());
        if (next === undefined || /^\s*/.exec(next)[0].length < inset) break;
        inner.push("");
      } else if (deep > indent.length && (deep >= inset || ITEM.test(line))) {
        inner.push(line.slice(Math.min(deep, inset)));
      } else if (ITEM.test(line) || HEADING.test(line) || FENCE.test(line) || QUOTE.test(line)) {
        break;
      } else {
        inner.push(line.trim());
      }
    }
    const item = element("li");
    // One text alone is no paragraph.
    const tight = !inner.includes("");
    blocks(item, inner);
    if (tight && item.firstChild?.nodeName === "P") item.firstChild.replaceWith(...item.firstChild.childNodes);
    node.append(item);
    if (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at++;
  }
  parent.append(node);
  return at;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(parent, lines, at) {
  const sides = cells(lines[at + 1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "center" : "right") : ""));
  const row = (kind, line) => {
    const all = cells(line);
    return element("tr", "", ...sides.map((side, i) => inlined(element(kind, side), all[i] ?? "")));
  };
  const head = element("thead", "", row("th", lines[at]));
  const body = element("tbody");
  for (at += 2; at < lines.length && lines[at].includes("|") && lines[at].trim(); at++) body.append(row("td", lines[at]));
  parent.append(element("div", "table", element("table", "", head, body)));
  return at;
}

// In order: an escape, code, an image or link, a bare address, strong, strike, emphasis, a hard break.
const INLINE =
  /\\([\\`*_{}[\]()#+\-.!|~>])|(`+)([^`]|[^`][\s\S]*?[^`])\2(?!`)|(!?)\[((?:[^[\]\\]|\\.|\[[^\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s()]*\)[^\s()]*)*)>?(?:\s+["'][^)]*)?\s*\)|(https?:\/\/[^\s<>]*[^\s<>.,:;!?'")\]])|(\*\*|__)(?=\S)([\s\S]*?\S)\8|~~(?=\S)([\s\S]*?\S)~~|(?<![\w*])\*(?=[^\s*])([\s\S]*?[^\s*])\*(?!\*)|(?<!\w)_(?=[^\s_])([\s\S]*?[^\s_])_(?!\w)|( {2,}|\\)\n/g;

function inlined(parent, text) {
  let from = 0;
  for (const m of text.matchAll(INLINE)) {
    parent.append(text.slice(from, m.index));
    from = m.index + m[0].length;
    if (m[1]) parent.append(m[1]);
    else if (m[2]) parent.append(element("code", "", m[3].replace(/^ (.*\S.*) $/, "$1")));
    else if (m[5] !== undefined) parent.append(link(m[6], m[5] || m[6], m[0]));
    else if (m[7]) parent.append(link(m[7], m[7], m[0]));
    else if (m[8]) parent.append(inlined(element("strong"), m[9]));
    else if (m[10]) parent.append(inlined(element("del"), m[10]));
    else if (m[11] || m[12]) parent.append(inlined(element("em"), m[11] || m[12]));
    else parent.append(element("br"));
  }
  parent.append(text.slice(from));
  return parent;
}

// A picture is a link to it: nobody is told that it was looked at.
function link(to, label, source) {
  if (!LINK.test(to)) return document.createTextNode(source);
  const node = element("a", "");
  node.append(label === to ? label : inlined(document.createDocumentFragment(), label));
  node.href = to;
  node.rel = "noopener noreferrer nofollow";
  node.target = "_blank";
  return node;
}
