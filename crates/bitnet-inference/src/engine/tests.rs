//! One number for whole answers: company, the prefix cache, waiting and guessing change no token.

mod banned;
mod forms;
mod memory;
mod moving;
mod scheduling;

use super::*;
use crate::sample::{Mirostat, SamplerOptions};
use crate::{DeviceOptions, EmbedOptions, Form, LoadOptions, Model, OpenOptions, Pooling};
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

/// A model of the fixtures, all of which have one vocabulary.
fn model(name: &str, cache: usize) -> Model {
    let open = OpenOptions {
        device: DeviceOptions { threads: Some(1), ..DeviceOptions::default() },
        load: LoadOptions { cache: Some(cache), ..LoadOptions::default() },
    };
    Model::open(&golden::fixtures().join(name), &open, &mut |_, _| {}).unwrap()
}

/// An engine, and maybe a model that guesses for it.
fn engine(cache: usize, options: EngineOptions, draft: Option<&str>) -> Engine {
    let mut target = model("bitnet-packed", cache);
    // Both are there for requests that choose them.
    assert_eq!(target.load_adapter(&golden::fixtures().join("lora/qvd-r4"), 0.0).unwrap(), 0);
    let dir = tempfile::tempdir().unwrap();
    adapter::write(dir.path(), &adapter::config(5), &adapter::projections(2, 128, 384, 128, 64), 5, 9);
    assert_eq!(target.load_adapter(dir.path(), 0.0).unwrap(), 1);
    if let Some(draft) = draft {
        target.set_draft(model(draft, cache)).unwrap();
    }
    target.into_engine(options)
}

fn through(list: &[(u32, f32)]) -> Option<Vec<AdapterUse>> {
    Some(list.iter().map(|(id, scale)| AdapterUse { id: *id, scale: *scale }).collect())
}

/// Texts of random models, in which all kinds of letters follow each other.
const BANNED: [&str; 4] = ["e", "th", " a", "re"];

/// A sampler that is not like its neighbours'.
fn sampling(i: usize, below: &mut dyn FnMut(usize) -> usize) -> SamplerOptions {
    let plain = SamplerOptions {
        temperature: if i.is_multiple_of(3) { 0.0 } else { 0.5 + below(10) as f64 / 10.0 },
        top_k: [0, 1, 40][below(3)],
        repeat_penalty: [1.0, 1.2][below(2)],
        seed: Some(i as u64),
        ..SamplerOptions::default()
    };
    match i % 8 {
        1 => SamplerOptions { mirostat: Some([Mirostat::One, Mirostat::Two][below(2)]), ..plain },
        2 => SamplerOptions { xtc_probability: 0.5, xtc_threshold: 0.05, top_n_sigma: 2.0, ..plain },
        4 => SamplerOptions { dry_multiplier: 0.8, dynatemp_range: 0.4, ..plain },
        5 => SamplerOptions { typical_p: 0.8, min_p: 0.0, frequency_penalty: 0.3, ..plain },
        7 => SamplerOptions { logit_bias: vec![(5, 2.0), (9, -3.0)], presence_penalty: 0.4, ..plain },
        _ => plain,
    }
}

/// What some answers have to look like.
fn form(i: usize) -> Option<Form> {
    match i % 12 {
        3 => Some(Form::Regex("[a-z ]{4,30}[.!]".into())),
        8 => Some(Form::JsonSchema(serde_json::json!({
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 4}},
        }))),
        _ => None,
    }
}

