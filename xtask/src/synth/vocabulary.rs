//! A vocabulary that works: every byte is a token, then the special ones, then as many unused ones as the model has rows.

pub(super) const BOS: u32 = 256;
pub(super) const EOS: u32 = 257;
pub(super) const EOT: u32 = 258;

pub(super) const SPECIAL: [(u32, &str); 3] =
    [(BOS, "<|begin_of_text|>"), (EOS, "<|end_of_text|>"), (EOT, "<|eot_id|>")];

/// BitNet 2B-4T's form: `User: ...<|eot_id|>Assistant: `.
pub(super) const TEMPLATE: &str = "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim \
     + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// The character that stands for a byte in byte-level vocabularies: itself where it prints, else the next one from 256 on.
fn letter(byte: u8) -> char {
    let prints = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !prints(*b)).count() as u32;
    char::from_u32(256 + before).unwrap_or(' ')
}

/// Tokens by id.
pub(super) fn tokens(count: usize) -> Vec<String> {
    let bytes = (0..=255).map(|b| letter(b).to_string());
    let special = SPECIAL.iter().map(|(_, text)| (*text).to_owned());
    let unused = (0..).map(|i| format!("<unused_{i}>"));
    bytes.chain(special).chain(unused).take(count).collect()
}
