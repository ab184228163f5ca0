//! Tokens of examples, and which of them count.

use super::read::{Example, Prompt};
use crate::run::Kind;
use bitnet_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// Set in the word of a token that counts as a target; ids are smaller.
pub(super) const COUNTS: u32 = 1 << 31;

const TURNS: &str = "the chat template does not put a turn behind those before it as they were";

/// Sequences of an example, each with its words; a pair has two, the better one first. What is wrong with it otherwise.
pub(super) fn sequences(
    tokenizer: &Tokenizer,
    kind: Kind,
    example: &Example,
) -> Result<Vec<Vec<u32>>, String> {
    let sequences = match example {
        Example::Pair { prompt, answers } => {
            let of = |answer: &String| answer_words(tokenizer, prompt, answer);
            answers.iter().map(of).collect::<Result<_, _>>()?
        }
        _ => vec![words(tokenizer, kind, example)?],
    };
    let learns = |words: &Vec<u32>| words.iter().skip(1).any(|w| w & COUNTS != 0);
    match sequences.iter().all(learns) {
        true => Ok(sequences),
        false => Err("it has no token to learn".to_owned()),
    }
}

/// The words of an example: ids, marked where they count.
fn words(tokenizer: &Tokenizer, kind: Kind, example: &Example) -> Result<Vec<u32>, String> {
    Ok(match (kind, example) {
        (Kind::Pretrain | Kind::Lora | Kind::Qat | Kind::Distill, Example::Text(text)) => {
            text_words(tokenizer, text)?
        }
        (Kind::Pretrain, Example::Prompt { prompt, completion }) => {
            text_words(tokenizer, &format!("{prompt}{completion}"))?
        }
        (Kind::Pretrain, Example::Chat(messages)) => {
            let text = render(tokenizer, messages, false)?;
            let ids = tokenizer.encode_chat(&text).map_err(|e| e.to_string())?;
            ids.into_iter().map(|id| id | COUNTS).collect()
        }
        (Kind::Sft | Kind::Lora | Kind::Qat | Kind::Distill, Example::Prompt { prompt, completion }) => {
            let mut words = tokenizer.encode(prompt, true).map_err(|e| e.to_string())?;
            // A post-processor may end what it encodes; the answer follows.
            if words.len() > 1 && words.last() == tokenizer.eos().as_ref() {
                words.pop();
            }
            let answer = tokenizer.encode(completion, false).map_err(|e| e.to_string())?;
            words.extend(answer.into_iter().chain(tokenizer.eos()).map(|id| id | COUNTS));
            words
        }
        (Kind::Sft | Kind::Lora | Kind::Qat | Kind::Distill, Example::Chat(messages)) => {
            chat_words(tokenizer, messages)?
        }
        (Kind::Sft, Example::Text(_)) => {
            return Err("it is plain text; fine-tuning needs messages, or prompt and completion".to_owned());
        }
        (Kind::Dpo, _) | (_, Example::Pair { .. }) => {
            return Err("pairs of answers are for dpo, and it has nothing else".to_owned());
        }
    })
}

/// A prompt and the completion that counts.
fn prompt_words(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<Vec<u32>, String> {
    let mut words = tokenizer.encode(prompt, true).map_err(|e| e.to_string())?;
    // A post-processor may end what it encodes; the answer follows.
    if words.len() > 1 && words.last() == tokenizer.eos().as_ref() {
        words.pop();
    }
    let answer = tokenizer.encode(completion, false).map_err(|e| e.to_string())?;
    words.extend(answer.into_iter().chain(tokenizer.eos()).map(|id| id | COUNTS));
    Ok(words)
}

/// An answer, which counts, behind what it answers.
fn answer_words(tokenizer: &Tokenizer, prompt: &Prompt, answer: &str) -> Result<Vec<u32>, String> {
    match prompt {
        Prompt::Text(prompt) => prompt_words(tokenizer, prompt, answer),
        Prompt::Chat(messages) => {
            let whole = [&messages[..], &[json!({"role": "assistant", "content": answer})]].concat();
            let (asked, answered) = (render(tokenizer, messages, true)?, render(tokenizer, &whole, false)?);
            let answer = answered.strip_prefix(&asked).ok_or(TURNS)?;
            let mut words = tokenizer.encode_chat(&asked).map_err(|e| e.to_string())?;
            let answer = tokenizer.encode(answer, false).map_err(|e| e.to_string())?;
            words.extend(answer.into_iter().map(|id| id | COUNTS));
            Ok(words)
        }
    }
}

/// A text with what begins and ends one.
fn text_words(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let mut ids = tokenizer.encode(text, true).map_err(|e| e.to_string())?;
    if let Some(eos) = tokenizer.eos().filter(|eos| ids.last() != Some(eos)) {
        ids.push(eos);
    }
    Ok(ids.into_iter().map(|id| id | COUNTS).collect())
}

/// A conversation; what the template makes of the assistant's turns counts. The prompt of a turn is encoded by itself, as it will be when
/// the model is asked.
fn chat_words(tokenizer: &Tokenizer, messages: &[Value]) -> Result<Vec<u32>, String> {
    let (mut done, mut words) = (String::new(), Vec::new());
    for (i, _) in messages.iter().enumerate().filter(|(_, m)| m["role"] == "assistant") {
        let asked = render(tokenizer, &messages[..i], true)?;
        let answered = render(tokenizer, &messages[..=i], false)?;
        let (Some(prompt), Some(answer)) = (asked.strip_prefix(&done), answered.strip_prefix(&asked)) else {
            return Err(TURNS.to_owned());
        };
        let prompt = match done.is_empty() {
            true => tokenizer.encode_chat(prompt),
            false => tokenizer.encode(prompt, false),
        };
        words.extend(prompt.map_err(|e| e.to_string())?);
        let answer = tokenizer.encode(answer, false).map_err(|e| e.to_string())?;
        words.extend(answer.into_iter().map(|id| id | COUNTS));
        done = answered;
    }
    Ok(words)
}

fn render(tokenizer: &Tokenizer, messages: &[Value], open: bool) -> Result<String, String> {
    let template = tokenizer.template().map_err(|e| e.to_string())?;
    let template = template.ok_or("the tokenizer has no chat template")?;
    template.render(&Value::Array(messages.to_vec()), open, &Map::new()).map_err(|e| e.to_string())
}
