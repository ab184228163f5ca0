use super::corpus::Maker;
use super::*;
use crate::run::Kind;
use bitnet_testkit::golden;
use bitnet_tokenizer::Tokenizer;
use std::path::PathBuf;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(&golden::fixtures().join("bitnet-online")).unwrap().unwrap()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn corpus(
        &self,
        kind: Kind,
        files: &[PathBuf],
        threads: usize,
    ) -> (Result<Corpus, crate::TrainError>, Skipped) {
        let tokenizer = tokenizer();
        let maker = Maker { tokenizer: &tokenizer, identity: "x", kind, vocab: 512, threads };
        let folder = self.0.path().join(format!("data{threads}"));
        let corpus = Corpus::of(files, &folder, &maker);
        let skipped = corpus.as_ref().map(|corpus| corpus.set.skipped.clone()).unwrap_or_default();
        (corpus, skipped)
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (files, tokenizer) = (Files::new(), tokenizer());
    let text = files.write("a.txt", "ships at night");
    // It has 512 tokens.
    let maker = Maker { tokenizer: &tokenizer, identity: "x", kind: Kind::Pretrain, vocab: 40, threads: 1 };
    let error = Corpus::of(&[text], &files.0.path().join("data"), &maker).err().unwrap().to_string();
    assert!(error.contains("a.txt") && error.contains("40 tokens: they do not belong together"), "{error}");
}

fn all(corpus: &Corpus) -> Vec<Vec<(u32, bool)>> {
    (0..corpus.len()).map(|i| corpus.words(i, 0, corpus.tokens(i))).collect()
}

#[test]
fn documents_begin_and_end_and_bad_rows_are_named() {
    let files = Files::new();
    let text = files.write("a.txt", "ships at night");
    let lines = files.write(
        "b.jsonl",
        "{\"text\": \"one\"}\n\nnonsense\n{\"text\": 3}\n{\"prompt\": \"two\", \"completion\": \" three\"}\n{}\n",
    );
    let list = files.write("c.json", "[{\"text\": \"four\"}, {\"text\": \"\"}]");
    let paths = [text, lines.clone(), list];
    let (corpus, skipped) = files.corpus(Kind::Pretrain, &paths, 1);
    let corpus = corpus.unwrap();
    let tokenizer = tokenizer();
    let texts: Vec<String> = all(&corpus)
        .iter()
        .map(|words| {
            let ids: Vec<u32> = words.iter().map(|(id, _)| *id).collect();
            assert_eq!((ids.first(), ids.last()), (tokenizer.bos().as_ref(), tokenizer.eos().as_ref()));
            assert!(words.iter().all(|(_, counts)| *counts));
            tokenizer.decode(&ids, true).unwrap()
        })
        .collect();
    assert_eq!(texts, ["ships at night", "one", "two three", "four"]);
    assert_eq!(skipped.count, 4);
    assert!(skipped.first[0].starts_with(&format!("{}:3: it is no JSON", lines.display())), "{skipped:?}");
    assert!(skipped.first[1].ends_with("b.jsonl:4: its text is no text"));
    assert!(skipped.first[2].contains("b.jsonl:6: it has none of text"));
    assert!(skipped.first[3].contains("c.json: element 2: its text is empty"));
    // Several threads give the same, and what was encoded is not encoded again.
    assert_eq!(all(&files.corpus(Kind::Pretrain, &paths, 3).0.unwrap()), all(&corpus));
    assert_eq!(files.corpus(Kind::Pretrain, &paths, 3).1, skipped);
}

#[test]
fn tables_have_columns_by_name() {
    let files = Files::new();
    let messages =
        r#"[{""role"": ""user"", ""content"": ""hi""}, {""role"": ""assistant"", ""content"": ""ho""}]"#;
    let rows = [
        "id,prompt,completion,messages",
        "1,\"two\nlines\",answer,",
        "2,why?,,",
        &format!("3,,,\"{messages}\""),
        "4,,,{",
        "5,too,few",
        "6,a,b,",
    ];
    let table = files.write("a.csv", rows.join("\n"));
    let (corpus, skipped) = files.corpus(Kind::Sft, std::slice::from_ref(&table), 2);
    assert_eq!(corpus.unwrap().len(), 3);
    assert_eq!(skipped.count, 3);
    for (first, (line, why)) in skipped.first.iter().zip([
        (4, "it has a prompt and no completion"),
        (6, "its messages are no JSON"),
        (7, "it has 3 cells, and there are 4 columns"),
    ]) {
        assert!(first.starts_with(&format!("{}:{line}: {why}", table.display())), "{first}");
    }
    let table = files.write("b.csv", "id,question\n1,why?\n");
    let error = files.corpus(Kind::Sft, &[table], 1).0.unwrap_err().to_string();
    assert!(error.ends_with("b.csv has none of the columns text, prompt, completion, messages"), "{error}");
}

