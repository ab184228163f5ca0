//! A model of the hub, opened as a future.

#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_hub::{Event, Hub, Reference, Settings, Task};
use bitnet_inference::{GenerateOptions, HubOpenError, Model, OpenOptions, Progress, load_model_from_hub};
use bitnet_testkit::golden::fixtures;
use bitnet_testkit::hub::{HubServer, Repo};
use std::pin::pin;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Waker};

/// Polls until it is done; a waker is for executors that have other things to do.
fn wait<T>(task: Task<T>) -> T {
    let mut task = pin!(task);
    loop {
        match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

fn tokens(model: &mut Model) -> Vec<u32> {
    let mut options = GenerateOptions { max_tokens: Some(8), ..GenerateOptions::default() };
    options.sampling.temperature = 0.0;
    let mut generation = model.generate(&[500, 1], options).unwrap();
    generation.by_ref().for_each(|piece| drop(piece.unwrap()));
    generation.tokens().to_vec()
}

#[test]
fn a_model_of_the_hub_is_fetched_loaded_and_runs() {
    let server = HubServer::start();
    let local = fixtures().join("bitnet-packed");
    server.put("org/tiny", Repo::from_folder(&local));
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new(Settings { endpoint: server.url().to_owned(), ..Settings::new(folder.path()) });
    let load = |reference: &str| {
        let (sender, events) = channel();
        let reference: Reference = reference.parse().unwrap();
        let task =
            load_model_from_hub(&hub, &reference, OpenOptions::default(), move |p| sender.send(p).unwrap());
        (wait(task), events.iter().collect::<Vec<_>>())
    };
    let (loaded, events) = load("org/tiny@main");
    let mut loaded = loaded.unwrap();
    let mut here = Model::open(&local, &OpenOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!(tokens(&mut loaded.model), tokens(&mut here));
    assert!(events.iter().any(|e| matches!(e, Progress::Download(Event::Received { .. }))));
    assert!(matches!(events.last(), Some(Progress::Layers(done, all)) if done == all));
    // In use it is not cleared; and it does not come again.
    assert_eq!(hub.clear().unwrap().in_use.len(), 1);
    server.seen();
    let (again, events) = load("org/tiny");
    assert_eq!(again.unwrap().cached.commit, loaded.cached.commit);
    assert!(server.seen().is_empty() && !events.iter().any(|e| matches!(e, Progress::Download(_))));
    assert!(matches!(load("org/absent").0, Err(HubOpenError::Hub(_))));
}
