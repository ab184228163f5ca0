//! Adapters by llama.cpp's fields and routes.

use crate::common::{options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::{Value, json};

#[test]
fn a_request_chooses_its_adapters_and_the_route_sets_what_others_get() {
    let (_running, client) = start(options(), EngineOptions::default());
    let ask = |lora: Value| json!({"prompt": [500, 343, 418], "temperature": 0, "max_tokens": 8, "ignore_eos": true, "lora": lora});
    let text = |lora: Value| client.json("/v1/completions", &ask(lora))["choices"][0]["text"].clone();
    let list = || serde_json::from_str::<Value>(&client.send("GET", "/lora-adapters", b"").text()).unwrap();
    let adapters = list();
    assert_eq!((&adapters[0]["id"], &adapters[0]["scale"]), (&json!(0), &json!(0.0)));
    assert!(adapters[0]["path"].as_str().unwrap().ends_with("qvd-r4"), "{adapters}");
    let (base, adapted) = (text(Value::Null), text(json!([{"id": 0, "scale": 1.0}])));
    assert_ne!(base, adapted);
    assert_eq!(text(json!([])), base);
    let set = client.json("/lora-adapters", &json!([{"id": 0, "scale": 1.0}]));
    assert_eq!(set["success"], true);
    assert_eq!((text(Value::Null), text(json!([]))), (adapted.clone(), base.clone()));
    for wrong in [json!([{"id": 7, "scale": 1.0}]), json!([{"id": 0, "scale": 1e39}])] {
        for (path, body) in [("/lora-adapters", wrong.clone()), ("/v1/completions", ask(wrong.clone()))] {
            let reply = client.post(path, &body);
            assert_eq!(reply.status, 422, "{path} {wrong}");
            let error: Value = serde_json::from_str(&reply.text()).unwrap();
            assert_eq!(error["error"]["param"], "lora", "{error}");
        }
    }
    assert_eq!(list()[0]["scale"], json!(1.0), "what is refused changes nothing");
    client.json("/lora-adapters", &json!([]));
    assert_eq!(text(Value::Null), base);
}
