//! Texts that an answer may not contain.

use super::*;

fn request(seed: u64, banned: &[&str]) -> Request {
    Request {
        prompt: (3..20).collect(),
        sampling: SamplerOptions {
            seed: Some(seed),
            temperature: [0.0, 1.2][seed as usize % 2],
            ..SamplerOptions::default()
        },
        max_tokens: Some(48),
        ignore_eos: true,
        banned: banned.iter().map(|text| (*text).to_owned()).collect(),
        ..Request::default()
    }
}

fn answer(engine: &mut Engine, request: Request) -> Answer {
    run(engine, &[request], false).remove(&(0, 0)).unwrap()
}

#[test]
fn what_an_answer_said_it_says_no_more() {
    let mut plain = engine(2048, EngineOptions::default(), None);
    let mut drafted = engine(2048, EngineOptions::default(), Some("llama-packed"));
    let mut longest = 0;
    for seed in 0..8 {
        let free = answer(&mut plain, request(seed, &[]));
        let letters: Vec<(usize, char)> = free.text.char_indices().collect();
        assert!(letters.len() > 12, "{:?}", free.text);
        // From one letter to what takes several tokens.
        for len in [1, 2, 5, 9] {
            let text = &free.text[letters[2].0..letters[2 + len].0];
            let ban = [text];
            let got = answer(&mut plain, request(seed, &ban));
            assert!(
                !got.text.to_ascii_lowercase().contains(&text.to_ascii_lowercase()),
                "{text:?} in {got:?}"
            );
            assert_eq!((got.ids.len(), got.reason), (48, Some(FinishReason::Length)), "{text:?}");
            let tokenizer = Arc::clone(plain.tokenizer().unwrap());
            assert_eq!(tokenizer.decode(&got.ids, true).unwrap(), got.text, "ids and text belong together");
            // What stands before the text that was taken back stays.
            let common = free.ids.iter().zip(&got.ids).take_while(|(a, b)| a == b).count();
            longest = longest.max(common);
            assert!(common < free.ids.len());
            for ahead in [1, 4] {
                let ahead = Request { draft: ahead, ..request(seed, &ban) };
                assert_eq!(answer(&mut plain, ahead.clone()), got, "{text:?} with guesses");
                assert_eq!(answer(&mut drafted, ahead), got, "{text:?} with a draft model");
            }
        }
    }
    assert!(longest > 0, "answers begin alike");
}

#[test]
fn a_form_is_followed_around_banned_texts() {
    let mut engine = engine(2048, EngineOptions::default(), None);
    let forms = Arc::clone(engine.forms().unwrap());
    let yes_or_no = forms.compile(&Form::Regex("(yes|no|maybe) [0-9]{2}".into())).unwrap();
    for seed in 0..10 {
        let with = |banned: &[&str]| Request {
            form: Some(yes_or_no.clone()),
            ignore_eos: false,
            ..request(seed, banned)
        };
        let got = answer(&mut engine, with(&["YES", "maybe 1", "maybe 2", "3", "o 4"]));
        let (word, number) = got.text.split_once(' ').unwrap_or_else(|| panic!("{got:?}"));
        assert!(["no", "maybe"].contains(&word) && number.len() == 2 && !number.contains('3'), "{got:?}");
        assert!(!["maybe 1", "maybe 2", "o 4"].iter().any(|text| got.text.contains(text)), "{got:?}");
        // Every way out is banned.
        engine.submit(&with(&["yes", "no", "maybe"])).unwrap();
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events);
        }
        assert!(
            matches!(&events.last().unwrap().news, News::Failed(e) if matches!(**e, GenerateError::Banned)),
            "{events:?}"
        );
    }
    assert_eq!(engine.stats().held_blocks, 0);
}

#[test]
fn stop_strings_and_ends_find_what_was_held_back() {
    let mut engine = engine(2048, EngineOptions::default(), None);
    for seed in 0..8 {
        let free = answer(&mut engine, request(seed, &[]));
        let at: Vec<usize> = free.text.char_indices().map(|(at, _)| at).collect();
        let stop = &free.text[at[8]..at[10]];
        let stopped = |banned: &[&str]| Request { stop: vec![stop.to_owned()], ..request(seed, banned) };
        let want = answer(&mut engine, stopped(&[]));
        // It is held back for its beginning, which never goes on.
        let never = format!("{stop}\u{1}");
        assert_eq!(answer(&mut engine, stopped(&[&never])), want, "{stop:?}");
        let text = format!("{}\u{1}", &free.text[at[4]..]);
        assert_eq!(answer(&mut engine, request(seed, &[&text])), free, "held back to the end");
    }
}

#[test]
fn too_many_are_refused() {
    let mut engine = engine(512, EngineOptions::default(), None);
    let banned = vec!["x".to_owned(); 1025];
    let error = engine.submit(&Request { banned, ..request(0, &[]) }).unwrap_err();
    assert!(matches!(error, GenerateError::TooManyBanned { texts: 1025, most: 1024 }));
}
