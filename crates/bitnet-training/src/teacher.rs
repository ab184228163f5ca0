//! The model that another one learns from.

use crate::config::DistillConfig;
use crate::model::{Activations, Distillation, Model, Precision};
use crate::source::Origin;
use crate::{Ops, TrainError, WeightQuantizer};
use bitnet_cpu::Terms;
use bitnet_model::ModelConfig;
use bitnet_tokenizer::Tokenizer;

/// Reads the teacher that the settings name, with its weights as they are run, and what a student of it learns.
pub(crate) fn teacher(
    ops: &Ops,
    config: &DistillConfig,
    student: (&ModelConfig, &Tokenizer),
    terms: Terms,
) -> Result<(Model, Distillation), TrainError> {
    let origin = Origin::frozen(ops, &config.teacher, None)?;
    let fail = |what: &str| {
        let what = format!("distill.teacher is {}: {what}", config.teacher.display());
        Err(TrainError::Data { what })
    };
    if origin.config.vocab != student.0.vocab {
        return fail(&format!("it has {} tokens, and the student {}", origin.config.vocab, student.0.vocab));
    }
    let ids = 0..student.0.vocab as u32;
    if let Some(id) = ids.into_iter().find(|id| origin.tokenizer.piece(*id) != student.1.piece(*id)) {
        return fail(&format!("its tokenizer has another token {id} than the student's"));
    }
    let how = resolve(config, student.0, &origin.config)?;
    let weights = origin.parameters.quantizer();
    let precision = match weights {
        WeightQuantizer::Float => Precision { terms, ..Precision::FLOAT },
        _ => Precision { weights, activations: Activations::Int8, terms, ..Precision::BITNET },
    };
    let (parameters, values) = (origin.parameters, origin.values);
    let model = Model::new(ops.clone(), origin.config, parameters, values, precision, false)?;
    Ok((model.with_frozen(origin.frozen), how))
}

/// What is learned, with what the settings leave open: the last layers, and as many heads as keys have.
fn resolve(
    config: &DistillConfig,
    student: &ModelConfig,
    teacher: &ModelConfig,
) -> Result<Distillation, TrainError> {
    let fail = |what: String| Err(TrainError::Data { what });
    let (mut layers, heads) = ([0; 2], config.heads.unwrap_or(student.shape.kv_heads));
    for (i, (key, asked, model)) in
        [("layer", config.layer, student), ("teacher_layer", config.teacher_layer, teacher)]
            .into_iter()
            .enumerate()
    {
        layers[i] = asked.unwrap_or(model.layers - 1);
        if layers[i] >= model.layers {
            return fail(format!(
                "distill.{key} is {}, and the layers are 0 to {}",
                layers[i],
                model.layers - 1
            ));
        }
        let shape = model.shape;
        let kv = shape.kv_heads * shape.head_dim;
        if config.relations > 0.0
            && !(kv.is_multiple_of(heads) && (shape.heads * shape.head_dim).is_multiple_of(heads))
        {
            return fail(format!(
                "distill.relation_heads is {heads}, which must divide the {kv} columns of keys"
            ));
        }
    }
    Ok(Distillation {
        logits: config.logits,
        temperature: config.temperature,
        relations: config.relations,
        layer: layers[0],
        teacher_layer: layers[1],
        heads,
        cosine: config.cosine,
        causal: config.causal,
        unrotated: config.unrotated,
    })
}
