//! Adapters by llama.cpp's fields and routes, and by vLLM's.

use crate::common::{Client, MODEL, options, start};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{Keys, ServeOptions};
use bitnet_testkit::{adapter, golden};
use serde_json::{Value, json};
use std::path::Path;

const COMPLETE: &str = "/v1/completions";
const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

fn list(client: &Client) -> Value {
    serde_json::from_str(&client.get("/lora-adapters").text()).unwrap()
}

#[test]
fn a_request_chooses_its_adapters_and_the_route_sets_what_others_get() {
    let (_running, client) = start(options(), EngineOptions::default());
    let ask = |lora: Value| json!({"prompt": [500, 343, 418], "temperature": 0, "max_tokens": 8, "ignore_eos": true, "lora": lora});
    let text = |lora: Value| client.json(COMPLETE, &ask(lora))["choices"][0]["text"].clone();
    let adapters = list(&client);
    assert_eq!((&adapters[0]["id"], &adapters[0]["scale"]), (&json!(0), &json!(0.0)));
    assert!(adapters[0]["path"].as_str().unwrap().ends_with("qvd-r4"), "{adapters}");
    let (base, adapted) = (text(Value::Null), text(json!([{"id": 0, "scale": 1.0}])));
    assert_ne!(base, adapted);
    assert_eq!(text(json!([])), base);
    let set = client.json("/lora-adapters", &json!([{"id": 0, "scale": 1.0}]));
    assert_eq!(set["success"], true);
    assert_eq!((text(Value::Null), text(json!([]))), (adapted.clone(), base.clone()));
    for wrong in [json!([{"id": 7, "scale": 1.0}]), json!([{"id": 0, "scale": 1e39}])] {
        for (path, body) in [("/lora-adapters", wrong.clone()), (COMPLETE, ask(wrong.clone()))] {
            let reply = client.post(path, &body);
            assert_eq!(reply.status, 422, "{path} {wrong}");
            let error: Value = serde_json::from_str(&reply.text()).unwrap();
            assert_eq!(error["error"]["param"], "lora", "{error}");
        }
    }
    assert_eq!(list(&client)[0]["scale"], json!(1.0), "what is refused changes nothing");
    client.json("/lora-adapters", &json!([]));
    assert_eq!(text(Value::Null), base);
}

/// A small adapter of the model that is served.
fn write(dir: &Path, seed: u64) {
    std::fs::create_dir_all(dir).unwrap();
    adapter::write(dir, &adapter::config(5), &adapter::projections(2, 128, 384, 128, 64), 5, seed);
}

fn ask(model: &str) -> Value {
    json!({"model": model, "prompt": [500, 343, 418], "temperature": 0, "max_tokens": 8, "ignore_eos": true, "logprobs": 1})
}

/// An answer with the likelihoods of its tokens, which tell adapters apart that make no other text.
fn answer(client: &Client, body: &Value) -> Value {
    client.json(COMPLETE, body)["choices"][0].clone()
}

