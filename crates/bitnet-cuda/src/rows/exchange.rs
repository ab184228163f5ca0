//! Copies between devices that share rows: the streams wait for each other, and the host for none of them.
//!
//! A device marks that its piece is made. Each waits for the marks of the others, copies, and marks that it has; for that the others wait
//! before anything that comes behind, so that no piece is written again, nor its memory given back, while somebody reads it.

use super::{CudaRows, CudaRowsTensor, Cut};
use crate::backend::CudaBackend;
use crate::driver::Rectangle;
use crate::error::CudaError;
use crate::tensor::CudaTensor;
use std::sync::Arc;

impl CudaRows {
    /// Makes a tensor whole on every device, if it is not.
    pub(super) fn gather(&self, tensor: &mut CudaRowsTensor) {
        let Some(cut) = tensor.cut.take() else { return };
        let rows = tensor.rows;
        let rectangles: Vec<_> = (0..self.devices.len()).map(|at| cut.rectangles(at, rows)).collect();
        self.exchange(&tensor.pieces, self.each(&mut tensor.whole), (rows, cut.cols), &rectangles);
    }

    /// Gives tensors on all devices this shape, and to each what all of them made: `rectangles` of each device's piece.
    pub(super) fn exchange(
        &self,
        pieces: &[CudaTensor],
        whole: &mut [CudaTensor],
        (rows, cols): (usize, usize),
        rectangles: &[Vec<Rectangle>],
    ) {
        for (device, whole) in self.devices.iter().zip(whole.iter_mut()) {
            whole.shape(&device.gpu, rows, cols);
        }
        if !self.hand_over() {
            return;
        }
        self.wait_for_each_other();
        for (device, whole) in self.devices.iter().zip(whole.iter()) {
            for ((other, piece), rectangles) in self.devices.iter().zip(pieces).zip(rectangles) {
                copy(device, (other, piece), whole, rectangles);
            }
            attempt(device, device.gpu.driver.mark());
        }
        self.wait_for_each_other();
    }

    /// Takes a tensor that is whole apart: each device gets its columns.
    pub(super) fn spread(&self, tensor: &mut CudaRowsTensor, cut: &Arc<Cut>) {
        if let Some(known) = &tensor.cut {
            assert_eq!(known, cut, "columns of heads");
            return;
        }
        let rows = tensor.rows();
        for (at, (device, piece)) in self.devices.iter().zip(self.each(&mut tensor.pieces)).enumerate() {
            if cut.width(at) > 0 {
                piece.shape(&device.gpu, rows, cut.width(at));
            }
        }
        (tensor.cut, tensor.rows) = (Some(Arc::clone(cut)), rows);
        if !self.hand_over() {
            return;
        }
        for (at, (device, piece)) in self.devices.iter().zip(&tensor.pieces).enumerate() {
            let rectangles: Vec<_> =
                cut.rectangles(at, rows).into_iter().map(Rectangle::turned_round).collect();
            copy(device, (device, &tensor.whole[at]), piece, &rectangles);
        }
    }

    /// Sends off what all devices have recorded, and marks it; whether none has failed.
    pub(super) fn hand_over(&self) -> bool {
        self.devices.iter().all(|device| device.gpu.hand_over().map_err(|e| device.gpu.fail(e)).is_ok())
    }

    fn wait_for_each_other(&self) {
        for (at, device) in self.devices.iter().enumerate() {
            for (_, other) in self.devices.iter().enumerate().filter(|(other, _)| *other != at) {
                attempt(device, device.gpu.driver.wait_for(&other.gpu.driver));
            }
        }
    }
}

fn copy(
    device: &CudaBackend,
    (other, from): (&CudaBackend, &CudaTensor),
    to: &CudaTensor,
    rectangles: &[Rectangle],
) {
    // Where there is no memory, the step has failed.
    let (Some(from), Some(to)) = (from.buffer(), to.buffer()) else { return };
    for rectangle in rectangles {
        attempt(device, device.gpu.driver.copy_rectangle(&other.gpu.driver, from, to, rectangle));
    }
}

/// Makes the step fail where the driver refuses.
fn attempt(device: &CudaBackend, outcome: Result<(), CudaError>) {
    if let Err(e) = outcome {
        device.gpu.fail(device.gpu.error(e, 0, "a copy"));
    }
}
