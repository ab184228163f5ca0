//! Vectors of texts.

use crate::common::{MODEL, options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::{Value, json};

const PATH: &str = "/v1/embeddings";

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn every_form_of_input_and_output_says_the_same() {
    let (_running, client) = start(options(), EngineOptions::default());
    let ask = |more: Value| {
        let mut body = json!({"model": MODEL, "input": "hello"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.json(PATH, &body)
    };
    let one = ask(json!({}));
    let vector = floats(&one["data"][0]["embedding"]);
    assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert_eq!((&one["object"], &one["data"][0]["object"]), (&json!("list"), &json!("embedding")));
    let ids = client.json("/tokenize", &json!({"content": "hello", "add_special": true}))["tokens"].clone();
    assert_eq!(one["usage"]["prompt_tokens"], ids.as_array().unwrap().len());
    let many = ask(json!({"input": ["goodbye", "hello"]}));
    assert_eq!(floats(&many["data"][1]["embedding"]), vector, "whoever else is asked about");
    assert_ne!(floats(&many["data"][0]["embedding"]), vector);
    assert_eq!(floats(&ask(json!({"input": ids}))["data"][0]["embedding"]), vector);
    assert_eq!(floats(&ask(json!({"input": [ids]}))["data"][0]["embedding"]), vector);
    let text = ask(json!({"encoding_format": "base64"}))["data"][0]["embedding"].as_str().unwrap().to_owned();
    let bytes = base64::decode(text).unwrap();
    let decoded: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(decoded, vector.iter().map(|x| *x as f32).collect::<Vec<_>>());
    let short = floats(&ask(json!({"dimensions": 4}))["data"][0]["embedding"]);
    assert_eq!(short.len(), 4);
    assert!((short.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert!((short[0] * vector[1] - short[1] * vector[0]).abs() < 1e-6, "the direction is the same");
    let ollama = client.json("/api/embed", &json!({"model": MODEL, "input": ["goodbye", "hello"]}));
    assert_eq!(floats(&ollama["embeddings"][1]), vector);
    let long = json!({"model": MODEL, "input": "hello ".repeat(2000)});
    let kept = client.json("/api/embed", &long)["prompt_eval_count"].as_u64().unwrap();
    assert!((100..2000).contains(&kept), "as many as the context holds, not {kept}");
    for (body, status, param) in [
        (json!({"input": []}), 422, Some("input")),
        (json!({"input": 3}), 422, Some("input")),
        (json!({"input": "a", "dimensions": 0}), 422, Some("dimensions")),
        (json!({"input": "a", "dimensions": 100_000}), 422, Some("dimensions")),
        (json!({"input": "a", "encoding_format": "text"}), 422, None),
        (json!({"input": [100_000]}), 422, Some("prompt")),
        (json!({"input": "hello ".repeat(2000)}), 400, Some("prompt")),
        (json!({"input": vec!["a"; 65]}), 400, None),
    ] {
        let (got, _, _, named) = client.post(PATH, &body).error();
        assert_eq!((got, named.as_deref()), (status, param), "{body}");
    }
}
