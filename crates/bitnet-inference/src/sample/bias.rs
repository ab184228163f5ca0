//! Logit bias: a number added to single ids before any other stage.

use super::Context;

pub(super) fn adjust(logits: &mut [f64], context: &Context<'_>) {
    for &(id, bias) in &context.options.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
}
