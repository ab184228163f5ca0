use super::*;
use bitnet_formats::{Tensor, TensorType};
use serde_json::{Value, json};
use std::path::Path;

fn read(config: Value) -> Result<ModelConfig, ModelError> {
    let header = Header::HuggingFace { dir: "m".into(), config, generation_config: Value::Null };
    ModelConfig::read(&Checkpoint::new(Path::new("m"), header, Vec::<Tensor>::new()).unwrap())
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10, "rms_norm_eps": 1e-5,
        "quantization_config": {"quant_method": "bitnet"}, "eos_token_id": [1, 2],
    })
}

fn with(key: &str, value: Value) -> Result<ModelConfig, ModelError> {
    let mut config = llama();
    config[key] = value;
    read(config)
}

#[test]
fn defaults_are_those_of_transformers() {
    let c = read(llama()).unwrap();
    assert_eq!(
        (c.shape.head_dim, c.scale_meaning, c.eos.as_slice()),
        (16, ScaleMeaning::Divisor, &[1, 2][..])
    );
    assert_eq!((c.activation, c.rope.theta, c.masters), (Activation::Silu, 10_000.0, Masters::Absmean));
    assert_eq!(with("head_dim", json!(32)).unwrap().shape.head_dim, 32);
    let theta =
        with("rope_parameters", json!({"rope_type": "default", "rope_theta": 500000.0})).unwrap().rope.theta;
    assert_eq!(theta, 500_000.0);
    let auto = json!({"linear_class": "autobitlinear", "quantization_mode": "online"});
    let c = with("quantization_config", auto).unwrap();
    assert_eq!((c.scale_meaning, c.masters), (ScaleMeaning::Multiplier, Masters::Online));
}

#[test]
fn what_cannot_be_run_is_named() {
    for (key, value, message) in [
        ("architectures", json!(["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        ("architectures", json!([]), "architectures"),
        ("hidden_size", json!(-3), "hidden_size"),
        ("hidden_size", json!(66), "head"),
        ("num_attention_heads", json!(0), "head"),
        ("num_key_value_heads", json!(3), "key and value heads"),
        ("num_hidden_layers", json!(u64::MAX), "layers"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("attention_bias", json!(true), "bias"),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}), "longrope"),
        ("rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.factor"),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 0.0, "original_max_position_embeddings": 64}),
            "rope scaling is not finite",
        ),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        ("rms_norm_eps", json!("x"), "rms_norm_eps"),
        ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        ("quantization_config", json!({"linear_class": "other"}), "other"),
        ("query_pre_attn_scalar", json!(256), "size of a head"),
        ("final_logit_softcapping", json!(30.0), "capped"),
    ] {
        let error = with(key, value).unwrap_err().to_string();
        assert!(error.contains(message), "{key}: {error}");
    }
}

/// The values of Llama 3.1, by the definition: long wavelengths divided, short ones kept, a ramp between.
#[test]
fn llama3_scaling_divides_long_wavelengths() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let mut config = llama();
    config["head_dim"] = json!(128);
    config["rope_theta"] = json!(500_000.0);
    let plain = read(config.clone()).unwrap().inverse_frequencies();
    config["rope_scaling"] = scaling;
    let scaled = read(config).unwrap().inverse_frequencies();
    let mut between = 0;
    for (plain, scaled) in plain.iter().zip(&scaled) {
        let wavelength = 2.0 * std::f64::consts::PI / f64::from(*plain);
        if wavelength < 8192.0 / 4.0 {
            assert_eq!(plain, scaled);
        } else if wavelength > 8192.0 {
            assert_eq!(plain / 8.0, *scaled);
        } else {
            assert!(plain / 8.0 <= *scaled && scaled <= plain);
            between += 1;
        }
    }
    assert!(between > 3);
}

/// What gives YaRN's attention factor, the strongest word first.
#[test]
fn yarn_takes_its_attention_factor_from_where_it_is_said() {
    let said = |more: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with("rope_scaling", scaling).unwrap().rope.attention_factor()
    };
    let usual = (0.1 * 4f64.ln() + 1.0) as f32;
    assert_eq!(said(json!({})), usual);
    assert_eq!(said(json!({"mscale": 1.0, "mscale_all_dim": 0.0})), usual);
    assert_eq!(said(json!({"mscale": 0.7, "mscale_all_dim": 0.7})), 1.0);
    assert_eq!(said(json!({"attention_factor": 1.25, "mscale": 0.7, "mscale_all_dim": 1.0})), 1.25);
    let scaling = json!({"rope_type": "yarn", "original_max_position_embeddings": 512});
    let mut config = llama();
    config["rope_scaling"] = scaling;
    config["max_position_embeddings"] = json!(2048);
    let Some(RopeScaling::Yarn(yarn)) = read(config).unwrap().rope.scaling else { panic!("it is yarn") };
    assert_eq!((yarn.factor, yarn.original_context), (4.0, 512.0), "the factor follows from both contexts");
}

#[test]
fn gguf_names_its_keys() {
    use bitnet_formats::gguf::{Metadata, Value as V};
    let mut metadata = Metadata(vec![("general.architecture".into(), V::String("bitnet-b1.58".into()))]);
    for (key, value) in [("embedding_length", 64), ("attention.head_count", 4), ("block_count", 1)] {
        metadata.0.push((format!("bitnet-b1.58.{key}"), V::U32(value)));
    }
    metadata.0.push(("bitnet-b1.58.attention.layer_norm_rms_epsilon".into(), V::F32(1e-5)));
    let tensor = Tensor {
        name: "token_embd.weight".into(),
        shape: vec![10, 64],
        ttype: TensorType::Dense(bitnet_core::DenseType::F32),
        data: bitnet_core::Bytes::from(vec![0; 2560]).into(),
    };
    let read = |metadata: &Metadata, tensors: Vec<Tensor>| {
        let header = Header::Gguf { version: 3, metadata: metadata.clone() };
        ModelConfig::read(&Checkpoint::new(Path::new("m"), header, tensors).unwrap())
    };
    assert!(read(&metadata, vec![]).unwrap_err().to_string().contains("token_embd.weight"));
    let error = read(&metadata, vec![tensor.clone()]).unwrap_err().to_string();
    assert!(error.contains("bitnet-b1.58.feed_forward_length"), "{error}");
    metadata.0.push(("bitnet-b1.58.feed_forward_length".into(), V::U32(96)));
    metadata.0.push(("bitnet-b1.58.context_length".into(), V::U32(512)));
    let c = read(&metadata, vec![tensor.clone()]).unwrap();
    assert_eq!((c.vocab, c.shape.kv_heads, c.activation), (10, 4, Activation::Relu2));
    metadata.0.push(("bitnet-b1.58.rope.dimension_count".into(), V::U32(8)));
    assert!(read(&metadata, vec![tensor]).unwrap_err().to_string().contains("dimension_count"));
}
