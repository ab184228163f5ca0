//! One number for whole answers: company, the prefix cache, waiting and guessing change no token.

use super::queue::Queue;
use super::*;
use crate::sample::SamplerOptions;
use crate::{DeviceOptions, EmbedOptions, Form, LoadOptions, Model, OpenOptions, Pooling, gbnf};
use bitnet_core::KvType;
use bitnet_testkit::tensors::Noise;
use bitnet_testkit::{adapter, golden};
use std::collections::BTreeMap;

/// What came of one answer.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<Logprob>,
    prompt: Vec<Logprob>,
    ends: usize,
    reason: Option<FinishReason>,
}

type Answers = BTreeMap<(usize, usize), Answer>;

fn engine(cache: usize, options: EngineOptions) -> Engine {
    let open = OpenOptions {
        device: DeviceOptions { threads: Some(1), ..DeviceOptions::default() },
        load: LoadOptions { cache: Some(cache), ..LoadOptions::default() },
    };
    let path = golden::fixtures().join("bitnet-packed");
    let mut model = Model::open(&path, &open, &mut |_, _| {}).unwrap();
    // Both are there for requests that choose them.
    assert_eq!(model.load_adapter(&golden::fixtures().join("lora/qvd-r4"), 0.0).unwrap(), 0);
    let dir = tempfile::tempdir().unwrap();
    adapter::write(dir.path(), &adapter::config(5), &adapter::projections(2, 128, 384, 128, 64), 5, 9);
    assert_eq!(model.load_adapter(dir.path(), 0.0).unwrap(), 1);
    model.into_engine(options)
}

fn through(list: &[(u32, f32)]) -> Option<Vec<AdapterUse>> {
    Some(list.iter().map(|(id, scale)| AdapterUse { id: *id, scale: *scale }).collect())
}

/// Requests of every kind, many of which begin alike.
fn requests(count: usize, draft: usize) -> Vec<Request> {
    let mut noise = Noise(5);
    let mut below = |n: usize| noise.bits() as usize % n;
    let texts: Vec<Vec<u32>> =
        (0..4).map(|_| (0..230).map(|_| 3 + below(200) as u32 % 90).collect()).collect();
    (0..count)
        .map(|i| {
            let mut prompt = texts[below(4)][..1 + below(3) * 64 + below(40)].to_vec();
            prompt.extend((0..below(20)).map(|_| 3 + below(90) as u32));
            // Text that repeats itself, to be guessed.
            if i % 5 == 0 {
                prompt = prompt.iter().copied().take(12).cycle().take(60).collect();
            }
            let greedy = i % 3 == 0;
            let sampling = SamplerOptions {
                temperature: if greedy { 0.0 } else { 0.5 + below(10) as f64 / 10.0 },
                top_k: [0, 1, 40][below(3)],
                repeat_penalty: [1.0, 1.2][below(2)],
                seed: Some(i as u64),
                ..SamplerOptions::default()
            };
            Request {
                prompt,
                sampling,
                max_tokens: Some([0, 1, 7, 30, 60][below(5)]),
                stop: if i % 7 == 0 { vec!["e".into()] } else { Vec::new() },
                ignore_eos: i % 2 == 0,
                choices: 1 + usize::from(i % 4 == 0) * below(3),
                logprobs: (i % 6 == 0).then_some(3),
                prompt_logprobs: (i % 11 == 0).then_some(2),
                draft,
                adapters: [
                    None,
                    None,
                    through(&[(0, 1.0)]),
                    through(&[(0, 0.5)]),
                    through(&[(1, 0.7), (0, 1.0)]),
                ][below(5)]
                .clone(),
                priority: below(3) as i32,
                client: ["a", "b", "c"][below(3)].into(),
                ..Request::default()
            }
        })
        .collect()
}

fn collect(answers: &mut Answers, number: &BTreeMap<RequestId, usize>, events: Vec<Event>) {
    for event in events {
        let Some(&request) = number.get(&event.request) else { continue };
        let answer = answers.entry((request, event.choice)).or_default();
        assert_eq!(answer.ends, 0, "news after the end");
        match event.news {
            News::Prompt(all) => answer.prompt.extend(all),
            News::Piece { id, text, logprob } => {
                answer.ids.extend(id);
                answer.text += &text;
                answer.logprobs.extend(logprob);
            }
            News::Finished { reason, .. } => {
                answer.ends += 1;
                answer.reason = Some(reason);
            }
            News::Embedding(_) => panic!("nobody asks for a vector"),
            News::Failed(e) => panic!("{e}"),
        }
    }
}