#[test]
fn only_answers_count_in_fine_tuning() {
    let files = Files::new();
    let lines = files.write(
        "a.jsonl",
        concat!(
            r#"{"prompt": "1 + 1 =", "completion": " 2"}"#,
            "\n",
            r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},"#,
            r#" {"role": "user", "content": "ha"}, {"role": "assistant", "content": "he"}]}"#
        ),
    );
    let corpus = files.corpus(Kind::Sft, &[lines], 2).0.unwrap();
    let tokenizer = tokenizer();
    let parts: Vec<Vec<String>> = all(&corpus)
        .iter()
        .map(|words| {
            let runs = words.chunk_by(|a, b| a.1 == b.1);
            let text = |run: &[(u32, bool)]| {
                tokenizer.decode(&run.iter().map(|w| w.0).collect::<Vec<_>>(), false).unwrap()
            };
            runs.map(text).collect()
        })
        .collect();
    assert_eq!(parts[0].len(), 2, "{parts:?}");
    assert!(parts[0][0].ends_with("1 + 1 =") && parts[0][1].starts_with(" 2"), "{parts:?}");
    assert_eq!(parts[1].len(), 4, "{parts:?}");
    assert!(parts[1][0].contains("hi") && parts[1][1].contains("ho"), "{parts:?}");
    assert!(parts[1][2].contains("ha") && parts[1][3].contains("he"), "{parts:?}");
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let files = Files::new();
    let text = files.write("a.txt", "plain");
    let empty = files.write("b.jsonl", "\n{}\n");
    let other = files.write("c.docx", "x");
    for (path, words) in [
        (&text, "fine-tuning needs messages"),
        (&empty, "there is no example in"),
        (&other, "ends in none of .txt, .jsonl, .json, .csv and .parquet"),
    ] {
        let error = files.corpus(Kind::Sft, std::slice::from_ref(path), 1).0.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    // A damaged file of tokens.
    let (corpus, _) = files.corpus(Kind::Pretrain, std::slice::from_ref(&text), 7);
    drop(corpus.unwrap());
    let folder = files.0.path().join("data7");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort_unstable();
    for (path, words) in paths.iter().zip(["skipped.json is damaged; remove", "tokens is damaged; remove it"])
    {
        std::fs::write(path, [9, 0, 0, 0, 1]).unwrap();
        let error = files.corpus(Kind::Pretrain, std::slice::from_ref(&text), 7).0.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn rows_are_full_and_have_every_token_once() {
    let files = Files::new();
    let lines: String =
        (0..40).map(|i| format!("{{\"text\": \"{}\"}}\n", format!("word {i} ").repeat(i + 1))).collect();
    let lines = files.write("a.jsonl", lines);
    let corpus = files.corpus(Kind::Pretrain, &[lines], 2).0.unwrap();
    let rows = Rows::new(&corpus, Kind::Pretrain, Split::All, 32, false, 5).unwrap();
    let inputs: usize = (0..corpus.len()).map(|i| corpus.tokens(i) - 1).sum();
    assert_eq!(rows.len(), inputs.div_ceil(32));
    let whole = rows.plain(&corpus, 0, rows.len());
    assert_eq!((whole.ids.len(), whole.counted()), (inputs, inputs));
    assert_eq!(rows.plain(&corpus, 3, 1).ids.len(), 32);
    // A sequence never sees another document.
    for span in &whole.spans {
        let next = span.clone().skip(1);
        assert!(next.into_iter().all(|i| whole.ids[i] == whole.targets[i - 1]));
    }
    // An epoch has every row once; the next one in another order; any part of it is the same by itself.
    let epoch = |n: u64| rows.shuffled(&corpus, n * rows.len() as u64, rows.len());
    let sorted = |batch: &Batch| {
        let mut pairs: Vec<(u32, u32)> =
            batch.ids.iter().copied().zip(batch.targets.iter().copied()).collect();
        pairs.sort_unstable();
        pairs
    };
    assert_eq!(sorted(&epoch(0)), sorted(&whole));
    assert_eq!(sorted(&epoch(1)), sorted(&whole));
    assert_ne!(epoch(0), epoch(1));
    let mut parts = rows.shuffled(&corpus, 0, 2).ids;
    parts.extend(rows.shuffled(&corpus, 2, 3).ids);
    assert_eq!(parts, rows.shuffled(&corpus, 0, 5).ids);
    // A share for validation and the rest are all.
    let part = |split| {
        let rows = Rows::new(&corpus, Kind::Pretrain, split, 32, false, 5).unwrap();
        rows.plain(&corpus, 0, rows.len()).ids.len()
    };
    let (train, validation) = (part(Split::Train(0.25)), part(Split::Validation(0.25)));
    assert!(train > validation && validation > 0);
    assert_eq!(train + validation, inputs);
}

#[test]
fn examples_of_fine_tuning_stay_whole() {
    let files = Files::new();
    let line = |n: usize| format!("{{\"prompt\": \"a\", \"completion\": \"{}\"}}\n", "bc ".repeat(n));
    let lines = files.write("a.jsonl", [line(1), line(40), line(2), line(2)].concat());
    let corpus = files.corpus(Kind::Sft, &[lines], 2).0.unwrap();
    let error = Rows::new(&corpus, Kind::Sft, Split::All, 16, false, 1).unwrap_err().to_string();
    assert!(error.contains("example 2 has") && error.contains("data.too_long"), "{error}");
    let rows = Rows::new(&corpus, Kind::Sft, Split::All, 16, true, 1).unwrap();
    assert_eq!(rows.dropped, 1);
    let whole = rows.plain(&corpus, 0, rows.len());
    assert_eq!(whole.spans.len(), 3);
    for row in 0..rows.len() {
        assert!(rows.plain(&corpus, row, 1).ids.len() <= 16);
    }
}

#[test]
fn pairs_have_a_prompt_and_two_answers() {
    let files = Files::new();
    let chat = |said: &[(&str, &str)]| -> serde_json::Value {
        said.iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect()
    };
    let (asked, good, bad) = (("user", "hi"), ("assistant", "ho"), ("assistant", "ha"));
    let rows = [
        serde_json::json!({"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}),
        serde_json::json!({"prompt": chat(&[asked]), "chosen": chat(&[good]), "rejected": chat(&[bad])}),
        serde_json::json!({"prompt": "hi", "chosen": chat(&[asked, good]), "rejected": chat(&[asked, bad])}),
        serde_json::json!({"prompt": "hi", "chosen": chat(&[good]), "rejected": chat(&[bad])}),
        serde_json::json!({"prompt": "a", "chosen": " b"}),
        serde_json::json!({"prompt": "a", "chosen": "b", "rejected": "b"}),
        serde_json::json!({"chosen": "a", "rejected": "b"}),
        serde_json::json!({"prompt": "a", "chosen": chat(&[good, asked]), "rejected": chat(&[bad])}),
        serde_json::json!({"chosen": chat(&[good]), "rejected": chat(&[bad])}),
        serde_json::json!({"chosen": chat(&[asked, good, asked, good]), "rejected": chat(&[asked, bad, asked, good])}),
        serde_json::json!({"prompt": "a", "completion": "b"}),
    ];
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let lines = files.write("a.jsonl", lines);
    let (corpus, skipped) = files.corpus(Kind::Dpo, std::slice::from_ref(&lines), 2);
    let (corpus, tokenizer) = (corpus.unwrap(), tokenizer());
    assert_eq!((corpus.len(), skipped.count), (8, 7));
    let why = [
        "5: it has no rejected",
        "6: chosen and rejected are the same",
        "7: it has no prompt",
        "8: chosen or rejected does not end with what the assistant says",
        "9: it has no prompt",
    ];
    for (first, why) in skipped.first.iter().zip(why) {
        assert!(first.ends_with(why), "{first}");
    }
    let all = all(&corpus);
    let text = |words: &[(u32, bool)], counts: bool| {
        let ids: Vec<u32> = words.iter().filter(|w| w.1 == counts).map(|w| w.0).collect();
        tokenizer.decode(&ids, true).unwrap()
    };
    assert!(
        text(&all[0], false).ends_with("1 + 1 =")
            && text(&all[0], true) == " 2"
            && text(&all[1], true) == " 3"
    );
    // The three forms of a conversation are one.
    assert!(text(&all[2], false).contains("hi") && text(&all[2], true).contains("ho"), "{:?}", all[2]);
    assert!(all[2..4] == all[4..6] && all[2..4] == all[6..8] && all[2] != all[3]);
    // Each pair is a row, both answers whole.
    let rows = Rows::new(&corpus, Kind::Dpo, Split::All, 64, false, 1).unwrap();
    assert_eq!(rows.len(), 4);
    let batch = rows.plain(&corpus, 0, 4);
    assert_eq!(batch.spans.len(), 8);
    assert!(batch.examples.as_chunks::<2>().0.iter().all(|[a, b]| a % 2 == 0 && *b == a + 1));
    let error = Rows::new(&corpus, Kind::Dpo, Split::All, 3, false, 1).unwrap_err().to_string();
    assert!(error.contains("pair ") && error.contains("data.too_long"), "{error}");
    assert_eq!(Rows::new(&corpus, Kind::Dpo, Split::All, 3, true, 1).unwrap().dropped, 4);
    let text = files.write("b.txt", "ships");
    let error = files.corpus(Kind::Dpo, &[text], 1).0.unwrap_err().to_string();
    assert!(error.contains("it is plain text, and no pair of answers"), "{error}");
}
