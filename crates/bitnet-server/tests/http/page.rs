//! The chat page.

use crate::common::{options, start};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{Keys, ServeOptions};

#[test]
fn the_page_is_whole_and_strict() {
    let keys = Keys::new(&["secret".to_owned()], None).unwrap();
    let (_running, client) = start(ServeOptions { keys, ..options() }, EngineOptions::default());
    // Whoever opens the page has no key yet.
    let page = client.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let html = page.text();
    assert!(!html.contains("http://") && !html.contains("https://"), "nothing is fetched from elsewhere");
    let files: Vec<&str> = html.split('"').filter(|part| part.starts_with("/chat/")).collect();
    assert!(files.len() >= 3);
    for file in files.into_iter().chain(["/chat/client.js", "/chat/markdown.js", "/chat/store.js"]) {
        let reply = client.get(file);
        assert_eq!((reply.status, reply.header("x-content-type-options")), (200, Some("nosniff")), "{file}");
        let text = reply.text();
        for import in text.split("from \"./").skip(1) {
            let name = import.split('"').next().unwrap();
            assert_eq!(client.get(&format!("/chat/{name}")).status, 200, "{file} imports {name}");
        }
        // What a model says never becomes HTML.
        assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML"), "{file}");
    }
    assert_eq!(client.get("/v1/models").status, 401);
}

#[test]
fn it_can_be_turned_off() {
    let (_running, client) = start(ServeOptions { page: false, ..options() }, EngineOptions::default());
    assert_eq!(client.get("/").error().0, 404);
    assert_eq!(client.get("/chat/chat.js").error().0, 404);
}
