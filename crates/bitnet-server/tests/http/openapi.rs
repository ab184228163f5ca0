//! The description of the routes, and its page.

use crate::common::{options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::Value;

const ROUTES: &[&str] = &[
    "post /v1/chat/completions",
    "post /v1/completions",
    "post /v1/responses",
    "get /v1/ws",
    "get /v1/models",
    "get /v1/models/{id}",
    "post /v1/embeddings",
    "post /api/embed",
    "get /lora-adapters",
    "post /lora-adapters",
    "post /v1/load_lora_adapter",
    "post /v1/unload_lora_adapter",
    "get /models",
    "post /models/load",
    "post /models/unload",
    "post /v1/messages",
    "post /v1/messages/count_tokens",
    "post /completion",
    "post /tokenize",
    "post /detokenize",
    "post /apply-template",
    "post /api/generate",
    "post /api/chat",
    "get /api/tags",
    "post /api/show",
    "get /api/version",
    "get /health",
    "get /healthz",
    "get /readyz",
    "get /metrics",
];

/// Every reference in a value.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

#[test]
fn every_route_is_described_and_every_reference_leads_somewhere() {
    let (_running, client) = start(options(), EngineOptions::default());
    let reply = client.get("/openapi.json");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let document: Value = serde_json::from_str(&reply.text()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    let mut described: Vec<String> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
        })
        .collect();
    described.sort();
    let mut routes = ROUTES.to_vec();
    routes.sort_unstable();
    assert_eq!(described, routes);
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let chat = &document["paths"]["/v1/chat/completions"]["post"];
    for status in ["200", "400", "401", "403", "404", "408", "413", "422", "429", "500", "501", "503"] {
        assert!(chat["responses"][status].is_object(), "{status}");
    }
    // Fields of the engine's requests come along.
    assert!(document.to_string().contains("dry_multiplier"));
}

#[test]
fn the_page_is_served_from_the_binary() {
    let (_running, client) = start(options(), EngineOptions::default());
    let page = client.get("/docs/").text();
    assert!(page.contains("swagger-ui"), "{page}");
    for file in ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js"] {
        let reply = client.get(&format!("/docs/{file}"));
        assert_eq!(reply.status, 200, "{file}");
    }
    assert!(client.get("/docs/swagger-initializer.js").text().contains("/openapi.json"));
}
