//! Trits in place of others, in a copy of a model's files that is the same everywhere else.

use super::Merged;
use crate::trits::{Changes, identity};
use crate::{Parameter, Parameters, TrainError};
use bitnet_core::{Matrix, TernaryMatrix};
use bitnet_cpu::CpuTraining;
use bitnet_formats::safetensors_file;
use bitnet_formats::{AdapterFiles, AtomicFile, Header, NewDirectory, Tensor, TensorType, map_file};
use bitnet_model::{ModelConfig, ModelTensors, Role};
use bitnet_quant::packing;
use std::path::{Path, PathBuf};

/// Bytes that take the place of others in a file.
struct Patch {
    offset: usize,
    bytes: Vec<u8>,
}

/// Puts the trits of an adapter into a copy of its model.
pub(super) fn merge(
    ops: &CpuTraining,
    model: &Path,
    adapter: &AdapterFiles,
    out: &Path,
) -> Result<Vec<Merged>, TrainError> {
    let checkpoint = bitnet_formats::open(model)?;
    let at = |source| TrainError::Model { path: model.to_owned(), source };
    let config = ModelConfig::read(&checkpoint).map_err(at)?;
    let tensors = ModelTensors::new(&checkpoint, &config);
    let parameters = Parameters::new(&config, &tensors);
    let files = match &checkpoint.header {
        Header::Gguf { .. } => vec![(model.to_owned(), checkpoint.tensors().to_vec())],
        Header::HuggingFace { dir, .. } => weights(dir)?,
    };
    let mut patches: Vec<Vec<Patch>> = files.iter().map(|_| Vec::new()).collect();
    let mut report = Vec::new();
    for changes in crate::trits::read(adapter)? {
        let module = |p: &&Parameter| p.name.trim_end_matches(".weight") == changes.module;
        let fail = |what: &str| {
            let what = format!("{} {what}", changes.module);
            TrainError::Checkpoint { path: adapter.path.clone(), what }
        };
        let p = parameters
            .tensors()
            .filter(|p| p.slot.role.is_projection())
            .find(module)
            .ok_or_else(|| fail("is no projection of the model"))?;
        let Matrix::Ternary(matrix) = tensors.matrix(&p.slot).map_err(at)? else {
            return Err(fail("is not ternary in the model"));
        };
        if identity(&ops.pack(&matrix)?) != changes.beside {
            return Err(fail("has other trits in the model than those that the adapter was made beside"));
        }
        let count = p.slot.rows * p.slot.cols;
        if changes.positions.last().is_some_and(|last| *last as usize >= count) {
            return Err(fail("has positions behind the last trit"));
        }
        let name = config.arch.tensor_name(p.slot.role, p.slot.layer);
        let found = files
            .iter()
            .enumerate()
            .find_map(|(i, (_, tensors))| Some((i, tensors.iter().find(|t| t.name == name)?)));
        let (file, tensor) = found.ok_or_else(|| fail("is not in a file that can be copied"))?;
        let bytes = changed(tensor, p, &config, &changes).ok_or_else(|| {
            fail("is not packed in the model, where a file of packed trits is needed; `bitnet convert` writes one")
        })?;
        patches[file].push(Patch { offset: tensor.bytes().offset(), bytes });
        let share = changes.positions.len() as f64 / count.max(1) as f64;
        report.push(Merged { tensor: p.name.clone(), changed: Some(share), lost: Some(0.0) });
    }
    let files: Vec<(PathBuf, Vec<Patch>)> = files.into_iter().map(|(path, _)| path).zip(patches).collect();
    match &checkpoint.header {
        Header::Gguf { .. } => files.iter().try_for_each(|(path, patches)| copy(path, patches, out))?,
        Header::HuggingFace { dir, .. } => directory(dir, &files, out)?,
    }
    Ok(report)
}

/// Files of weights in a directory, with their tensors.
fn weights(dir: &Path) -> Result<Vec<(PathBuf, Vec<Tensor>)>, TrainError> {
    let mut all = Vec::new();
    for path in files(dir)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors")) {
        let tensors = safetensors_file::read(&path, &map_file(&path)?)?;
        all.push((path, tensors));
    }
    Ok(all)
}

/// Files of a directory, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = std::fs::read_dir(dir).map_err(TrainError::io(dir))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(TrainError::io(dir))?;
    paths.retain(|path| path.is_file());
    paths.sort_unstable();
    Ok(paths)
}

/// The bytes of a packed tensor with other trits; `None` where it is not packed.
fn changed(tensor: &Tensor, p: &Parameter, config: &ModelConfig, changes: &Changes) -> Option<Vec<u8>> {
    let packing = match tensor.ttype {
        TensorType::U8 => &packing::HF,
        TensorType::Ternary(packing) => packing,
        _ => return None,
    };
    let (rows, cols) = (p.slot.rows, p.slot.cols);
    let (was, stride) = (tensor.bytes(), TernaryMatrix::row_bytes(cols));
    let matrix = (packing.unpack)(rows, cols, &was).ok()?;
    let mut codes = matrix.codes().to_vec();
    let interleaved = config.arch.interleaved && matches!(p.slot.role, Role::Q | Role::K);
    for (position, trit) in changes.positions.iter().zip(&changes.trits) {
        let (mut row, column) = (*position as usize / cols, *position as usize % cols);
        if interleaved {
            // Row `a * d/2 + i` of a head is row `2i + a` of the file.
            let d = config.shape.head_dim;
            row = row / d * d + row % (d / 2) * 2 + row % d / (d / 2);
        }
        let (byte, shift) = (&mut codes[row * stride + column / 4], 2 * (column % 4));
        *byte = *byte & !(3 << shift) | (trit + 1).cast_unsigned() << shift;
    }
    let matrix = TernaryMatrix::new(rows, cols, codes.into(), matrix.scale().clone()).ok()?;
    let mut bytes = Vec::with_capacity(was.len());
    (packing.pack)(&matrix, &mut bytes).ok()?;
    (bytes.len() == was.len()).then_some(bytes)
}

/// Copies a file with other bytes in some places.
fn copy(from: &Path, patches: &[Patch], to: &Path) -> Result<(), TrainError> {
    let bytes = map_file(from)?;
    let mut sorted: Vec<&Patch> = patches.iter().collect();
    sorted.sort_unstable_by_key(|patch| patch.offset);
    let mut file = AtomicFile::create(to)?;
    let mut done = 0;
    for patch in sorted {
        file.write(&bytes[done..patch.offset])?;
        file.write(&patch.bytes)?;
        done = patch.offset + patch.bytes.len();
    }
    file.write(&bytes[done..])?;
    Ok(file.finish()?)
}

/// Copies a directory's files, some with other bytes.
fn directory(from: &Path, patched: &[(PathBuf, Vec<Patch>)], to: &Path) -> Result<(), TrainError> {
    crate::checkpoint::remove(to)?;
    let mut dir = NewDirectory::create(to)?;
    dir.begin()?;
    for path in files(from)? {
        let patches = patched.iter().find(|(of, _)| *of == path).map_or(&[][..], |(_, patches)| patches);
        let Some(name) = path.file_name() else { continue };
        copy(&path, patches, &dir.path().join(name))?;
    }
    Ok(dir.finish()?)
}
