//! Answers of a given form.

use super::*;
use crate::{Form, gbnf};

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let mut engine = engine(2048, EngineOptions::default(), None);
    let forms = Arc::clone(engine.forms().unwrap());
    let schema = serde_json::json!({
        "type": "object", "required": ["name", "n"], "additionalProperties": false,
        "properties": {"name": {"enum": ["ada", "bob"]}, "n": {"type": "integer", "minimum": 3, "maximum": 40}},
    });
    let sums = gbnf::to_lark("root ::= num (\"+\" num){1,3}\nnum ::= [1-9] [0-9]?").unwrap();
    let number = |text: &str| text.parse::<u32>().is_ok_and(|n| (1..100).contains(&n));
    for seed in 0..6 {
        for draft in [0, 3] {
            let mut answer = |form: &Form| {
                let request = Request {
                    prompt: vec![5, 6, 7],
                    form: Some(forms.compile(form).unwrap()),
                    sampling: SamplerOptions {
                        seed: Some(seed),
                        temperature: 1.5,
                        ..SamplerOptions::default()
                    },
                    max_tokens: Some(200),
                    draft,
                    ..Request::default()
                };
                let answer = run(&mut engine, &[request], false).remove(&(0, 0)).unwrap();
                assert_eq!(answer.reason, Some(FinishReason::Stop), "{form:?}: {:?}", answer.text);
                answer.text
            };
            let json = answer(&Form::JsonSchema(schema.clone()));
            let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|_| panic!("{json:?}"));
            assert!(["ada", "bob"].contains(&value["name"].as_str().unwrap()), "{json}");
            assert!(
                (3..=40).contains(&value["n"].as_u64().unwrap()) && value.as_object().unwrap().len() == 2
            );
            let word = answer(&Form::Regex("(yes|no)!{2}".into()));
            assert!(["yes!!", "no!!"].contains(&word.as_str()), "{word:?}");
            let sum = answer(&Form::Lark(sums.clone()));
            assert!((2..=4).contains(&sum.split('+').count()) && sum.split('+').all(number), "{sum:?}");
        }
    }
}

#[test]
fn forms_that_are_wrong_or_endless_are_refused() {
    let engine = engine(512, EngineOptions::default(), None);
    let forms = engine.forms().unwrap();
    for form in [
        Form::Regex("(".into()),
        Form::Lark("start: missing".into()),
        Form::Lark("x: \"a\"".into()),
        Form::JsonSchema(serde_json::json!({"type": "nothing"})),
    ] {
        assert!(matches!(forms.compile(&form), Err(GenerateError::Form { .. })), "{form:?}");
    }
}

#[test]
fn a_form_that_explodes_ends_all_the_same() {
    let mut engine = engine(512, EngineOptions::default(), None);
    let forms = Arc::clone(engine.forms().unwrap());
    let bomb = Form::Regex("((((a{1,99}b?){1,99}){1,99}){1,99}c){1,99}".into());
    if let Ok(form) = forms.compile(&bomb) {
        let request =
            Request { prompt: vec![5], form: Some(form), max_tokens: Some(6), ..Request::default() };
        engine.submit(&request).unwrap();
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events);
        }
        let end = |e: &&Event| matches!(e.news, News::Finished { .. } | News::Failed(_));
        assert_eq!(events.iter().filter(end).count(), 1);
    }
    assert_eq!(engine.stats().held_blocks, 0);
}