#[test]
fn adapters_are_loaded_and_unloaded_while_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("one"), 1);
    write(&folder.path().join("deep/two"), 2);
    let adapters = Some(folder.path().to_owned());
    let (_running, client) = start(ServeOptions { adapters, ..options() }, EngineOptions::default());
    let base = answer(&client, &ask(MODEL));
    let load = |name: &str, path: &str| client.json(LOAD, &json!({"lora_name": name, "lora_path": path}));
    let loaded = load("sql", "one");
    assert_eq!((&loaded["id"], &loaded["name"], &loaded["scale"]), (&json!(1), &json!("sql"), &json!(0.0)));
    let whole = folder.path().join("deep/two");
    assert_eq!(load("verse", whole.to_str().unwrap())["id"], 2);

    // Each is a model by its name, and acts on nobody who asks for another.
    let (sql, verse) = (answer(&client, &ask("sql")), answer(&client, &ask("verse")));
    assert!(sql != base && verse != base && sql != verse, "{base} {sql} {verse}");
    assert_eq!((answer(&client, &ask(MODEL)), answer(&client, &ask(""))), (base.clone(), base.clone()));
    assert_ne!(
        answer(&client, &ask("qvd-r4")),
        base,
        "one that the server was started with has its folder's name"
    );
    let by_number = |lora: Value| {
        let mut body = ask("verse");
        body["lora"] = lora;
        answer(&client, &body)
    };
    assert_eq!((by_number(json!([{"id": 1, "scale": 1.0}])), by_number(json!([]))), (sql.clone(), base));
    assert_eq!(client.json(COMPLETE, &ask("sql"))["model"], "sql");
    let chat = json!({"model": "sql", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2});
    assert_eq!(client.json("/v1/chat/completions", &chat)["model"], "sql");
    let vector = |model: &str| {
        client.json("/v1/embeddings", &json!({"model": model, "input": [5, 6]}))["data"][0].clone()
    };
    assert_ne!(vector("sql"), vector(MODEL));
    let models: Value = serde_json::from_str(&client.get("/v1/models").text()).unwrap();
    let models: Vec<(&Value, &Value)> =
        models["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["parent"])).collect();
    let (none, parent) = (Value::Null, json!(MODEL));
    let names = [MODEL, "qvd-r4", "sql", "verse"].map(Value::from);
    assert_eq!(
        models,
        [(&names[0], &none), (&names[1], &parent), (&names[2], &parent), (&names[3], &parent)]
    );
    let names: Vec<Value> = list(&client).as_array().unwrap().iter().map(|a| a["name"].clone()).collect();
    assert_eq!(names, ["qvd-r4", "sql", "verse"]);

    // An answer that is being made through one is finished through it.
    let mut long = ask("sql");
    for (key, value) in [("max_tokens", json!(300)), ("logprobs", json!(5)), ("stream", json!(true))] {
        long[key] = value;
    }
    let want = client.post(COMPLETE, &long).chunks();
    let mut stream = client.post(COMPLETE, &long);
    stream.piece().unwrap();
    assert_eq!(client.json(UNLOAD, &json!({"lora_name": "sql"})), json!({"success": true}));
    let refused = client.post(COMPLETE, &ask("sql")).error();
    assert_eq!((refused.0, refused.2.as_deref()), (404, Some("model_not_found")));
    let texts = |chunks: &[Value]| {
        chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect::<Vec<_>>().concat()
    };
    let got = stream.chunks();
    assert_eq!(got.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(texts(&want).ends_with(&texts(&got)), "{} {}", texts(&want), texts(&got));
    assert_eq!(list(&client).as_array().unwrap().len(), 2);
    assert_eq!(client.post(COMPLETE, &json!({"prompt": "a", "lora": [{"id": 1, "scale": 1.0}]})).status, 422);

    // It comes back under a new number, with the same bits.
    assert_eq!(load("sql", "one")["id"], 3);
    assert_eq!(answer(&client, &ask("sql")), sql);
}

#[test]
fn what_is_no_adapter_for_clients_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("adapters"), folder.path().join("outside"));
    write(&inside.join("good"), 1);
    write(&outside, 2);
    std::fs::create_dir(inside.join("damaged")).unwrap();
    std::fs::write(inside.join("damaged/adapter_config.json"), "{").unwrap();
    std::fs::write(inside.join("damaged/adapter_model.safetensors"), "x").unwrap();
    std::fs::create_dir(inside.join("wide")).unwrap();
    adapter::write(
        &inside.join("wide"),
        &adapter::config(5),
        &adapter::projections(2, 64, 384, 128, 64),
        5,
        3,
    );
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    let keys = Keys::new(&["key".to_owned()], None).unwrap();
    let adapters = Some(inside.clone());
    let (_running, stranger) = start(ServeOptions { keys, adapters, ..options() }, EngineOptions::default());
    let client = stranger.with("x-api-key", "key");
    let load = |name: &str, path: &str| json!({"lora_name": name, "lora_path": path});
    let absolute = outside.to_str().unwrap();
    for (body, want) in [
        (load("x", "absent"), (404, Some("adapter_not_found"), Some("lora_path"))),
        (load("x", "../outside"), (404, Some("adapter_not_found"), Some("lora_path"))),
        (load("x", absolute), (404, Some("adapter_not_found"), Some("lora_path"))),
        (load("x", "link"), (404, Some("adapter_not_found"), Some("lora_path"))),
        (load("x", "damaged"), (400, Some("invalid_adapter"), Some("lora_path"))),
        (load("x", "wide"), (400, Some("invalid_adapter"), Some("lora_path"))),
        (load("", "good"), (422, None, Some("lora_name"))),
        (load(MODEL, "good"), (400, Some("already_loaded"), Some("lora_name"))),
        (load("qvd-r4", "good"), (400, Some("already_loaded"), Some("lora_name"))),
        (json!({"lora_name": "x"}), (422, None, None)),
        (json!({"lora_name": "x", "lora_path": "good", "model": "qvd-r4"}), (422, None, Some("model"))),
        (
            json!({"lora_name": "x", "lora_path": "good", "model": "absent"}),
            (404, Some("model_not_found"), Some("model")),
        ),
    ] {
        let (status, _, code, param) = client.post(LOAD, &body).error();
        assert_eq!((status, code.as_deref(), param.as_deref()), want, "{body}");
    }
    let (status, _, code, param) = client.post(UNLOAD, &json!({"lora_name": MODEL})).error();
    assert_eq!(
        (status, code.as_deref(), param.as_deref()),
        (404, Some("adapter_not_found"), Some("lora_name"))
    );
    for path in [LOAD, UNLOAD] {
        assert_eq!(stranger.post(path, &load("x", "good")).status, 401, "{path}");
        assert_eq!(client.get(path).status, 405, "{path}");
    }
    assert_eq!(list(&client).as_array().unwrap().len(), 1, "nothing stays of what is refused");
    // There is room for so many, and for another one when one has gone.
    for i in 1..64 {
        client.json(LOAD, &load(&i.to_string(), "good"));
    }
    assert_eq!(client.post(LOAD, &load("64", "good")).error().2.as_deref(), Some("too_many_adapters"));
    client.json(UNLOAD, &json!({"lora_name": "1"}));
    client.json(LOAD, &load("64", "good"));
}

#[test]
fn without_a_folder_only_those_of_the_start_come_back() {
    let (_running, client) = start(options(), EngineOptions::default());
    let path = golden::fixtures().join("lora/qvd-r4");
    let path = path.to_str().unwrap();
    let adapted = answer(&client, &ask("qvd-r4"));
    client.json(UNLOAD, &json!({"lora_name": "qvd-r4"}));
    assert_eq!(client.post(COMPLETE, &ask("qvd-r4")).status, 404);
    assert_eq!(client.json(LOAD, &json!({"lora_name": "again", "lora_path": path}))["id"], 1);
    assert_eq!(answer(&client, &ask("again")), adapted);
    let other = json!({"lora_name": "x", "lora_path": format!("{path}/../qvd-r4")});
    assert_eq!(client.post(LOAD, &other).error().2.as_deref(), Some("adapter_not_found"));
}
