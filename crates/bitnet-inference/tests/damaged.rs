//! Small whole files of every kind, damaged at random: each is read, or refused, and nothing panics. The fuzz targets do the
//! same for longer.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_cpu::Isa;
use bitnet_formats::{Checkpoint, Header, gguf, safetensors_file};
use bitnet_inference::{DeviceOptions, LoadOptions, Model, OpenOptions, tokenizer};
use bitnet_model::{Rows, StepOutput};
use bitnet_quant::packing::PACKINGS;
use bitnet_testkit::files::safetensors;
use bitnet_testkit::tensors::Noise;
use bitnet_testkit::tiny;
use bitnet_tokenizer::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::Path;

const BYTES: [u8; 8] = [0x00, 0xff, 0x7f, 0x80, 0x01, b'"', b'{', b'9'];

/// One to four changes of one place each: a bit or a byte, a word of ones, a cut, a piece from elsewhere, a piece left out.
fn damage(noise: &mut Noise, file: &[u8]) -> Vec<u8> {
    let mut bad = file.to_vec();
    for _ in 0..1 + noise.bits() % 4 {
        if bad.is_empty() {
            break;
        }
        let mut below = |n: usize| noise.bits() as usize % n.max(1);
        let at = below(bad.len());
        let end = (at + 1 + below(64)).min(bad.len());
        match below(7) {
            0 => bad[at] ^= 1 << below(8),
            1 => bad[at] = BYTES[below(BYTES.len())],
            2 => bad[at..end.min(at + 8)].fill(0xff),
            3 => bad.truncate(at),
            4 => {
                let from = below(file.len());
                let piece = &file[from..(from + end - at).min(file.len())];
                bad.splice(at..at, piece.iter().copied());
            }
            5 => drop(bad.drain(at..end)),
            _ => {
                let digits = below(20);
                bad.splice(at..end, vec![b'9'; digits]);
            }
        }
    }
    bad
}

/// Says which file it was when reading it panics.
struct Case(&'static str, u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} damaged with seed {}", self.0, self.1);
        }
    }
}

/// Damages a file `rounds` times, and gives what came out to `read`, which says whether it could read it. Some must be
/// readable and some not, or the damage tests nothing.
fn each(name: &'static str, rounds: u64, file: &[u8], read: impl Fn(&[u8]) -> bool) {
    assert!(read(file), "{name} is not whole to begin with");
    let mut taken = 0;
    for seed in 1..=rounds {
        let case = Case(name, seed);
        taken += u64::from(read(&damage(&mut Noise(seed), file)));
        drop(case);
    }
    assert!((1..rounds).contains(&taken), "{name}: {taken} of {rounds} could be read");
}

const PATH: &str = "damaged";

fn gguf(bytes: &[u8]) -> Option<Checkpoint> {
    gguf::read(Path::new(PATH), bytes.to_vec().into()).ok()
}

fn directory(config: Value, tensors: &[u8]) -> Option<Checkpoint> {
    let tensors = safetensors_file::read(Path::new(PATH), &tensors.to_vec().into()).ok()?;
    let header = Header::HuggingFace { dir: PATH.into(), config, generation_config: Value::Null };
    Checkpoint::new(Path::new(PATH), header, tensors).ok()
}

/// Whether a model loads and computes.
fn runs(checkpoint: Option<Checkpoint>) -> bool {
    let Some(checkpoint) = checkpoint else { return false };
    let options = OpenOptions {
        device: DeviceOptions { isa: Some(Isa::Scalar), threads: Some(1), ..DeviceOptions::default() },
        load: LoadOptions::default(),
    };
    let Ok(mut model) = Model::from_checkpoint(&checkpoint, &options, &mut |_, _| {}) else { return false };
    let all = StepOutput { rows: Rows::All, keep_hidden: true, ..StepOutput::default() };
    model.evaluate(&[0, 1, 2], 2, all, &mut |_| {}).is_ok()
}

/// Whether a vocabulary opens, and encodes and decodes.
fn speaks(tokenizer: Option<Tokenizer>) -> bool {
    let Some(tokenizer) = tokenizer else { return false };
    let ids = tokenizer.encode("the cat α\n<s> 🚀", true);
    ids.is_ok_and(|ids| tokenizer.decode(&ids, false).is_ok())
}

#[test]
fn models_load_or_are_refused() {
    each("GGUF", 5000, &tiny::gguf().bytes(), |bytes| runs(gguf(bytes)));
    let tensors = safetensors(&tiny::tensors());
    each("safetensors", 5000, &tensors, |bytes| runs(directory(tiny::config(), bytes)));
    each("config.json", 5000, tiny::config().to_string().as_bytes(), |bytes| {
        serde_json::from_slice(bytes).is_ok_and(|config| runs(directory(config, &tensors)))
    });
}

#[test]
fn vocabularies_open_or_are_refused() {
    let json = tiny::tokenizer().to_string();
    each("tokenizer.json", 5000, json.as_bytes(), |bytes| speaks(Tokenizer::from_json(bytes).ok()));
    for algorithm in [1, 2] {
        let file = tiny::sentencepiece(algorithm);
        each("tokenizer.model", 5000, &file, |bytes| speaks(Tokenizer::from_sentencepiece(bytes).ok()));
    }
    each("GGUF's vocabulary", 5000, &tiny::gguf().bytes(), |bytes| {
        speaks(gguf(bytes).and_then(|checkpoint| tokenizer(&checkpoint).ok()?))
    });
}

#[test]
fn templates_render_or_are_refused() {
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]);
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
                  {%- set ns.n = ns.n + 1 %}{{ m['role'] | capitalize }}: {{ m.content or '' }}{% generation %}x\
                  {% endgeneration %}{% endfor %}{{ messages[1:] | tojson(indent=2) }}{{ 'a b'.split(' ')[-1] }}";
    each("template", 10_000, source.as_bytes(), |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let template = ChatTemplate::new(&source, SpecialTokens::default());
        template.is_ok_and(|template| template.render(&messages, true, &Map::new()).is_ok())
    });
}

#[test]
fn packings_hold_trits_or_are_refused() {
    for packing in PACKINGS {
        let (rows, cols) = (4, 256);
        let mut file = vec![0; (packing.bytes)(rows, cols).unwrap()];
        // Code 1 is zero in every packing of two bits, and any byte will do in the others.
        file.fill(0x55);
        each(packing.name, 2000, &file, |bytes| {
            let Ok(m) = (packing.unpack)(rows, cols, bytes) else { return false };
            let finite = (0..rows).all(|row| (0..cols).all(|col| m.scale_at(row, col).is_finite()));
            assert!(finite && (0..rows * cols).all(|i| (-1..=1).contains(&m.trit(i / cols, i % cols))));
            true
        });
    }
}
