//! The test hub as a process: `hub_server PORT FOLDER` serves `FOLDER/ORG/NAME` as repositories and prints its address.
//! A file `FOLDER/ORG/NAME.token` makes a repository private. With a third argument it is slow: so many bytes every 5 ms.
#![allow(clippy::unwrap_used, reason = "a test kit fails by panicking")]

use bitnet_testkit::hub::{Access, HubServer, Mood, Repo};
use std::path::PathBuf;
use std::time::Duration;

fn main() {
    let mut args = std::env::args().skip(1);
    let usage = "hub_server PORT FOLDER [BYTES]";
    let server = HubServer::start_at(args.next().expect(usage).parse().expect(usage));
    let folder = PathBuf::from(args.next().expect(usage));
    for org in std::fs::read_dir(&folder).unwrap().flatten().filter(|e| e.path().is_dir()) {
        for name in std::fs::read_dir(org.path()).unwrap().flatten().filter(|e| e.path().is_dir()) {
            let mut repo = Repo::from_folder(&name.path());
            if let Ok(token) = std::fs::read_to_string(name.path().with_added_extension("token")) {
                repo.access = Access::Private(token.trim().to_owned());
            }
            let id = format!("{}/{}", org.file_name().to_str().unwrap(), name.file_name().to_str().unwrap());
            server.put(&id, repo);
        }
    }
    if let Some(bytes) = args.next() {
        server.fault(
            "GET /lfs/",
            usize::MAX,
            Mood::Slow(bytes.parse().expect(usage), Duration::from_millis(5)),
        );
    }
    println!("{}", server.url());
    loop {
        std::thread::park();
    }
}
