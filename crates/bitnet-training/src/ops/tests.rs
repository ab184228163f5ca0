use super::*;
use bitnet_core::Terms;
use bitnet_testkit::training::Plain;

fn elsewhere() -> Ops {
    Ops::on(Arc::new(CpuTraining::new(None, Some(2)).unwrap()), Box::new(Plain::new()))
}

#[test]
fn arrays_are_where_they_were_last_used() {
    let ops = elsewhere();
    let mut x = Array::from(vec![1.0f32, 2.0, 3.0]);
    ops.add(&mut x, &Array::from(vec![1.0; 3]));
    assert_eq!(*x, [2.0, 3.0, 4.0]);
    x[1] = 0.0;
    let mut y = Array::default();
    ops.copy(&x, &mut y);
    ops.fill(x.part_mut(0..2), 7.0);
    assert_eq!((&*x, &*y), (&[7.0, 7.0, 4.0][..], &[2.0, 0.0, 4.0][..]));
    ops.add(&mut x, &y);
    assert_eq!(*x, [9.0, 7.0, 8.0]);
    // Rows of integers lie further apart on a device.
    let (mut codes, mut scales) = (Array::default(), Array::default());
    assert!(ops.absmean(
        (&Array::from(vec![0.5, -2.0, 0.1, 3.0, 0.0, -1.0])).into(),
        3,
        &mut codes,
        &mut scales
    ));
    assert_eq!((&*codes, codes.len(), codes.stride()), (&[0, -1, 0, 1, 0, -1][..], 6, 16));
    let again = codes.clone();
    let mut product = Array::default();
    let (a, b) = (Side::rows(&y, 3), Side::rows(Values::Codes(&again), 3));
    let store = Store::Set(Factor::scales(&scales));
    ops.product(Terms::F32, (1, 2, 3), a, b, store, Target::whole(product.sized(2), 2));
    assert_eq!(*product, [0.0 * scales[0], (2.0 - 4.0) * scales[0]]);
}

#[test]
fn what_goes_wrong_is_told_once() {
    let cpu = Arc::new(CpuTraining::new(None, Some(2)).unwrap());
    let ops = Ops::on(cpu, Box::new(Plain::failing(1)));
    let mut x = Array::from(vec![1.0f32; 4]);
    ops.add(&mut x, &Array::from(vec![1.0; 4]));
    assert!(matches!(ops.check(), Err(BackendError::OutOfMemory { bytes: 16, .. })));
    ops.check().unwrap();
}
