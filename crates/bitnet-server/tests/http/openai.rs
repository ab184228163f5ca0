//! OpenAI's and llama.cpp's routes over a socket.

use crate::common::{MODEL, options, start};
use bitnet_inference::engine::EngineOptions;
use serde_json::{Value, json};

fn messages() -> Value {
    json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}])
}

#[test]
fn a_stream_says_what_a_whole_answer_says() {
    let (_running, client) = start(options(), EngineOptions::default());
    let ask = |stream: bool| {
        json!({
            "model": MODEL, "messages": messages(), "seed": 5, "n": 2, "max_tokens": 12, "ignore_eos": true, "stream": stream,
            "logprobs": true, "top_logprobs": 2, "stream_options": {"include_usage": true},
        })
    };
    let whole = client.json("/v1/chat/completions", &ask(false));
    assert_eq!(whole["object"], "chat.completion");
    let chunks = client.post("/v1/chat/completions", &ask(true)).chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    for index in 0..2 {
        let choice = &whole["choices"][index];
        let mine =
            || chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).filter(|c| c["index"] == index);
        let text: String = mine().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(
            (&choice["finish_reason"], &mine().next_back().unwrap()["finish_reason"]),
            (&json!("length"), &json!("length"))
        );
        let listed: Vec<&Value> =
            mine().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().collect();
        assert_eq!(choice["logprobs"]["content"].as_array().unwrap().iter().collect::<Vec<_>>(), listed);
        assert_eq!(listed.len(), 12);
        assert!(
            listed.iter().all(|l| l["logprob"].as_f64().unwrap() <= 0.0 && l["top_logprobs"][1].is_object())
        );
    }
    assert_ne!(
        whole["choices"][0]["message"], whole["choices"][1]["message"],
        "choices have seeds of their own"
    );
    let usage = &chunks.last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(24)));
    assert_eq!(whole["usage"]["prompt_tokens"], usage["usage"]["prompt_tokens"]);
    assert!(
        usage["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0,
        "the prompt was there"
    );
    assert_eq!(whole["timings"]["predicted_n"], 12);
}

