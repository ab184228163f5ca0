//! What stands in files, for whoever wants to know their words and not how they are learnt.

use super::read::{Example, Skipped, examples};
use crate::TrainError;
use crate::run::Kind;
use std::path::Path;

/// Hands on the texts of a file that can be trained on: documents, prompts with their completions, and messages.
///
/// # Errors
/// The file cannot be read, or is of no kind that is known; or what `each` returns.
pub fn texts(
    path: &Path,
    skipped: &mut Skipped,
    each: &mut dyn FnMut(String) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    examples(path, Kind::Pretrain, skipped, &mut |some| {
        for (_, example) in some {
            match example {
                Example::Text(text) => each(text)?,
                Example::Prompt { prompt, completion } => each(prompt + &completion)?,
                Example::Chat(messages) => {
                    for content in messages.iter().filter_map(|m| m["content"].as_str()) {
                        each(content.to_owned())?;
                    }
                }
                Example::Pair { answers, .. } => answers.into_iter().try_for_each(&mut *each)?,
            }
        }
        Ok(())
    })
}
