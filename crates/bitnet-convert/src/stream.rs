//! Tensors of a plan, one after the other.

use crate::encode::encode;
use crate::ordered::ordered;
use crate::plan::{Plan, Source};
use crate::report::Sizes;
use crate::{ConvertError, ConvertOptions, Inexact, Report};
use bitnet_formats::{FormatError, TensorType};

/// Makes all tensors of a plan and hands their bytes on in order.
pub(crate) fn tensors(
    source: &Source<'_>,
    plan: &Plan,
    options: &ConvertOptions,
    report: &mut Report,
    write: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), ConvertError> {
    let mut sizes = Sizes::default();
    let (mut piece, mut bytes) = (0, 0);
    ordered(
        plan.jobs.len(),
        options.threads,
        |i| encode(source, plan.arch, options.target, &plan.jobs[i]),
        |i, encoded| {
            let job = &plan.jobs[i];
            for data in &encoded.pieces {
                write(data).map_err(ConvertError::Output)?;
                bytes += data.len() as u64;
            }
            if let Some(inexact) = encoded.inexact {
                if options.strict {
                    return Err(ConvertError::Strict {
                        what: format!("the {} of tensor {:?}", inexact.what, inexact.tensor),
                        change: format!("rounded, with an error of up to {:.1e}", inexact.error),
                    });
                }
                note(&mut report.inexact, inexact);
            }
            report.layers.extend(encoded.layer);
            if job.last {
                let kind = match plan.pieces[piece].ttype {
                    TensorType::U8 => "HF packed",
                    ttype => ttype.name(),
                };
                sizes.tensor(&job.slot, kind, bytes);
                piece += encoded.pieces.len();
                bytes = 0;
            }
            progress(i + 1, plan.jobs.len());
            Ok(())
        },
    )?;
    report.classes = sizes.list();
    report.input_bytes = source.checkpoint.tensors().iter().map(|t| t.data.len() as u64).sum();
    Ok(())
}

/// One entry a tensor, with the largest error of its parts.
fn note(all: &mut Vec<Inexact>, one: Inexact) {
    match all.last_mut().filter(|last| last.tensor == one.tensor) {
        Some(last) => last.error = last.error.max(one.error),
        None => all.push(one),
    }
}
