//! Every shader is valid WGSL and can be said in Metal's language and in HLSL.

use super::*;
use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

fn each(test: impl Fn(Kernel, &Module, &ModuleInfo)) {
    let all = Kernel::all();
    let sources =
        all.iter().flat_map(|kernel| [kernel.source(), kernel.source_of_shared()].map(|s| (*kernel, s)));
    for (kernel, source) in sources {
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{kernel:?}: {}", e.emit_to_string(&source)));
        let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SUBGROUP, kernel.has_subgroups());
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{kernel:?}: {}", e.emit_to_string(&source)));
        assert!(module.entry_points.iter().any(|e| e.name == kernel.entry()), "{kernel:?}");
        test(kernel, &module, &info);
    }
}

#[test]
fn shaders_are_valid_and_ask_for_no_more_than_every_adapter_has() {
    each(|kernel, module, _| {
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let globals = module.global_variables.iter().map(|(_, global)| global);
        let shared = globals.filter(|g| g.space == naga::AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|g| layouter[g.ty].size).sum();
        assert!(bytes <= 16_384, "{kernel:?} shares {bytes} bytes");
        for entry in module.entry_points.iter().filter(|e| e.name == kernel.entry()) {
            assert!(entry.workgroup_size.iter().product::<u32>() <= 256, "{kernel:?}");
        }
    });
}

#[test]
fn shaders_become_metal_s_language() {
    each(|kernel, module, info| {
        for lang_version in [(2, 1), (2, 4), (3, 0)] {
            let options = msl::Options { lang_version, ..msl::Options::default() };
            let pipeline = msl::PipelineOptions {
                entry_point: Some((ShaderStage::Compute, kernel.entry().to_owned())),
                ..msl::PipelineOptions::default()
            };
            let (text, translated) = msl::write_string(module, info, &options, &pipeline)
                .unwrap_or_else(|e| panic!("{kernel:?} {lang_version:?}: {e}"));
            assert!(translated.entry_point_names.iter().all(Result::is_ok), "{kernel:?}");
            assert!(text.contains("kernel void"), "{kernel:?}");
        }
    });
}

#[test]
fn shaders_become_hlsl() {
    let target = |register| hlsl::BindTarget { register, ..hlsl::BindTarget::default() };
    each(|kernel, module, info| {
        // Before 6.0, HLSL has no operations of subgroups, and wgpu tells no adapter to have them.
        let oldest = if kernel.has_subgroups() { hlsl::ShaderModel::V6_0 } else { hlsl::ShaderModel::V5_1 };
        for shader_model in [oldest, hlsl::ShaderModel::V6_4] {
            let options = hlsl::Options {
                shader_model,
                special_constants_binding: Some(target(30)),
                immediates_target: Some(target(31)),
                ..hlsl::Options::default()
            };
            let pipeline = hlsl::PipelineOptions {
                entry_point: Some((ShaderStage::Compute, kernel.entry().to_owned())),
            };
            let mut text = String::new();
            let translated = hlsl::Writer::new(&mut text, &options, &pipeline)
                .write(module, info, None)
                .unwrap_or_else(|e| panic!("{kernel:?} {shader_model:?}: {e}"));
            assert!(translated.entry_point_names.iter().all(Result::is_ok), "{kernel:?}");
            assert!(text.contains("[numthreads("), "{kernel:?}");
        }
    });
}