/// Requests of every kind, many of which begin alike.
fn requests(forms: &Forms, count: usize, draft: usize) -> Vec<Request> {
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
            Request {
                prompt,
                sampling: sampling(i, &mut below),
                max_tokens: Some([0, 1, 7, 30, 60][below(5)]),
                stop: if i % 7 == 0 { vec!["e".into()] } else { Vec::new() },
                banned: if i % 5 == 2 { BANNED.map(str::to_owned).to_vec() } else { Vec::new() },
                form: form(i).map(|form| forms.compile(&form).unwrap()),
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
    let mut plain = engine(512, alone, None);
    let forms = Arc::clone(plain.forms().unwrap());
    let want = run(&mut plain, &requests(&forms, 200, 0), false);
    assert!(want.values().all(|a| a.ends == 1) && want.len() > 200, "every answer ends once");
    assert!(want.values().any(|a| !a.prompt.is_empty()) && want.values().any(|a| !a.logprobs.is_empty()));
    // What is banned appears where it is not, and nowhere else.
    let has = |banned: bool| {
        let of = want.iter().filter(move |((request, _), _)| (request % 5 == 2) == banned);
        of.filter(|(_, a)| BANNED.iter().any(|text| a.text.to_ascii_lowercase().contains(text))).count()
    };
    assert!(has(true) == 0 && has(false) > 10);
    let together =
        EngineOptions { budget: 48, seats: 12, queue: 1000, prefix_cache: true, take_turns: false };
    let cold = EngineOptions { prefix_cache: false, ..together };
    for (cache, options, ahead, draft) in [
        (8192, together, 0, None),
        (8192, EngineOptions { budget: 5, ..cold }, 4, None),
        // A model that thinks alike, and one that does not.
        (8192, cold, 4, Some("bitnet-packed")),
        (8192, together, 3, Some("llama-packed")),
        // Blocks for a few of twelve.
        (576, together, 4, None),
        (576, cold, 0, None),
        (576, together, 4, Some("bitnet-packed")),
    ] {
        let mut engine = engine(cache, options, draft);
        let got = run(&mut engine, &requests(&forms, 200, ahead), true);
        for (key, want) in &want {
            let with = format!("request and choice {key:?}, {cache} {options:?} {ahead} {draft:?}");
            assert_eq!(got.get(key), Some(want), "{with}");
        }
        let stats = engine.stats();
        println!("{stats:?}");
        assert_eq!(stats.prefix_hits > 0, options.prefix_cache);
        assert_eq!(stats.preempted > 0, cache < 1000);
        assert_eq!(stats.accepted > 0, ahead > 0);
        if let Some(draft) = &engine.draft {
            assert_eq!(
                draft.cache.blocks.available(),
                draft.cache.blocks.count(),
                "its blocks come back too"
            );
        }
    }
}

#[test]
fn a_conversation_begins_where_the_last_turn_ended() {
    let mut engine = engine(512, EngineOptions::default(), None);
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
fn a_model_that_guesses_for_itself_is_always_right() {
    let mut engine = engine(4096, EngineOptions::default(), Some("bitnet-packed"));
    let requests: Vec<Request> = (0..12)
        .map(|i| Request {
            prompt: (3..20 + 8 * i).collect(),
            sampling: SamplerOptions {
                seed: Some(u64::from(i)),
                temperature: [0.0, 0.8, 1.5][i as usize % 3],
                repeat_penalty: 1.1,
                ..SamplerOptions::default()
            },
            max_tokens: Some(31),
            ignore_eos: true,
            choices: 1 + i as usize % 2,
            draft: 4,
            ..Request::default()
        })
        .collect();
    run(&mut engine, &requests, false);
    let stats = engine.stats();
    // The first token comes with the prompt, and six times five behind it.
    assert_eq!((stats.drafted, stats.accepted), (18 * 24, 18 * 24), "{stats:?}");
    assert_eq!(stats.steps, 12 * 7, "{stats:?}");
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused() {
    let tokenizer = model("bitnet-packed", 64).tokenizer().cloned();
    let check = |vocab: usize, other: Option<Arc<Tokenizer>>| {
        draft::check_vocabulary((512, tokenizer.clone()), (vocab, other)).map_err(|e| e.to_string())
    };
    assert_eq!(check(512, tokenizer.clone()), Ok(()));
    let few = check(500, None).unwrap_err();
    assert!(few.contains("500 tokens, not 512"), "{few}");
    let dir = tempfile::tempdir().unwrap();
    let path = golden::fixtures().join("bitnet-packed/tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let names: Vec<String> = vocabulary.keys().skip(300).take(2).cloned().collect();
    let ids: Vec<serde_json::Value> = names.iter().map(|name| vocabulary[name].clone()).collect();
    vocabulary[&names[0]] = ids[1].clone();
    vocabulary[&names[1]] = ids[0].clone();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let other = Tokenizer::from_dir(dir.path()).unwrap().map(Arc::new);
    let differs = check(512, other).unwrap_err();
    assert!(differs.contains("another vocabulary: token"), "{differs}");
}

#[test]
fn adapters_come_and_go_while_requests_run() {
    let mut engine = engine(512, EngineOptions::default(), None);
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
        let mut engine = engine(256, EngineOptions { budget: 5, seats: 6, ..EngineOptions::default() }, None);
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