#[test]
fn completions_take_every_form_of_prompt_and_echo_with_probabilities() {
    let (_running, client) = start(options(), EngineOptions::default());
    let complete = |body: Value| {
        let mut all = json!({"temperature": 0, "max_tokens": 4, "ignore_eos": true});
        all.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        client.json("/v1/completions", &all)
    };
    let ids =
        client.json("/tokenize", &json!({"content": "hello there", "add_special": true}))["tokens"].clone();
    let one = complete(json!({"prompt": "hello there"}));
    assert_eq!(one["object"], "text_completion");
    let text = &one["choices"][0]["text"];
    for (prompt, count) in [
        (ids.clone(), 1),
        (json!([ids]), 1),
        (json!(["hello there", "hello there"]), 2),
        (json!([ids, ids, ids]), 3),
    ] {
        let got = complete(json!({"prompt": prompt, "n": 2}));
        let choices = got["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 2 * count, "{prompt}");
        assert!(choices.iter().zip(0..).all(|(c, i)| c["text"] == *text && c["index"] == i), "{got}");
        assert_eq!(got["usage"]["prompt_tokens"], ids.as_array().unwrap().len() * count);
    }
    // What lm-evaluation-harness asks for.
    let echo = complete(json!({"prompt": ids, "echo": true, "logprobs": 1, "max_tokens": 1}));
    let logprobs = &echo["choices"][0]["logprobs"];
    let listed = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(listed.len(), ids.as_array().unwrap().len() + 1);
    assert!(listed[0].is_null() && listed[1..].iter().all(|l| l.as_f64().unwrap() < 0.0));
    let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let offsets = logprobs["text_offset"].as_array().unwrap();
    assert!(offsets.last().unwrap().as_u64().unwrap() < tokens.chars().count() as u64);
    let none = complete(json!({"prompt": ids, "echo": true, "logprobs": 1, "max_tokens": 0}));
    assert_eq!(
        none["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..],
        listed[..listed.len() - 1]
    );
}

#[test]
fn models_templates_and_ids() {
    let (_running, client) = start(options(), EngineOptions::default());
    let list: Value = serde_json::from_str(&client.get("/v1/models").text()).unwrap();
    assert_eq!(
        (&list["data"][0]["id"], &list["data"][0]["meta"]["n_ctx_train"]),
        (&json!(MODEL), &json!(512))
    );
    assert_eq!(client.get("/v1/models/tiny").status, 200);
    assert_eq!(client.get("/v1/models/other").error().0, 404);
    let prompt = client.json("/apply-template", &json!({"messages": messages()}))["prompt"].clone();
    assert!(prompt.as_str().unwrap().contains("hello"), "{prompt}");
    let ids = client.json("/tokenize", &json!({"content": "hello"}))["tokens"].clone();
    assert_eq!(client.json("/detokenize", &json!({"tokens": ids}))["content"], "hello");
    let pieces = client.json("/tokenize", &json!({"content": "hello", "with_pieces": true}));
    assert_eq!(pieces["tokens"][0]["id"], ids[0]);
}

#[test]
fn everything_that_is_counted_has_its_name() {
    let (_running, client) = start(options(), EngineOptions::default());
    let body = json!({"prompt": "hello", "max_tokens": 3, "ignore_eos": true, "n_probs": 2});
    let reply = client.json("/v1/completions", &body);
    assert_eq!(reply["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 3);
    let prompt = reply["usage"]["prompt_tokens"].as_u64().unwrap();
    let text = client.get("/metrics").text();
    let model = "model_name=\"tiny\"";
    for line in [
        format!("requests_running{{{model}}} 0"),
        format!("requests_waiting{{{model}}} 0"),
        format!("requests_total{{{model},finish_reason=\"length\"}} 1"),
        format!("prompt_tokens_total{{{model}}} {prompt}"),
        format!("generation_tokens_total{{{model}}} 3"),
        format!("kv_cache_usage_ratio{{{model}}} 0"),
        format!("prefix_cache_queries_total{{{model}}} {prompt}"),
        format!("prefix_cache_hits_total{{{model}}} 0"),
        format!("spec_decode_draft_tokens_total{{{model}}} 0"),
        format!("spec_decode_accepted_tokens_total{{{model}}} 0"),
        format!("time_to_first_token_seconds_count{{{model}}} 1"),
        format!("inter_token_latency_seconds_count{{{model}}} 2"),
        format!("e2e_request_latency_seconds_count{{{model}}} 1"),
        format!("request_queue_time_seconds_count{{{model}}} 1"),
        format!("request_prefill_time_seconds_count{{{model}}} 1"),
        format!("request_decode_time_seconds_count{{{model}}} 1"),
        format!("request_prompt_tokens_sum{{{model}}} {prompt}"),
        format!("request_generation_tokens_sum{{{model}}} 3"),
        "http_requests_total{method=\"POST\",path=\"/v1/completions\",status=\"200\"} 1".to_owned(),
        "http_request_duration_seconds_count{method=\"POST\",path=\"/v1/completions\",status=\"200\"} 1"
            .to_owned(),
    ] {
        assert!(text.lines().any(|l| l.strip_prefix("bitnet_") == Some(&line)), "{line} is not in\n{text}");
    }
    let built = format!("bitnet_build_info{{{model},version=\"{}\",kernel=\"", env!("CARGO_PKG_VERSION"));
    let runs = text
        .lines()
        .find(|line| line.starts_with(&built))
        .unwrap_or_else(|| panic!("{built} is not in\n{text}"));
    assert!(runs.contains("\",isa=\"") && runs.ends_with(",device=\"cpu\"} 1"), "{runs}");
}

#[test]
fn answers_do_not_depend_on_who_else_asks() {
    let (_running, client) =
        start(options(), EngineOptions { seats: 5, budget: 20, ..EngineOptions::default() });
    let ask = |i: usize| json!({"messages": [{"role": "user", "content": format!("say {}", i % 4)}], "seed": i, "max_tokens": 20, "top_k": 0});
    let text =
        |i: usize| client.json("/v1/chat/completions", &ask(i))["choices"][0]["message"]["content"].clone();
    let alone: Vec<Value> = (0..12).map(text).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let text = &text;
        let all: Vec<_> = (0..12).map(|i| scope.spawn(move || text(i))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}
