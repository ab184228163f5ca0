//! What a pull does when the network, the hub or the disk do what they should not.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use bitnet_hub::{Cancel, Event, Hub, HubError, Patterns, Settings};
use bitnet_testkit::hub::{Mood, sha256};
use common::{Lab, noise, parse, pull, told};
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const LEN: usize = 500_000;

/// Pulls in spite of a mood; what comes is right, and nothing else is left.
fn survives(of: &str, times: usize, mood: Mood) -> Vec<Event> {
    let lab = Lab::with_file(LEN);
    lab.server.fault(of, times, mood.clone());
    let (done, events) = told(&lab.hub(), "org/name");
    let done = done.unwrap_or_else(|e| panic!("{of} {mood:?}: {e}"));
    assert_eq!(fs::read(&done.path).unwrap(), noise(LEN), "{of} {mood:?}");
    let blobs: Vec<_> = lab.names().into_iter().filter(|n| n.starts_with("blobs/")).collect();
    assert_eq!(blobs, [format!("blobs/{}", sha256(&noise(LEN)))], "{of} {mood:?}");
    events
}

fn retries(events: &[Event]) -> Vec<Duration> {
    events
        .iter()
        .filter_map(|e| if let Event::Retrying { after, .. } = e { Some(*after) } else { None })
        .collect()
}

/// Fails because of a mood; nothing takes the file's name.
fn fails(of: &str, times: usize, mood: Mood) -> HubError {
    let lab = Lab::with_file(LEN);
    lab.server.fault(of, times, mood.clone());
    let error = lab.pull("org/name").map(|_| ()).expect_err(&format!("{of} {mood:?}"));
    assert!(
        !lab.names().iter().any(|n| n.starts_with("snapshots/") || n.starts_with("refs/")),
        "{of} {mood:?}"
    );
    error
}

#[test]
fn passing_troubles_are_waited_out() {
    for status in [429, 500, 502, 503, 504, 408] {
        for of in ["/revision/", "/tree/", "HEAD /org/name/resolve/", "GET /org/name/resolve/", "/lfs/"] {
            let events = survives(of, 2, Mood::Status(status, vec![]));
            assert!((1..=2).contains(&retries(&events).len()), "{status} {of}");
        }
    }
    assert!(retries(&survives("/nothing/", 1, Mood::Damages)).is_empty());
}

#[test]
fn a_hub_that_says_how_long_to_wait_is_obeyed_and_one_that_says_too_long_is_reported() {
    let after = |text: &str| Mood::Status(429, vec![("Retry-After", text.to_owned())]);
    let begin = Instant::now();
    let events = survives("/revision/", 1, after("1"));
    assert_eq!(retries(&events), [Duration::from_secs(1)]);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert!(
        matches!(fails("/tree/", 1, after("86400")), HubError::RateLimited { wait, .. } if wait.as_secs() == 86400)
    );
}

#[test]
fn trouble_that_stays_is_an_error_that_says_what_and_where() {
    let error = fails("/revision/", 99, Mood::Status(503, vec![]));
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    let error = fails("/lfs/", 999, Mood::Drops(0));
    assert!(
        matches!(&error, HubError::Network { attempts: 6, url, .. } if !url.contains("Signature")),
        "{error:?}"
    );
    let dead = Hub::new(Settings { endpoint: "http://127.0.0.1:9".into(), ..Lab::new().settings() });
    assert!(matches!(pull(&dead, "org/name"), Err(HubError::Network { .. })));
}

#[test]
fn connections_that_break_go_on_where_they_broke() {
    // A piece has 64 KiB; every answer brings a quarter of it at most.
    let lab = Lab::with_file(LEN);
    lab.server.fault("/lfs/", 999, Mood::Drops(16 << 10));
    let (done, events) = told(&lab.hub(), "org/name");
    assert_eq!(fs::read(done.unwrap().path).unwrap(), noise(LEN));
    let received: u64 =
        events.iter().map(|e| if let Event::Received { bytes, .. } = e { *bytes } else { 0 }).sum();
    assert_eq!(received, LEN as u64, "no byte came twice");
    assert!(!events.iter().any(|e| matches!(e, Event::Restarted { .. })));
}

