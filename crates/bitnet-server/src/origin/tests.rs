#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use crate::ServeOptions;

/// Whether a server that listens on an address, and was told some names, answers to one.
fn answers(bound: &str, told: &[&str], host: &str) -> bool {
    let hosts = told.iter().map(|name| (*name).to_owned()).collect();
    let server = Server::new(ServeOptions { hosts, ..ServeOptions::default() }).unwrap();
    let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
    check_host(&server, Bound(bound.parse().unwrap()), &headers).is_ok()
}

/// One that listens on this machine alone is asked over sockets in `tests/http/faults.rs`.
#[test]
fn a_server_that_others_reach_takes_any_name_until_it_is_told_its_own() {
    for bound in ["0.0.0.0", "::", "192.168.0.7"] {
        assert!(answers(bound, &[], "gpu.example.org:8080"));
        assert!(!answers(bound, &["gpu"], "gpu.example.org:8080"));
        assert!(answers(bound, &["gpu"], "gpu:8080"));
        assert!(answers(bound, &["192.168.0.7"], "192.168.0.7:8080"));
        assert!(answers(bound, &["fd00::7"], "[fd00::7]:8080"));
        assert!(answers(bound, &["gpu"], "localhost:8080"));
    }
    let server = Server::new(ServeOptions::default()).unwrap();
    assert!(check_host(&server, Bound("::1".parse().unwrap()), &HeaderMap::new()).is_ok(), "no browser");
}