/// Runs requests one after the other, or all together with others that are cancelled on the way.
fn run(engine: &mut Engine, requests: &[Request], together: bool) -> Answers {
    let (mut answers, mut number) = (Answers::new(), BTreeMap::new());
    let mut finish = |engine: &mut Engine, number: &BTreeMap<RequestId, usize>, cancelled: &[RequestId]| {
        let mut steps = 0;
        while !engine.is_idle() {
            let mut events = Vec::new();
            engine.step(&mut events);
            collect(&mut answers, number, events);
            cancelled.iter().filter(|id| *id % 40 == steps % 40).for_each(|id| engine.cancel(*id));
            steps += 1;
            assert!(steps < 100_000, "it goes on for ever");
        }
    };
    let mut cancelled = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        number.insert(engine.submit(request).unwrap(), i);
        if together && i % 9 == 0 {
            cancelled.push(engine.submit(request).unwrap());
        }
        if !together {
            finish(engine, &number, &[]);
        }
    }
    finish(engine, &number, &cancelled);
    assert_eq!(engine.stats().held_blocks, 0, "all blocks come back");
    answers
}

#[test]
fn two_hundred_requests_get_alone_what_they_get_together() {
    let alone = EngineOptions { prefix_cache: false, seats: 4, ..EngineOptions::default() };
    let want = run(&mut engine(512, alone), &requests(200, 0), false);
    assert!(want.values().all(|a| a.ends == 1) && want.len() > 200, "every answer ends once");
    assert!(want.values().any(|a| !a.prompt.is_empty()) && want.values().any(|a| !a.logprobs.is_empty()));
    let together = EngineOptions { budget: 48, seats: 12, queue: 1000, prefix_cache: true };
    for (cache, options, draft) in [
        (8192, together, 0),
        (8192, EngineOptions { prefix_cache: false, budget: 5, ..together }, 4),
        // Blocks for a few of twelve.
        (576, together, 4),
        (576, EngineOptions { prefix_cache: false, ..together }, 0),
    ] {
        let mut engine = engine(cache, options);
        let got = run(&mut engine, &requests(200, draft), true);
        for (key, want) in &want {
            assert_eq!(got.get(key), Some(want), "request and choice {key:?}, {cache} {options:?} {draft}");
        }
        let stats = engine.stats();
        println!("{stats:?}");
        assert_eq!(stats.prefix_hits > 0, options.prefix_cache);
        assert_eq!(stats.preempted > 0, cache < 1000);
        assert_eq!(stats.accepted > 0, draft > 0);
    }
}

#[test]
fn a_conversation_begins_where_the_last_turn_ended() {
    let mut engine = engine(512, EngineOptions::default());
    let mut prompt: Vec<u32> = (3..40).collect();
    for turn in 0..4 {
        let request =
            Request { prompt: prompt.clone(), max_tokens: Some(10), ignore_eos: true, ..Request::default() };
        engine.submit(&request).unwrap();
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events);
        }
        let cached = events.iter().find_map(|e| match &e.news {
            News::Finished { timings, .. } => Some(timings.cached_tokens),
            _ => None,
        });
        // All but the last token of the answer have been through the model.
        assert_eq!(cached, Some(if turn == 0 { 0 } else { prompt.len() - 4 }), "turn {turn}");
        prompt.extend(events.iter().filter_map(|e| match &e.news {
            News::Piece { id, .. } => *id,
            _ => None,
        }));
        prompt.extend([5, 6, 7]);
    }
}