#[test]
fn a_silent_server_is_left_and_a_slow_one_is_not() {
    let lab = Lab::with_file(100_000);
    lab.server.fault("/lfs/", 1, Mood::Slow(30_000, Duration::from_secs(3600)));
    let hub = Hub::new(Settings { timeout: Duration::from_millis(300), ..lab.settings() });
    let (done, events) = told(&hub, "org/name");
    assert_eq!(fs::read(done.unwrap().path).unwrap(), noise(100_000));
    assert_eq!(retries(&events).len(), 1);
    // Slower than the timeout as a whole, but never silent for as long.
    let lab = Lab::with_file(100_000);
    lab.server.fault("/lfs/", 99, Mood::Slow(4096, Duration::from_millis(60)));
    let hub = Hub::new(Settings { timeout: Duration::from_millis(300), ..lab.settings() });
    let (done, events) = told(&hub, "org/name");
    assert_eq!(fs::read(done.unwrap().path).unwrap(), noise(100_000));
    assert!(retries(&events).is_empty(), "{events:?}");
}

#[test]
fn damaged_bytes_are_never_kept() {
    // Once: the file begins again. Always: an error, and nothing is left.
    let events = survives("/lfs/", 1, Mood::Damages);
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Restarted { .. })).count(), 1);
    let lab = Lab::with_file(LEN);
    lab.server.fault("/lfs/", 999, Mood::Damages);
    let error = lab.pull("org/name").unwrap_err();
    assert!(matches!(&error, HubError::Damaged { kind: "hash", .. }), "{error}");
    assert!(lab.names().is_empty(), "{:?}", lab.names());
    // Small files have another kind of hash.
    let lab = Lab::with_file(500);
    lab.server.fault("GET /org/name/resolve/", 999, Mood::Damages);
    assert!(matches!(lab.pull("org/name"), Err(HubError::Damaged { kind: "hash", .. })));
    // And a server may say a size and send another file.
    let error = fails("HEAD ", 9, Mood::Header("X-Linked-Size", "499999".into()));
    assert!(matches!(&error, HubError::Damaged { kind: "size", .. }), "{error}");
}

#[test]
fn servers_without_ranges_send_the_file_whole() {
    survives("/lfs/", 999, Mood::Whole);
    let lab = Lab::with_file(LEN);
    // Fewer than a connection's attempts: none gets further than the last one did, and one of them may have all the bad luck.
    lab.server.fault("/lfs/", 5, Mood::Whole);
    lab.server.fault("/lfs/", 5, Mood::Drops(100_000));
    assert_eq!(fs::read(lab.pull("org/name").unwrap().path).unwrap(), noise(LEN));
}

#[test]
fn an_address_that_has_expired_is_asked_for_anew() {
    let lab = Lab::with_file(LEN);
    let hub = Hub::new(Settings { connections: 1, ..lab.settings() });
    let cancel = Cancel::new();
    let expired = Mutex::new(false);
    let events = |e: Event| {
        if matches!(e, Event::Received { .. }) && !std::mem::replace(&mut *expired.lock().unwrap(), true) {
            lab.server.fault("/lfs/", 1, Mood::Status(403, vec![]));
        }
    };
    let done = hub.pull(&parse("org/name"), &Patterns::default(), &events, &cancel).unwrap();
    assert_eq!(fs::read(done.path).unwrap(), noise(LEN));
    let asked =
        lab.server.seen().into_iter().filter(|s| s.line.starts_with("GET /org/name/resolve/")).count();
    assert_eq!(asked, 2);
}

