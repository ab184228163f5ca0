use super::*;
use serde_json::json;

fn render(source: &str, messages: Json, prompt: bool) -> Result<String, TemplateError> {
    let tokens =
        SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..SpecialTokens::default() };
    ChatTemplate::new(source, tokens)?.render(&messages, prompt, &serde_json::Map::new())
}

#[test]
fn templates_find_what_transformers_gives_them() {
    let hi = json!([{"role": "user", "content": " hi "}]);
    let cases = [
        ("{{ bos_token }}{% for m in messages %}{{ m.content.strip() }}{% endfor %}{{ pad_token }}", "<s>hi"),
        ("{%- if add_generation_prompt -%}\n  on\n{%- endif %}", "on"),
        ("{% for m in messages %}\n  {% if m.role == 'user' %}\nx\n  {% endif %}\n{% endfor %}", "x\n"),
        ("{{ messages | tojson }}", "[{\"role\": \"user\", \"content\": \" hi \"}]"),
        ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}", "user"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
    ];
    for (source, want) in cases {
        assert_eq!(render(source, hi.clone(), true).unwrap(), want, "{source}");
    }
}

#[test]
fn bad_templates_end_with_an_error() {
    let error = |source: &str| render(source, json!([]), false).unwrap_err().to_string();
    assert!(error("{% if %}").contains("does not parse"));
    // Found by fuzzing: two ends of a tag that share a byte.
    assert!(error("{%}").contains("does not parse"));
    assert!(error("a\n{{ messages[0 }}").contains("line 2") || error("a\n{{ messages[0 }}").contains(":2"));
    assert!(error("{{ raise_exception('only user and assistant') }}").contains("only user and assistant"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("fuel"));
    let nested = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(error(nested).contains("rendered"));
}

#[test]
fn the_converters_template_is_replaced() {
    let converted = "{{ 'Human: ' + messages[0]['content'] + 'BITNETAssistant: ' }}";
    let got = render(converted, json!([{"role": "user", "content": "hi"}]), true).unwrap();
    assert_eq!(got, "User: hi<|eot_id|>Assistant: ");
}