#[test]
fn what_cannot_be_served_is_refused_and_deadlines_end() {
    let mut engine = engine(512, EngineOptions { seats: 2, queue: 1, ..EngineOptions::default() });
    let request = |prompt: &[u32]| Request { prompt: prompt.to_vec(), ..Request::default() };
    assert!(matches!(engine.submit(&request(&[])), Err(GenerateError::EmptyPrompt)));
    assert!(matches!(engine.submit(&request(&[9999])), Err(GenerateError::UnknownId { id: 9999, .. })));
    assert!(matches!(engine.submit(&request(&[3; 600])), Err(GenerateError::PromptTooLong { .. })));
    let many = Request { choices: 3, ..request(&[3]) };
    assert!(matches!(engine.submit(&many), Err(GenerateError::Choices { asked: 3, most: 2 })));
    let late = Request { deadline: Some(Instant::now()), ..request(&[3, 4]) };
    engine.submit(&late).unwrap();
    assert!(matches!(engine.submit(&late), Err(GenerateError::QueueFull { waiting: 1 })));
    let mut events = Vec::new();
    engine.step(&mut events);
    assert!(matches!(
        events[..],
        [Event { news: News::Finished { reason: FinishReason::Deadline, .. }, .. }]
    ));
    assert!(engine.is_idle());
}

#[test]
fn nobody_is_kept_waiting_by_a_crowd() {
    let engine = engine(512, EngineOptions::default());
    let mut queue = Queue::default();
    let push = |queue: &mut Queue, id: RequestId, client: &str, priority: i32| {
        let request = Request { prompt: vec![3], client: client.into(), priority, ..Request::default() };
        queue.push(
            Sequence::new(id, &request, &engine.adapters.choose(None).unwrap(), &engine.common).unwrap(),
        );
    };
    (0..3).for_each(|id| push(&mut queue, id, "crowd", 0));
    push(&mut queue, 3, "single", 0);
    push(&mut queue, 4, "urgent", 1);
    let mut order = Vec::new();
    while let Some(sequence) = queue.pop() {
        queue.charge(&sequence.client, 10);
        order.push(sequence.request);
    }
    assert_eq!(order, [4, 0, 3, 1, 2]);
}

#[test]
fn a_log_probability_is_that_of_the_softmax() {
    let row = [1.0f32.ln(), 3.0f32.ln(), 4.0f32.ln(), 3.0f32.ln()];
    let got = logprob_of(&row);
    assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1, 3]);
    for (id, p) in [(0, 1.0 / 11.0), (2, 4.0 / 11.0)] {
        let value = if id == 0 { got.logprob } else { got.top[0].1 };
        assert!((value.exp() - p).abs() < 1e-6, "{id}: {value}");
    }
}

