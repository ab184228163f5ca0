//! A model that many threads use moves between devices, and nobody sees it in an answer.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_cpu::Isa;
use bitnet_inference::engine::EngineOptions;
use bitnet_inference::sample::SamplerOptions;
use bitnet_inference::{
    Device, DeviceOptions, GenerateOptions, LoadOptions, Model, OpenError, OpenOptions, Placement,
    SharedModel, Split, gpus, memory,
};
use bitnet_memory::{Profile, Snapshot, Tag};
use bitnet_testkit::golden::fixtures;
use futures_util::StreamExt;
use std::sync::mpsc::channel;

fn on(device: impl Into<Placement>) -> DeviceOptions {
    DeviceOptions { device: device.into(), threads: Some(1), ..DeviceOptions::default() }
}

fn model(device: &DeviceOptions) -> Model {
    let load = LoadOptions { cache: Some(4096), ..LoadOptions::default() };
    let open = OpenOptions { device: device.clone(), load };
    Model::open(&fixtures().join("bitnet-packed"), &open, &mut |_, _| {}).unwrap()
}

fn options(seed: u64) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplerOptions { seed: Some(seed), ..SamplerOptions::default() },
        max_tokens: Some(40),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

fn prompt(i: u64) -> Vec<u32> {
    (0..20 + i as u32 % 5 * 30).map(|j| 3 + (i as u32 * 11 + j * 7) % 90).collect()
}

fn answer(shared: &SharedModel, i: u64) -> Vec<u32> {
    let mut stream = shared.generate_stream(&prompt(i), options(i)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        while let Some(piece) = stream.next().await {
            piece.unwrap();
        }
    });
    stream.tokens().to_vec()
}

/// Has three threads generate. Whenever one of them has an answer, the model moves on, in the middle of the others'.
fn moves_among(devices: &[DeviceOptions]) {
    const EACH: u64 = 5;
    let mut alone = model(&devices[0]);
    let mut want = |i: u64| {
        let mut generation = alone.generate(&prompt(i), options(i)).unwrap();
        generation.by_ref().for_each(|piece| assert!(piece.is_ok()));
        generation.tokens().to_vec()
    };
    let want: Vec<Vec<u32>> = (0..3 * EACH).map(&mut want).collect();
    let shared = model(&devices[0]).share(EngineOptions::default()).unwrap();
    let (ended, answers) = channel();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (shared, ended, want) = (shared.clone(), ended.clone(), &want);
            scope.spawn(move || {
                for i in thread * EACH..(thread + 1) * EACH {
                    assert_eq!(answer(&shared, i), want[i as usize], "answer {i}");
                    ended.send(()).unwrap();
                }
            });
        }
        drop(ended);
        for (at, ()) in answers.iter().enumerate() {
            shared.move_to(&devices[(at + 1) % devices.len()], &mut |_, _| {}).unwrap();
        }
    });
}

#[test]
fn threads_generate_while_the_model_moves_between_kernels() {
    let cpu = on(Device::Cpu);
    let other = Isa::available().into_iter().rfind(|isa| *isa != Isa::detect());
    let (kernels, threads) =
        (DeviceOptions { isa: other, ..cpu.clone() }, DeviceOptions { threads: Some(2), ..cpu.clone() });
    let two = Placement::of(vec![Device::Cpu; 2]).unwrap();
    moves_among(&[cpu, kernels.clone(), kernels.on(two), threads]);
}

#[test]
fn a_model_says_where_its_layers_are() {
    let two: Placement = "cpu,cpu".parse().unwrap();
    let model = model(&on(two.clone()));
    assert_eq!((&model.device().device, &*model.device().layers), (&two, &[1, 1][..]));
    assert!(model.device().threads == 1 && !model.device().kernel.contains(','));
    let open = |device: DeviceOptions| {
        let open = OpenOptions { device, load: LoadOptions::default() };
        Model::open(&fixtures().join("bitnet-packed"), &open, &mut |_, _| {}).map(drop)
    };
    let many: Placement = "cpu,cpu,cpu".parse().unwrap();
    let refused = open(on(many));
    assert!(matches!(refused, Err(OpenError::MoreDevices { devices: 3, layers: 2 })), "{refused:?}");
    let missing: Placement = "cpu,cuda:99".parse().unwrap();
    assert!(matches!(open(on(missing)), Err(OpenError::Cuda { number: 99, .. })));
    let refused = open(DeviceOptions { shares: vec![1.0, -1.0], ..on(two) });
    assert!(matches!(refused, Err(OpenError::Shares { .. })), "{refused:?}");
}

/// Weights are packed into pools; of a row of devices the first one's count as much as the last one's.
#[test]
fn memory_of_all_devices_is_told() {
    let two: Placement = "cpu,cpu".parse().unwrap();
    let weights = |device: &DeviceOptions| -> Vec<(String, usize)> {
        let of =
            |pool: &Snapshot| pool.tags.iter().find(|t| t.tag == Tag::Weights).map_or(0, |t| t.asked_bytes);
        model(device).pools().snapshots().into_iter().map(|(name, pool)| (name, of(&pool))).collect()
    };
    let [(host, all)] = &weights(&on(Device::Cpu))[..] else { panic!("a device has a pool") };
    assert!(host == "host" && *all > 0);
    let [(first, some), (last, rest)] = &weights(&on(two.clone()))[..] else { panic!("each has its own") };
    assert_eq!((&**first, &**last), ("host 0", "host 1"));
    assert!(*some > 0 && *rest > 0 && some + rest >= *all, "{some} and {rest} of {all}");
    let one = DeviceOptions { memory: Some(memory(Profile::Inference.into())), ..on(two) };
    assert_eq!(weights(&one), [("host".to_owned(), some + rest)]);
}

#[test]
fn threads_generate_while_the_model_moves_to_a_gpu_and_back() {
    let gpus = gpus();
    let cuda: Vec<Device> =
        gpus.iter().map(|gpu| gpu.device).filter(|device| matches!(device, Device::Cuda(_))).collect();
    let Some((&first, &last)) = cuda.first().zip(cuda.last()) else {
        assert!(std::env::var("REQUIRE_DEVICE").as_deref() != Ok("1"), "there is no NVIDIA GPU");
        println!("not run: there is no NVIDIA GPU");
        return;
    };
    let several = |devices: &[Device]| on(Placement::of(devices.to_vec()).unwrap());
    // The same GPU twice, where there is but one.
    let rows = DeviceOptions { split: Some(Split::Rows), ..several(&[last, first]) };
    moves_among(&[on(Device::Cpu), on(first), several(&[first, last]), several(&[last, Device::Cpu]), rows]);
}

#[test]
fn a_model_stays_where_it_is_when_there_is_nowhere_to_go() {
    let mut model = model(&on(Device::Cpu));
    let refused = model.move_to(&on(Device::Cuda(99)), &mut |_, _| {});
    assert!(matches!(refused, Err(OpenError::Cuda { number: 99, .. })));
    assert!(model.device().device.is(Device::Cpu));
    assert_eq!(model.generate(&prompt(1), options(1)).unwrap().count(), 40);
}
