//! Who is served when, and how requests end.

use super::super::adapters::Chosen;
use super::super::processors::Processors;
use super::super::queue::Queue;
use super::*;
use std::time::{Duration, Instant};

#[test]
fn what_cannot_be_served_is_refused_and_deadlines_end() {
    let mut engine = engine(512, EngineOptions { seats: 2, queue: 1, ..EngineOptions::default() }, None);
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
    let engine = engine(512, EngineOptions::default(), None);
    let mut queue = Queue::default();
    let push = |queue: &mut Queue, id: RequestId, client: &str, priority: i32| {
        let request = Request { prompt: vec![3], client: client.into(), priority, ..Request::default() };
        queue.push(Sequence::new(id, &request, &Chosen::default(), &engine.common).unwrap());
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

/// Runs steps at a time until all has ended; gives each answer's terminal events.
fn ends(events: &[Event]) -> BTreeMap<(RequestId, usize), Vec<FinishReason>> {
    let mut ends = BTreeMap::<_, Vec<_>>::new();
    for event in events {
        let all = ends.entry((event.request, event.choice)).or_default();
        match &event.news {
            News::Finished { reason, .. } => all.push(*reason),
            News::Failed(e) => panic!("{e}"),
            News::Piece { .. } | News::Prompt(_) | News::Embedding(_) => {
                assert!(all.is_empty(), "news after the end")
            }
        }
    }
    ends
}

#[test]
fn once_admitted_nobody_waits_longer_than_a_step() {
    let options = EngineOptions { budget: 16, seats: 8, ..EngineOptions::default() };
    let mut engine = engine(4096, options, None);
    let request = |prompt: usize, client: &str| Request {
        prompt: (0..prompt).map(|i| 3 + (i * 7 % 90) as u32).collect(),
        max_tokens: Some(60),
        ignore_eos: true,
        client: client.into(),
        ..Request::default()
    };
    let quick: Vec<RequestId> = (0..4).map(|_| engine.submit(&request(2, "quick")).unwrap()).collect();
    let mut events = Vec::new();
    engine.step(&mut events);
    // Prompts that take many steps come while four answers are being made.
    let slow: Vec<RequestId> = (0..3).map(|_| engine.submit(&request(300, "slow")).unwrap()).collect();
    let mut first: BTreeMap<RequestId, usize> = BTreeMap::new();
    for step in 0..200 {
        events.clear();
        let before = engine.running.iter().map(|s| (s.request, s.place.computed)).collect::<Vec<_>>();
        engine.step(&mut events);
        for (id, computed) in before {
            let now = engine.running.iter().find(|s| s.request == id);
            // Every answer gets a token, every prompt some of its own.
            let came = events.iter().any(|e| e.request == id && matches!(e.news, News::Piece { .. }));
            assert!(came || now.is_some_and(|s| s.place.computed > computed), "{id} waits in step {step}");
            assert!(came || slow.contains(&id), "{id} got no token in step {step}");
        }
        for event in &events {
            first.entry(event.request).or_insert(step);
        }
    }
    assert!(engine.is_idle());
    assert!(quick.iter().all(|id| first[id] == 0), "{first:?}");
    // Twelve tokens of a step are theirs.
    let longest = slow.iter().map(|id| first[id]).max();
    assert!(longest.is_some_and(|steps| (70..=90).contains(&steps)), "{first:?}");
}

#[test]
fn whatever_step_a_request_is_cancelled_in_it_ends_once_and_others_do_not_notice() {
    let request = |i: u32| Request {
        prompt: (3 + i..70 + i).collect(),
        sampling: SamplerOptions { seed: Some(u64::from(i)), ..SamplerOptions::default() },
        max_tokens: Some(9),
        ignore_eos: true,
        choices: 1 + i as usize % 3,
        draft: 2,
        banned: vec!["e".into()],
        ..Request::default()
    };
    let options = EngineOptions { budget: 24, seats: 5, ..EngineOptions::default() };
    let tokens = |events: &[Event], id: RequestId| -> Vec<(usize, u32)> {
        let of = events.iter().filter(|e| e.request == id);
        let mut all: Vec<_> = of
            .filter_map(|e| match &e.news {
                News::Piece { id, .. } => Some((e.choice, (*id)?)),
                _ => None,
            })
            .collect();
        all.sort_by_key(|(choice, _)| *choice);
        all
    };
    let mut engine = engine(2048, options, Some("bitnet-packed"));
    let mut want: Option<Vec<Vec<(usize, u32)>>> = None;
    // `usize::MAX` cancels nothing; then each request in each step.
    for (victim, at) in [(0, usize::MAX)].into_iter().chain((0..4).flat_map(|v| (0..26).map(move |s| (v, s))))
    {
        let ids: Vec<RequestId> = (0..4).map(|i| engine.submit(&request(i)).unwrap()).collect();
        let mut events = Vec::new();
        let mut step = 0;
        while !engine.is_idle() {
            if step == at {
                engine.cancel(ids[victim]);
            }
            engine.step(&mut events);
            step += 1;
        }
        let ends = ends(&events);
        assert_eq!(ends.len(), 1 + 2 + 3 + 1, "victim {victim}, step {at}");
        for ((id, choice), reasons) in &ends {
            assert_eq!(reasons.len(), 1, "{id} {choice} with victim {victim} in step {at}");
            assert!(*id == ids[victim] || reasons[0] == FinishReason::Length);
        }
        let stats = engine.stats();
        assert_eq!((stats.held_blocks, stats.running, stats.waiting), (0, 0, 0));
        let got: Vec<_> = ids.iter().map(|id| tokens(&events, *id)).collect();
        let want = want.get_or_insert_with(|| got.clone());
        for i in (0..4).filter(|i| *i != victim) {
            assert_eq!(got[i], want[i], "{i} with victim {victim} in step {at}");
        }
        assert!(at == usize::MAX || want[victim].starts_with(&got[victim]) || victim % 3 > 0);
    }
}

#[test]
fn deadlines_end_what_waits_what_is_computed_and_what_answers() {
    let options = EngineOptions { budget: 8, seats: 2, ..EngineOptions::default() };
    let mut engine = engine(1024, options, None);
    let now = Instant::now();
    let later = |seconds: u64| now + Duration::from_secs(seconds);
    let request = |prompt: u32, seconds: u64| Request {
        prompt: (3..3 + prompt).collect(),
        ignore_eos: true,
        deadline: Some(later(seconds)),
        ..Request::default()
    };
    let answers = engine.submit(&request(2, 100)).unwrap();
    let computes = engine.submit(&request(80, 200)).unwrap();
    let waits = engine.submit(&request(2, 300)).unwrap();
    let mut events = Vec::new();
    (0..4).for_each(|_| engine.step_at(now, &mut events));
    assert!(ends(&events).values().all(Vec::is_empty), "nobody's time is over");
    assert_eq!((engine.stats().running, engine.stats().waiting), (2, 1));
    for (id, second) in [(answers, 100), (computes, 200), (waits, 300)] {
        events.clear();
        engine.step_at(later(second - 1), &mut events);
        assert!(!ends(&events).contains_key(&(id, 0)) || ends(&events)[&(id, 0)].is_empty(), "{id} is early");
        engine.step_at(later(second), &mut events);
        assert_eq!(ends(&events)[&(id, 0)], [FinishReason::Deadline]);
    }
    assert!(engine.is_idle() && engine.stats().held_blocks == 0);
}

#[test]
fn seats_go_to_the_highest_priority_and_the_lowest_gives_way() {
    let options = EngineOptions { seats: 2, ..EngineOptions::default() };
    let mut engine = engine(192, options, None);
    let request = |priority: i32, tokens: usize| Request {
        prompt: vec![3; 60],
        max_tokens: Some(tokens),
        ignore_eos: true,
        cache_prompt: false,
        priority,
        ..Request::default()
    };
    // Three blocks: two answers begin, and the first one that needs a second block leaves none for the other.
    let ids = [request(0, 80), request(1, 70), request(5, 4)].map(|r| engine.submit(&r).unwrap());
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events);
    }
    let order: Vec<RequestId> = {
        let end = |e: &Event| matches!(e.news, News::Finished { .. }).then_some(e.request);
        events.iter().filter_map(end).collect()
    };
    assert_eq!(order, [ids[2], ids[1], ids[0]]);
    assert!(engine.stats().preempted > 0);
}

#[test]
fn engines_that_take_turns_wait_for_processors_and_others_do_not() {
    let all = Processors::of_process().turn(usize::MAX);
    let step = |take_turns| {
        let mut engine = engine(256, EngineOptions { take_turns, ..EngineOptions::default() }, None);
        engine.submit(&Request { prompt: vec![3, 4], max_tokens: Some(1), ..Request::default() }).unwrap();
        engine.step(&mut Vec::new());
        engine.stats().steps
    };
    assert_eq!(step(false), 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| step(true));
        while Processors::of_process().waiting() == 0 {
            std::thread::yield_now();
        }
        drop(all);
        assert_eq!(waiting.join().unwrap(), 1);
    });
}