fn logprob_of(row: &[f32]) -> Logprob {
    request::logprob(row, 0, 3)
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let mut engine = engine(2048, EngineOptions::default());
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
    let engine = engine(512, EngineOptions::default());
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
    let mut engine = engine(512, EngineOptions::default());
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

#[test]
fn adapters_come_and_go_while_requests_run() {
    let mut engine = engine(512, EngineOptions::default());
    let request = |adapters| Request {
        prompt: (3..90).collect(),
        max_tokens: Some(12),
        ignore_eos: true,
        sampling: SamplerOptions { temperature: 0.0, ..SamplerOptions::default() },
        adapters,
        ..Request::default()
    };
    let answer =
        |engine: &mut Engine, adapters| run(engine, &[request(adapters)], false).remove(&(0, 0)).unwrap().ids;
    let (base, want) = (answer(&mut engine, None), answer(&mut engine, through(&[(0, 1.0)])));
    assert_ne!(base, want, "the adapter changes the answer");
    // The cache holds the prompt twice, with and without it.
    assert_eq!(answer(&mut engine, through(&[])), base);
    assert_eq!(answer(&mut engine, through(&[(0, 1.0), (1, 0.0)])), want);

    let number = BTreeMap::from([(engine.submit(&request(through(&[(0, 1.0)]))).unwrap(), 0)]);
    let mut answers = Answers::new();
    let mut step = |engine: &mut Engine| {
        let mut events = Vec::new();
        engine.step(&mut events);
        collect(&mut answers, &number, events);
    };
    step(&mut engine);
    engine.unload_adapter(0).unwrap();
    assert!(matches!(engine.unload_adapter(0), Err(GenerateError::UnknownAdapter { id: 0 })));
    let refused = engine.submit(&request(through(&[(0, 1.0)])));
    assert!(matches!(refused, Err(GenerateError::UnknownAdapter { id: 0 })));
    while !engine.is_idle() {
        step(&mut engine);
    }
    assert_eq!(answers[&(0, 0)].ids, want, "who has it keeps it");
    assert!(engine.adapters.leaving.is_empty(), "nobody goes through it any more");

    let path = golden::fixtures().join("lora/qvd-r4");
    assert_eq!(engine.load_adapter(&path, 1.0).unwrap(), 2);
    assert_eq!(answer(&mut engine, None), want, "it acts where nobody says");
    engine.set_adapter_scales(&[]).unwrap();
    assert_eq!(answer(&mut engine, None), base);
    for wrong in [through(&[(2, f32::NAN)]), through(&[(1, 1.0), (1, 1.0)])] {
        assert!(matches!(engine.submit(&request(wrong)), Err(GenerateError::AdapterScale { .. })));
    }
}

#[test]
fn vectors_do_not_depend_on_company_or_on_what_the_cache_holds() {
    let texts: Vec<Vec<u32>> =
        (0..9u32).map(|i| (0..5 + i * 17).map(|j| 3 + (i % 3 * 7 + j * 11) % 400).collect()).collect();
    let path = golden::fixtures().join("bitnet-packed");
    let open = || Model::open(&path, &OpenOptions::default(), &mut |_, _| {}).unwrap();
    for pooling in [Pooling::Last, Pooling::Mean, Pooling::Cls] {
        let raw = EmbedOptions { pooling, normalize: false };
        let alone: Vec<Vec<f32>> = texts
            .iter()
            .map(|text| open().embed(std::slice::from_ref(text), raw).unwrap().remove(0))
            .collect();
        // Once more with all of them in the cache.
        let mut model = open();
        for _ in 0..2 {
            assert_eq!(model.embed(&texts, raw).unwrap(), alone, "{pooling:?}");
        }
        // Steps of five tokens, blocks for a few, and answers in between.
        let mut engine = engine(256, EngineOptions { budget: 5, seats: 6, ..EngineOptions::default() });
        let mut number = BTreeMap::new();
        for (i, text) in texts.iter().enumerate() {
            let request = Request { prompt: text.clone(), embedding: Some(raw), ..Request::default() };
            number.insert(engine.submit(&request).unwrap(), i);
            let other =
                Request { prompt: vec![5; 40], max_tokens: Some(30), ignore_eos: true, ..Request::default() };
            engine.submit(&other).unwrap();
        }
        let mut got = vec![None; texts.len()];
        while !engine.is_idle() {
            let mut events = Vec::new();
            engine.step(&mut events);
            for event in events {
                if let (News::Embedding(vector), Some(i)) = (event.news, number.get(&event.request)) {
                    assert!(got[*i].replace(vector).is_none(), "a vector is given once");
                }
            }
        }
        assert_eq!(got, alone.iter().cloned().map(Some).collect::<Vec<_>>(), "{pooling:?}");
        assert!(engine.stats().preempted > 0, "some had to wait");
        // The reference's states of the last layer, pooled.
        let prompt = golden::prompts("bitnet-packed").into_iter().find(|p| p.name == "strict0").unwrap();
        let states = golden::floats("bitnet-packed/reference.safetensors", "hidden.strict0.final_norm");
        let (n, hidden) = (prompt.ids.len(), engine.config().hidden);
        let want: Vec<f32> = (0..hidden)
            .map(|i| match pooling {
                Pooling::Last => states[(n - 1) * hidden + i],
                Pooling::Cls => states[i],
                Pooling::Mean => (0..n).map(|t| states[t * hidden + i]).sum::<f32>() / n as f32,
            })
            .collect();
        let load = LoadOptions { key: KvType::F32, value: KvType::F32, ..LoadOptions::default() };
        let open = OpenOptions { load, ..OpenOptions::default() };
        let mut exact = Model::open(&path, &open, &mut |_, _| {}).unwrap();
        let got = exact.embed(std::slice::from_ref(&prompt.ids), raw).unwrap().remove(0);
        let diff = golden::max_diff(&got, &want);
        assert!(diff <= 2e-4, "{pooling:?}: {diff}");
        let unit = model.embed(&[prompt.ids], EmbedOptions { pooling, normalize: true }).unwrap().remove(0);
        let length = unit.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
        let longest = vec![5; engine.capacity()];
        let refused = |prompt: &[u32]| engine.check(prompt, 0);
        assert!(refused(&longest).is_ok() && refused(&[&longest[..], &[5]].concat()).is_err());
    }
}