#[test]
fn a_pull_that_was_cancelled_goes_on_later() {
    let lab = Lab::with_file(LEN);
    lab.server.fault("/lfs/", 999, Mood::Slow(8192, Duration::from_millis(2)));
    let (cancel, received) = (Cancel::new(), Mutex::new(0));
    let events = |e: Event| {
        if let Event::Received { bytes, .. } = e {
            let mut received = received.lock().unwrap();
            *received += bytes;
            if *received > LEN as u64 / 2 {
                cancel.cancel();
            }
        }
    };
    let error = lab.hub().pull(&parse("org/name"), &Patterns::default(), &events, &cancel).unwrap_err();
    assert!(matches!(error, HubError::Cancelled));
    let names = lab.names();
    assert!(names.iter().all(|n| n.contains(".bitnet.")), "{names:?}");
    let (done, events) = told(&lab.hub(), "org/name");
    assert_eq!(fs::read(done.unwrap().path).unwrap(), noise(LEN));
    let again: u64 =
        events.iter().map(|e| if let Event::Received { bytes, .. } = e { *bytes } else { 0 }).sum();
    assert_eq!(again + *received.lock().unwrap(), LEN as u64, "no byte came twice");
    assert!(!lab.names().iter().any(|n| n.contains(".bitnet.")));
}

#[test]
fn what_an_interrupted_pull_left_is_verified_with_the_rest() {
    let lab = Lab::with_file(LEN);
    let blobs = lab.cache().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let name = sha256(&noise(LEN));
    fs::write(blobs.join(format!("{name}.bitnet.incomplete")), vec![7; LEN]).unwrap();
    fs::write(
        blobs.join(format!("{name}.bitnet.ranges")),
        format!("{{\"size\":{LEN},\"done\":[[0,400000]]}}"),
    )
    .unwrap();
    let (done, events) = told(&lab.hub(), "org/name");
    assert_eq!(fs::read(done.unwrap().path).unwrap(), noise(LEN));
    assert!(events.iter().any(|e| matches!(e, Event::Started { present_bytes: 400_000, .. })));
    assert!(events.iter().any(|e| matches!(e, Event::Restarted { .. })));
}

#[test]
fn answers_that_are_none_are_refused() {
    let says = |of: &str, text: &str| fails(of, 9, Mood::Says(text.to_owned())).to_string();
    for (of, text) in [
        ("/revision/", ""),
        ("/revision/", "<html>"),
        ("/revision/", r#"{"sha":"../../../outside"}"#),
        ("/tree/", "{}"),
        ("/tree/", r#"[{"type":"file","path":"../../../../evil.gguf","size":1}]"#),
        ("/tree/", r#"[{"type":"file","path":"/evil.gguf","size":1}]"#),
    ] {
        let message = says(of, text);
        assert!(message.contains("gave no valid answer"), "{text}: {message}");
    }
    for etag in ["../../evil", "", "a/b"] {
        let error = fails("HEAD ", 9, Mood::Header("X-Linked-Etag", etag.to_owned()));
        assert!(matches!(error, HubError::Response { .. }), "{etag}: {error}");
    }
    for location in ["file:///etc/passwd", "nonsense"] {
        let error = fails("GET /org/name/resolve", 9, Mood::Header("Location", location.to_owned()));
        assert!(matches!(error, HubError::Response { .. }), "{location}: {error}");
    }
    let lab = Lab::with_file(LEN);
    let circle = format!("{}/api/models/org/name/revision/main", lab.server.url());
    lab.server.fault("/revision/", 99, Mood::Status(302, vec![("Location", circle)]));
    assert!(lab.pull("org/name").unwrap_err().to_string().contains("circles"));
    let lab = Lab::with_file(LEN);
    let next = format!("<{}/api/models/org/name/tree/main>; rel=\"next\"", lab.server.url());
    lab.server.fault("/tree/", usize::MAX, Mood::Header("Link", next));
    assert!(lab.pull("org/name").unwrap_err().to_string().contains("pages do not end"));
}
